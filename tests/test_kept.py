"""Kept answers are found again, never stale, and survive being killed."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model

from helpers.dpo.checkpoints import CheckpointError
from helpers.vlm import kept, pocket
from helpers.vlm.answers import answer_logps, answers, yes_no_log_odds
from helpers.vlm.kept import kept_answers, kept_log_odds, kept_logps
from helpers.vlm.load import limit_edge, lora_config
from tools.build_notebooks import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*answers were cut")

ASKED = ["What do you see?", "Is there a fork?", "Is the plate to the left of the cup?"] * 2
GIVEN = ["I see a red cup.", "Yes", "No"] * 2
FEW = {"max_new_tokens": 4, "batch_size": 2}


@pytest.fixture
def generated(monkeypatch):
    """The number of rows of each batch that a pocket model generates."""
    rows, original = [], pocket.Idefics3ForConditionalGeneration.generate

    def counting(self, **batch):
        rows.append(len(batch["input_ids"]))
        return original(self, **batch)

    monkeypatch.setattr(pocket.Idefics3ForConditionalGeneration, "generate", counting)
    return rows


@pytest.fixture
def adapted(untrained):
    """An untrained model with an adapter that does something."""
    model = get_peft_model(untrained, lora_config(untrained, 4)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def test_they_are_those_of_generate_and_are_found_again(
    untrained, processor, images, generated, tmp_path, capsys
):
    fresh = answers(untrained, processor, images, ASKED, max_new_tokens=4)
    generated.clear()
    first = kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW)
    assert generated == [2, 2, 2] and capsys.readouterr().out == ""
    again = kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW)
    assert generated == [2, 2, 2]
    assert f"6 of 6 results are in {tmp_path / 'kept.jsonl'}" in capsys.readouterr().out
    assert fresh == first == again
    assert [t.cut for t in fresh] == [t.cut for t in first] == [t.cut for t in again]
    assert any(text.cut for text in fresh)


def test_only_what_is_missing_is_generated(untrained, processor, images, generated, tmp_path):
    kept_answers(untrained, processor, images[2:5], ASKED[2:5], tmp_path, **FEW)
    generated.clear()
    bar = Bar()
    texts = kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW, bar=bar)
    assert sum(generated) == 3 and bar.n == 6
    assert texts == answers(untrained, processor, images, ASKED, max_new_tokens=4)


class Bar:
    n = 0

    def update(self, count):
        self.n += count


def test_log_probs_and_odds_are_kept_to_the_last_digit(
    untrained, processor, images, tmp_path, monkeypatch
):
    given = images, ASKED, GIVEN
    logps = kept_logps(untrained, processor, *given, tmp_path)
    odds = kept_log_odds(untrained, processor, images, ASKED, tmp_path)
    close = {"rtol": 0, "atol": 1e-4}
    fresh = answer_logps(untrained, processor, *given)
    torch.testing.assert_close(logps, fresh, **close)
    fresh = yes_no_log_odds(untrained, processor, images, ASKED)
    torch.testing.assert_close(odds, fresh, **close)
    monkeypatch.setattr(untrained, "forward", None)  # whatever is not in the file fails
    assert torch.equal(kept_logps(untrained, processor, *given, tmp_path), logps)
    assert torch.equal(kept_log_odds(untrained, processor, images, ASKED, tmp_path), odds)
    with pytest.raises(TypeError):
        kept_logps(untrained, processor, images, ASKED, GIVEN[::-1], tmp_path)


def test_a_template_that_ends_answers_otherwise_is_scored_anew(
    untrained, images, tmp_path, monkeypatch
):
    processor = pocket.build_processor()
    kept_logps(untrained, processor, images, ASKED, GIVEN, tmp_path)
    ending = "<end_of_utterance>\n{% endfor %}"
    assert ending in processor.chat_template
    changed = ending.replace("\n", "{% if message['role'] == 'user' %}\n{% endif %}")
    processor.chat_template = processor.chat_template.replace(ending, changed)
    monkeypatch.setattr(untrained, "forward", None)
    with pytest.raises(TypeError):
        kept_logps(untrained, processor, images, ASKED, GIVEN, tmp_path)


# --- another key for another answer -----------------------------------------------------------


def last_weight(model, *_):
    model.get_base_model().lm_head.weight.data[-1, -1] += 1e-4


def adapter_weight(model, *_):
    next(w for n, w in model.named_parameters() if "lora_B" in n).data[-1, -1] += 1e-4


def adapter_off(model, *_):
    model.base_model.disable_adapter_layers()


def adapter_stronger(model, *_):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 2


def hook(model, *_):
    model.base_model.model.model.connector.register_forward_hook(lambda m, i, out: out * 0)


def longer_answers_by_default(model, *_):
    model.generation_config.repetition_penalty = 1.5


def smaller_pictures(model, processor):
    limit_edge(processor, 24)


def another_template(model, processor):
    processor.chat_template = processor.chat_template.replace("Assistant:", "Assistant :")


@pytest.mark.parametrize(
    "change",
    [
        last_weight, adapter_weight, adapter_off, adapter_stronger, hook,
        longer_answers_by_default, smaller_pictures, another_template,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_another_model_or_processor_is_asked_anew(change, adapted, images, generated, tmp_path):
    processor = pocket.build_processor()
    kept_answers(adapted, processor, images, ASKED, tmp_path, **FEW)
    generated.clear()
    change(adapted, processor)
    now = kept_answers(adapted, processor, images, ASKED, tmp_path, **FEW)
    assert sum(generated) == 6
    assert now == answers(adapted, processor, images, ASKED, max_new_tokens=4)


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 5}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 1}],
    ids=str,
)
def test_other_settings_are_asked_anew(change, untrained, processor, images, generated, tmp_path):
    kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW)
    kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW, temperature=0.5, seed=1)
    kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW, temperature=1.0, seed=2)
    generated.clear()
    kept_answers(untrained, processor, images, ASKED, tmp_path, **{**FEW, **change})
    assert sum(generated) == 6


def test_the_seed_of_greedy_answers_and_the_batch_size_are_not_asked_for(
    untrained, processor, images, generated, tmp_path
):
    kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW)
    generated.clear()
    changes = {**FEW, "seed": 7, "batch_size": 4}
    kept_answers(untrained, processor, images, ASKED, tmp_path, **changes)
    assert not generated


def test_another_picture_or_question_is_asked_anew(
    untrained, processor, images, generated, tmp_path
):
    kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW)
    generated.clear()
    changed = [image.copy() for image in images]
    x, y = changed[0].width - 1, changed[0].height - 1
    changed[0].putpixel((x, y), (1, 2, 3))
    kept_answers(untrained, processor, changed, ASKED, tmp_path, **FEW)
    kept_answers(untrained, processor, images, [ASKED[1], *ASKED[1:]], tmp_path, **FEW)
    assert generated == [1, 1]


def test_palette_pictures_are_their_colours(untrained, processor, images, generated, tmp_path):
    one, other = images[0].convert("P"), images[0].convert("P")
    other.putpalette(bytes(255 - value for value in one.getpalette()))
    assert one.tobytes() == other.tobytes()
    for image in (one, other):
        kept_answers(untrained, processor, [image], ASKED[:1], tmp_path, **FEW)
    assert generated == [1, 1]


def test_an_adapter_that_is_loaded_again_is_the_same_model(adapted, processor, tmp_path):
    """As after a disconnect: what was trained, and what is read from its folder."""
    digest = kept.model_digest(adapted)
    adapted.config.use_cache = False  # as gradient checkpointing leaves it
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(pocket.build_model(processor, seed=0).eval(), tmp_path)
    assert kept.model_digest(again) == kept.model_digest(adapted) == digest
    other = PeftModel.from_pretrained(pocket.build_model(processor, seed=1).eval(), tmp_path)
    assert kept.model_digest(other) != digest


# --- duplicates, samples ----------------------------------------------------------------------


def test_what_is_asked_twice_is_answered_once(untrained, processor, images, generated, tmp_path):
    texts = kept_answers(
        untrained, processor, [images[0]] * 4, ["What do you see?"] * 4, tmp_path, **FEW
    )
    assert generated == [1] and len(set(texts)) == 1 and len(texts) == 4


def test_samples_of_one_question_differ_and_are_kept(
    untrained, processor, images, generated, tmp_path
):
    asked = [images[0]] * 4, ["What do you see?"] * 4
    sampling = {**FEW, "temperature": 1.0}
    first = kept_answers(untrained, processor, *asked, tmp_path, **sampling)
    assert len(set(first)) > 1 and generated == [2, 2]
    assert kept_answers(untrained, processor, *asked, tmp_path, **sampling) == first
    assert generated == [2, 2]
    assert kept_answers(untrained, processor, *asked, tmp_path / "new", **sampling) == first


# --- killed -----------------------------------------------------------------------------------

EVALUATE = """
from helpers import pocket, world
from helpers.vlm.kept import kept_answers

def evaluate(model, processor, folder):
    "24 sampled answers, then 24 greedy ones: 6 batches of each."
    scenes = world.sample_scenes(24, "iid")
    pictures = [world.draw(scene) for scene in scenes]
    asked = [world.DESCRIBE, "Is there a fork?"] * 12
    settings = {"batch_size": 4, "seed": 3, "max_new_tokens": 32}
    return [
        kept_answers(model, processor, pictures, asked, folder, temperature=heat, **settings)
        for heat in (1.0, 0.0)
    ]
"""
KILLED = """
import json, os, signal, sys

model, processor = pocket.load()
generate, rows = model.generate, []

def killing(**batch):
    if len(rows) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    rows.append(len(batch["input_ids"]))
    return generate(**batch)

model.generate = killing
print("result", json.dumps([evaluate(model, processor, sys.argv[1]), sum(rows)]))
"""


def run_cell(folder, kill_before):
    return subprocess.run(
        [sys.executable, "-c", EVALUATE + KILLED, str(folder), str(kill_before)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_killed_and_gone_on_with_equals_uninterrupted(tmp_path):
    assert run_cell(tmp_path / "killed", 2).returncode == -signal.SIGKILL
    last = run_cell(tmp_path / "killed", -1)
    assert last.returncode == 0, last.stderr
    said, generated = json.loads(last.stdout.split("result ")[1])
    assert generated == 48 - 2 * 4
    exec(EVALUATE, here := {})
    assert said == here["evaluate"](*pocket.load(), tmp_path / "straight")


def test_a_line_that_was_cut_off_is_done_again(untrained, processor, images, generated, tmp_path):
    whole = kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW)
    file = tmp_path / "kept.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    generated.clear()
    for _ in range(2):
        assert kept_answers(untrained, processor, images, ASKED, tmp_path, **FEW) == whole
    assert generated == [2]  # the last batch, once


def test_a_folder_that_cannot_be_made(untrained, processor, images, generated, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        kept_answers(untrained, processor, images, ASKED, tmp_path / "file", **FEW)
    assert not generated
