"""Answers and log-probs: the batch changes nothing, and what a folder gives is never stale."""

import json
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from tqdm import tqdm
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from helpers.pairs.format import turns
from helpers.setup.storage import StorageError
from helpers.vlm import answers as module
from helpers.vlm import pocket
from helpers.vlm.answers import (
    Job,
    all_results,
    answer_logps,
    answers,
    in_batches,
    longest_first,
    yes_no_answers,
    yes_no_log_odds,
)  # fmt: skip
from helpers.vlm.load import limit_edge, load, lora_config, model_digest
from helpers.world.scenes import draw, sample_scenes
from tests.standin import smolvlm

QUESTIONS = ["What do you see?", "Is there a fork?", "Is the plate to the left of the cup?"] * 2
TEXTS = [
    "I see a red cup on the left.",
    "Yes",
    "No",
    "I see two blue balls and a green book in the middle. I also see a fork on the left.",
    "No",
    "Yes",
]
FEW = {"max_new_tokens": 4, "batch_size": 2}
# Pictures of several tiles, prompts of several lengths: SmolVLM's classes, 64-pixel tiles.
SIZES = ((160, 120), (300, 50), (128, 128), (50, 400), (64, 64), (90, 150), (256, 64), (40, 41))
ASKED = (
    "What is it?",
    "Is there a dog beside the window in this picture, or is there none at all?",
    "Where?",
    "How many people are there?",
) * 2
GIVEN = ("Yes", "There is a dog, and the man is holding an umbrella.", "No", "A tree.") * 2

pytestmark = pytest.mark.filterwarnings("ignore:.*answers were cut")


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """(model, processor, pictures); weights above those of a new one, so that pictures count."""
    model, processor = load(smolvlm(tmp_path_factory.mktemp("smolvlm")))
    for weight in model.parameters():
        weight.data *= 3 if weight.ndim > 1 else 1
    pixels = np.random.default_rng(0)
    pictures = [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in SIZES
    ]
    batch = processor(images=[[p] for p in pictures], text=["<image>"] * 8)
    assert {ids.count(processor.image_token_id) // 4 for ids in batch["input_ids"]} == {5, 13, 17}
    return model, processor, pictures


# --- answers -------------------------------------------------------------------------------------


def test_ragged_answers_are_those_of_one_at_a_time(ragged, monkeypatch):
    """Token for token, as the untrained model's tokens are rarely text; none is a close call."""
    model, processor, pictures = ragged
    leads, generate, tokenizer = [], model.generate, processor.tokenizer

    def watched(**batch):
        told = generate(**batch, output_logits=True, return_dict_in_generate=True)
        for logits in told.logits:
            first, second = logits.topk(2).values.T
            leads.append(((first - second) / logits.abs().amax(1)).min().item())
        return told.sequences

    def decode(self, ids, **_):
        rows = (row[row != tokenizer.pad_token_id] for row in ids)
        return [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in rows]

    monkeypatch.setattr(model, "generate", watched)
    monkeypatch.setattr(type(processor), "batch_decode", decode)

    def speak(size, images=pictures):
        return answers(model, processor, images, ASKED, max_new_tokens=24, batch_size=size)

    alone = speak(1)
    assert speak(8) == speak(3) == alone and len(alone[0].split()) > 5
    assert min(leads) > 1e-4  # rounding is below 1e-5: equal everywhere
    other = speak(8, pictures[::-1])
    assert sum(a != b for a, b in zip(alone, other, strict=True)) > 4  # it does look


def test_an_answer_knows_whether_it_was_cut(untrained, processor, images, recwarn):
    """The end token as the last of the tokens allowed: it is not cut."""
    ids = [*processor.tokenizer("I see a fork")["input_ids"], processor.tokenizer.eos_token_id]
    after = dict(zip([processor.tokenizer(":")["input_ids"][0], *ids], ids, strict=False))

    def scripted(model, args, kwargs, out):
        for row, last in enumerate(kwargs["input_ids"][:, -1].tolist()):
            out.logits[row, -1, after.get(last, ids[-1])] = 1e4

    untrained.register_forward_hook(scripted, with_kwargs=True)
    whole = answers(untrained, processor, images, QUESTIONS, max_new_tokens=5)
    assert not any(text.cut for text in whole)
    assert not [w for w in recwarn if "cut" in str(w.message)]
    with pytest.warns(UserWarning, match="^6 of 6 answers were cut at 4 tokens: raise max_new_to"):
        cut = answers(untrained, processor, images, QUESTIONS, max_new_tokens=4)
    assert cut == whole == ["I see a fork"] * 6 and all(text.cut for text in cut)
    assert json.dumps(cut[0]) == '"I see a fork"' and pickle.loads(pickle.dumps(cut[0])).cut


def test_unequal_lengths_are_refused(untrained, processor, images):
    with pytest.raises(ValueError, match="as many questions.*6, 1"):
        answers(untrained, processor, images, ["Is there a fork?"])


# --- log-probs, Yes and No -----------------------------------------------------------------------


def test_logps_equal_what_dpo_trainer_scores(untrained, processor, images):
    """TRL's collator and mask, summed by hand: the same tokens and the same sums."""
    rows = []
    for image, question, text in zip(images, QUESTIONS, TEXTS, strict=True):
        answer = {"chosen": turns(question, text)[1:], "rejected": turns(question, text)[1:]}
        rows.append({"images": [image], "prompt": turns(question), **answer})
    batch = DataCollatorForVisionPreference(processor)(rows)
    mask = batch.pop("completion_mask")[:, 1:]
    logps = untrained(**batch).logits[:, :-1].log_softmax(-1)
    sums = (logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * mask).sum(1)[:6]
    ours = answer_logps(untrained, processor, images, QUESTIONS, TEXTS)
    assert torch.allclose(ours, sums, atol=1e-4)


def test_ragged_logps_are_those_of_one_at_a_time(ragged):
    model, processor, pictures = ragged

    def score(size, images=pictures):
        return answer_logps(model, processor, images, ASKED, GIVEN, batch_size=size)

    alone = score(1)
    assert torch.allclose(score(8), alone, atol=1e-3, rtol=0)
    assert torch.allclose(score(3), alone, atol=1e-3, rtol=0)
    assert (score(8, pictures[::-1]) - alone).abs().min() > 1e-2  # they depend on the picture


def test_yes_no_follows_the_first_token(untrained, processor, images):
    asked = ["Is there a fork?"] * 6
    yes, no = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    head = untrained.lm_head
    head.weight = torch.nn.Parameter(head.weight.clone())
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[[yes, no]] += 50
    said = yes_no_answers(untrained, processor, images, asked)
    first = answers(untrained, processor, images, asked, max_new_tokens=1)
    assert said == [text.lower() for text in first]
    before = yes_no_log_odds(untrained, processor, images, asked)
    head.bias.data[yes] += 50
    after = yes_no_log_odds(untrained, processor, images, asked)
    assert torch.allclose(after, before + 50, atol=1e-4)
    assert yes_no_answers(untrained, processor, images, asked) == ["yes"] * 6


def test_yes_and_no_in_several_tokens(ragged, monkeypatch):
    """This tokenizer spells " Yes" and " No": the space that both begin with tells nothing."""
    model, processor, pictures = ragged
    yes, no = (processor.tokenizer(f" {word}")["input_ids"] for word in ("Yes", "No"))
    assert yes[0] == no[0] and yes[1] != no[1]
    odds = yes_no_log_odds(model, processor, pictures, ASKED)
    for row in (0, 3):
        prompt = processor.apply_chat_template(
            turns(ASKED[row]), tokenize=False, add_generation_prompt=True
        )
        batch = processor(images=[pictures[row]], text=[f"{prompt} Yes"], return_tensors="pt")
        logits = model(**batch).logits[0, -len(yes)]  # what the token after the space is told by
        assert odds[row].item() == pytest.approx((logits[yes[1]] - logits[no[1]]).item(), abs=1e-3)
    monkeypatch.setattr(module, "_completion", lambda *texts: [5, 3])
    with pytest.raises(ValueError, match="the same tokens for Yes and for No"):
        yes_no_answers(model, processor, pictures, ASKED)


# --- batches -------------------------------------------------------------------------------------


def doubling(order, most=10**9):
    """A job that doubles its rows' numbers, with memory for `most` rows at once."""
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [2 * row for row in rows]

    return Job("doubling", ["?"] * len(order), order, run), tried


def test_results_are_in_the_order_of_the_rows():
    job, _ = doubling([3, 0, 4, 1, 2])
    assert [rows for rows, _ in in_batches(job, 2)] == [[3, 0], [4, 1], [2]]
    assert all_results(job, 2) == [0, 2, 4, 6, 8]
    assert all_results(doubling([])[0], 2) == []
    with pytest.raises(ZeroDivisionError):  # any other error than too little memory
        all_results(Job("failing", ["?"] * 4, [0, 1, 2, 3], lambda rows: 1 / 0), 4)


def test_out_of_memory_halves_the_batch_and_goes_on(capsys):
    job, tried = doubling(list(range(20)), most=3)
    assert all_results(job, 16) == [2 * row for row in range(20)]
    assert tried[:4] == [16, 8, 4, 2]
    assert set(tried[4:]) == {2}  # what did not fit is not tried again
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "out of memory with 16 pictures at once: 8 from here" and len(said) == 3
    job, tried = doubling(list(range(4)), most=0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="one picture at a time: lower .*edge"):
        all_results(job, 4)
    assert tried == [4, 2, 1]


def test_more_tiles_go_first_then_more_words(processor, images, monkeypatch):
    short, long = "Is there a fork?", "Is there one red fork to the left of the two cups?"
    order = longest_first(processor, images[:5], [short, long, short, long, short])
    assert order == [1, 3, 0, 2, 4]
    sizes = [image.resize((width, 48)) for image, width in zip(images, (10, 30, 20), strict=False)]
    monkeypatch.setattr(
        type(processor.image_processor),
        "get_number_of_image_patches",
        lambda self, height, width, options: (width, 1, width),
    )
    assert longest_first(processor, sizes, ["a red fork", "a", "a fork"]) == [1, 2, 0]


# --- in a folder ---------------------------------------------------------------------------------


@pytest.fixture
def generated(monkeypatch):
    """The number of rows of each batch that a pocket model generates."""
    rows, original = [], pocket.Idefics3ForConditionalGeneration.generate

    def counting(self, **batch):
        rows.append(len(batch["input_ids"]))
        return original(self, **batch)

    monkeypatch.setattr(pocket.Idefics3ForConditionalGeneration, "generate", counting)
    return rows


def test_answers_are_found_again_and_only_what_is_missing_is_generated(
    untrained, processor, images, generated, tmp_path, capsys
):
    fresh = answers(untrained, processor, images, QUESTIONS, **FEW)
    answers(untrained, processor, images[2:5], QUESTIONS[2:5], folder=tmp_path, **FEW)
    assert capsys.readouterr().out == ""
    generated.clear()
    for _ in range(2):
        bar = tqdm(total=6)
        texts = answers(untrained, processor, images, QUESTIONS, folder=tmp_path, bar=bar, **FEW)
        assert generated == [2, 1] and bar.n == 6
        assert texts == fresh and [t.cut for t in texts] == [t.cut for t in fresh]
    assert f"6 of 6 results are in {tmp_path / 'results.jsonl'}" in capsys.readouterr().out
    changes = {**FEW, "seed": 7, "batch_size": 4}  # neither matters to a greedy answer
    assert answers(untrained, processor, images, QUESTIONS, folder=tmp_path, **changes) == fresh
    assert generated == [2, 1] and any(text.cut for text in fresh)


def test_log_probs_and_odds_come_back_to_the_last_digit(images, untrained, tmp_path, monkeypatch):
    processor = pocket.build_processor()
    rows = untrained, processor, images, QUESTIONS
    ways = {"logps": lambda **k: answer_logps(*rows, TEXTS, **k)}
    ways["odds"] = lambda **k: yes_no_log_odds(*rows, **k)
    fresh = {name: way() for name, way in ways.items()}
    first = {name: way(folder=tmp_path) for name, way in ways.items()}
    monkeypatch.setattr(untrained, "forward", None)  # whatever is not in the folder fails
    for name, way in ways.items():
        assert torch.equal(way(folder=tmp_path), first[name])
        torch.testing.assert_close(first[name], fresh[name], rtol=0, atol=1e-4)
    with pytest.raises(TypeError):
        answer_logps(*rows, TEXTS[::-1], folder=tmp_path)
    template = processor.chat_template  # answers that end otherwise are other answers
    processor.chat_template = template.replace("utterance>\n{% endfor %}", "utterance>{% endfor %}")
    assert processor.chat_template != template
    with pytest.raises(TypeError):
        answer_logps(*rows, TEXTS, folder=tmp_path)


def first(model, kind):
    return next(weight for name, weight in model.named_parameters() if kind in name).data


def inverted(pictures):
    """A palette picture is its colours: the indices stay as they are."""
    for picture in pictures:
        picture.putpalette(bytes(255 - value for value in picture.getpalette()))


CHANGES = {  # of a model m, a processor p and pictures
    "weight": lambda m, p, pictures: first(m, "embed_tokens")[-1, -1:].add_(1e-4),
    "adapter weight": lambda m, p, pictures: first(m, "lora_B")[-1, -1:].add_(1e-4),
    "adapter off": lambda m, p, pictures: m.base_model.disable_adapter_layers(),
    "adapter stronger": lambda m, p, pictures: [
        layer.scaling.update(default=9.0) for layer in m.modules() if hasattr(layer, "lora_A")
    ],
    "hook": lambda m, p, pictures: m.base_model.model.model.connector.register_forward_hook(
        lambda module, given, out: out * 0
    ),
    "penalty": lambda m, p, pictures: setattr(m.generation_config, "repetition_penalty", 1.5),
    "picture size": lambda m, p, pictures: limit_edge(p, 24),
    "template": lambda m, p, pictures: setattr(
        p, "chat_template", p.chat_template.replace("Assistant:", "Assistant :")
    ),
    "pixel": lambda m, p, pictures: [picture.putpixel((95, 95), 3) for picture in pictures],
    "palette": lambda m, p, pictures: inverted(pictures),
}


@pytest.mark.parametrize("change", [*CHANGES, {"max_new_tokens": 5}, {"temperature": 0.5}], ids=str)
def test_whatever_changes_is_asked_anew(change, adapted, images, generated, tmp_path):
    processor, pictures = pocket.build_processor(), [image.convert("P") for image in images]
    settings = FEW if isinstance(change, str) else {**FEW, **change}
    rows = adapted, processor, pictures, QUESTIONS
    answers(*rows, folder=tmp_path, **FEW)
    generated.clear()
    if isinstance(change, str):
        CHANGES[change](adapted, processor, pictures)
    now = answers(*rows, folder=tmp_path, **settings)
    assert sum(generated) == 6
    assert "temperature" in settings or now == answers(*rows, **settings)


@pytest.fixture
def adapted(untrained):
    """An untrained model with an adapter that does something."""
    model = get_peft_model(untrained, lora_config(untrained, 4)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def test_an_adapter_that_is_loaded_again_is_the_same_model(adapted, processor, tmp_path):
    """As after a disconnect: what was trained, and what is read from its folder."""
    digest = model_digest(adapted)
    adapted.config.use_cache = False  # as gradient checkpointing leaves it
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(pocket.build_model(processor, seed=0).eval(), tmp_path)
    assert model_digest(again) == model_digest(adapted) == digest
    other = PeftModel.from_pretrained(pocket.build_model(processor, seed=1).eval(), tmp_path)
    assert model_digest(other) != digest


def test_what_is_asked_twice_is_answered_once_and_sampled_twice(
    untrained, processor, images, generated, tmp_path
):
    rows = untrained, processor, [images[0]] * 4, ["What do you see?"] * 4
    texts = answers(*rows, folder=tmp_path, **FEW)
    assert generated == [1] and len(set(texts)) == 1 and len(texts) == 4
    generated.clear()
    hot = {**FEW, "temperature": 1.0}
    first = answers(*rows, folder=tmp_path, **hot)
    assert answers(*rows, folder=tmp_path, **hot) == first
    assert len(set(first)) > 1 and generated == [2, 2]
    assert answers(*rows, folder=tmp_path / "new", **hot) == first
    assert answers(*rows, folder=tmp_path, **hot, seed=1) != first
    assert answers(*rows, **hot) == answers(*rows, **hot) != answers(*rows, **hot, seed=1)


def evaluate(model, processor, folder):
    """24 sampled answers, then 24 greedy ones: 6 batches of each."""
    pictures = [draw(scene) for scene in sample_scenes(24, "iid")]
    rows = model, processor, pictures, ["What do you see?", "Is there a fork?"] * 12
    settings = {"folder": folder, "batch_size": 4, "seed": 3, "max_new_tokens": 32}
    return [answers(*rows, temperature=heat, **settings) for heat in (1.0, 0.0)]


def killed_before_the_third_batch(folder):
    torch.set_num_threads(1)  # a forked process has no pool of threads
    model, processor = pocket.load()
    generate, calls = model.generate, []

    def killing(**batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(**batch)

    model.generate = killing
    evaluate(model, processor, folder)


def test_killed_and_gone_on_with_equals_uninterrupted(generated, tmp_path):
    """Also where a line was cut off in the middle: its batch is done again."""
    run = {"target": killed_before_the_third_batch, "args": (tmp_path / "killed",)}
    process = multiprocessing.get_context("fork").Process(**run, daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    model, processor = pocket.load()
    straight = evaluate(model, processor, tmp_path / "straight")
    file = tmp_path / "killed" / "results.jsonl"
    generated.clear()
    assert evaluate(model, processor, tmp_path / "killed") == straight
    assert sum(generated) == 48 - 2 * 4
    file.write_bytes(file.read_bytes()[:-9])
    assert evaluate(model, processor, tmp_path / "killed") == straight
    assert sum(generated) == 48 - 2 * 4 + 4


def test_a_folder_that_cannot_be_made(untrained, processor, images, generated, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        answers(untrained, processor, images, QUESTIONS, folder=tmp_path / "file", **FEW)
    assert not generated
