"""Batched answers and log-probs: the batch, the padding and the order change nothing."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pairs.format import turns
from helpers.vlm import answers as generate
from helpers.vlm.load import load
from helpers.world.scenes import probes, sample_scene
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

pytestmark = pytest.mark.filterwarnings("ignore:.*answers were cut")


def test_greedy_answers_do_not_depend_on_the_batch(untrained, processor, images):
    together = generate.answers(untrained, processor, images, QUESTIONS, max_new_tokens=8)
    alone = generate.answers(
        untrained, processor, images, QUESTIONS, max_new_tokens=8, batch_size=1
    )
    assert together == alone and len(together) == 6


def closest_call(model, ask):
    """The smallest lead of a greedy token over the next, as a share of the largest logit."""
    leads, generate_tokens = [], model.generate

    def watched(**batch):
        told = generate_tokens(**batch, output_logits=True, return_dict_in_generate=True)
        for logits in told.logits:
            first, second = logits.topk(2).values.T
            leads.append(((first - second) / logits.abs().amax(1)).min().item())
        return told.sequences

    model.generate = watched
    ask()
    del model.generate
    return min(leads)


def test_no_token_is_decided_by_rounding(untrained, processor, images, ragged):
    """So that answers compared word for word, here and for kept ones, are equal everywhere."""
    model, reader, pictures = ragged
    asked = (untrained, processor, images, QUESTIONS), (model, reader, pictures, ASKED)
    for given, count in zip(asked, (8, 24), strict=True):
        lead = closest_call(
            given[0], lambda g=given, n=count: generate.answers(*g, max_new_tokens=n)
        )
        assert lead > 1e-4  # rounding is below 1e-5


def test_sampling_is_seeded(untrained, processor, images):
    def sample(seed):
        return generate.answers(
            untrained, processor, images, QUESTIONS, temperature=1.0, seed=seed, max_new_tokens=8
        )

    assert sample(1) == sample(1) != sample(2)


def test_logps_are_sums_over_the_answer_tokens(untrained, processor, images):
    """Against an independent computation: one row, no padding, token by token."""
    got = generate.answer_logps(untrained, processor, images, QUESTIONS, TEXTS)
    for row in (0, 3):
        prompt = processor.apply_chat_template(
            turns(QUESTIONS[row]), tokenize=False, add_generation_prompt=True
        )
        whole = f"{prompt} {TEXTS[row]}<end_of_utterance>\n"
        batch = processor(images=[images[row]], text=[whole], return_tensors="pt")
        start = processor(images=[images[row]], text=[prompt])["input_ids"][0]
        logps = untrained(**batch).logits[0].log_softmax(-1)
        ids = batch["input_ids"][0]
        expected = sum(logps[i - 1, ids[i]] for i in range(len(start), len(ids)))
        assert got[row].item() == pytest.approx(expected.item(), abs=1e-4)


def test_logps_do_not_depend_on_the_batch(untrained, processor, images):
    together = generate.answer_logps(untrained, processor, images, QUESTIONS, TEXTS)
    alone = generate.answer_logps(untrained, processor, images, QUESTIONS, TEXTS, batch_size=1)
    assert torch.allclose(together, alone, atol=1e-4)


def test_logps_depend_on_the_picture(untrained, processor, images):
    given = generate.answer_logps(untrained, processor, images, QUESTIONS, TEXTS)
    swapped = generate.answer_logps(untrained, processor, images[::-1], QUESTIONS, TEXTS)
    assert (given - swapped).abs().min() > 1e-6


def test_logps_equal_what_dpo_trainer_scores(untrained, processor, images):
    """TRL's collator and mask, summed by hand: the same tokens and the same sums."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    rows = [
        {
            "images": [image],
            "prompt": turns(question),
            "chosen": turns(question, text)[1:],
            "rejected": turns(question, text)[1:],
        }
        for image, question, text in zip(images, QUESTIONS, TEXTS, strict=True)
    ]
    batch = DataCollatorForVisionPreference(processor)(rows)
    mask = batch.pop("completion_mask")[:, 1:]
    logps = untrained(**batch).logits[:, :-1].log_softmax(-1)
    sums = (logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * mask).sum(1)[:6]
    ours = generate.answer_logps(untrained, processor, images, QUESTIONS, TEXTS)
    assert torch.allclose(ours, sums, atol=1e-4)


def test_yes_no_follows_the_first_token(untrained, processor, images):
    asked = [probes(sample_scene(0))[0].question] * 6
    first = generate.answers(untrained, processor, images, asked, max_new_tokens=1)
    answers = generate.yes_no_answers(untrained, processor, images, asked)
    assert set(answers) <= {"yes", "no"}
    decided = [(a, f) for a, f in zip(answers, first, strict=True) if f in ("Yes", "No")]
    assert all(a == f.lower() for a, f in decided)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    head = untrained.lm_head
    head.weight = torch.nn.Parameter(head.weight.clone())
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    before = generate.yes_no_log_odds(untrained, processor, images, asked)
    assert [("no", "yes")[value > 0] for value in before] == answers
    head.bias.data[yes] += 50
    assert generate.yes_no_answers(untrained, processor, images, asked) == ["yes"] * 6
    after = generate.yes_no_log_odds(untrained, processor, images, asked)
    assert torch.allclose(after, before + 50, atol=1e-4)


def test_the_bar_is_over_all_calls(untrained, processor, images):
    class Bar:
        n = 0

        def update(self, count):
            self.n += count

    bar = Bar()
    generate.answers(untrained, processor, images, QUESTIONS, max_new_tokens=1, bar=bar)
    generate.answer_logps(untrained, processor, images, QUESTIONS, TEXTS, batch_size=4, bar=bar)
    generate.yes_no_answers(untrained, processor, images, QUESTIONS, bar=bar)
    assert bar.n == 18


def test_an_answer_knows_whether_it_was_cut(untrained, processor, images):
    """The end token first, or never; as the last of the tokens allowed it is not cut."""
    say(untrained, processor, "I see a fork")
    with pytest.warns(UserWarning, match="^6 of 6 answers were cut at 4 tokens: raise max_new_to"):
        cut = generate.answers(untrained, processor, images, QUESTIONS, max_new_tokens=4)
    assert cut == ["I see a fork"] * 6 and all(text.cut for text in cut)
    whole = generate.answers(untrained, processor, images, QUESTIONS, max_new_tokens=5)
    assert whole == cut and not any(text.cut for text in whole)


def say(model, processor, text):
    """Make the model give this answer to whatever it is asked."""
    ids = [*processor.tokenizer(text)["input_ids"], processor.tokenizer.eos_token_id]
    after = dict(zip([processor.tokenizer(":")["input_ids"][0], *ids], ids, strict=False))

    def scripted(model, args, kwargs, out):
        for row, last in enumerate(kwargs["input_ids"][:, -1].tolist()):
            out.logits[row, -1, after.get(last, ids[-1])] = 1e4

    model.register_forward_hook(scripted, with_kwargs=True)


def test_no_warning_when_nothing_is_cut(untrained, processor, images, recwarn):
    say(untrained, processor, "Yes")
    assert generate.answers(untrained, processor, images, QUESTIONS) == ["Yes"] * 6
    assert not [w for w in recwarn if "cut" in str(w.message)]


def test_an_answer_is_a_string():
    cut = generate.Answer("a fork", cut=True)
    assert cut == "a fork" and json.dumps(cut) == '"a fork"' and {cut: 1}["a fork"] == 1
    assert pickle.loads(pickle.dumps(cut)).cut and not generate.Answer("a fork").cut


# --- pictures of several tiles, prompts of several lengths: SmolVLM's classes, 64-pixel tiles ---

SIZES = ((160, 120), (300, 50), (128, 128), (50, 400), (64, 64), (90, 150), (256, 64), (40, 41))
ASKED = (
    "What is it?",
    "Is there a dog beside the window in this picture, or is there none at all?",
    "Where?",
    "How many people are there?",
) * 2
GIVEN = (
    "Yes",
    "There is a dog, and the man in the red shirt is holding an umbrella.",
    "No",
    "A tree.",
) * 2


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
    return model, processor, pictures


def test_tiles_and_prompts_are_ragged(ragged):
    _, processor, pictures = ragged
    batch = processor(images=[[p] for p in pictures], text=["<image>"] * 8)
    tiles = [ids.count(processor.image_token_id) // 4 for ids in batch["input_ids"]]
    assert set(tiles) == {5, 13, 17}


def test_ragged_answers_are_those_of_one_at_a_time(ragged, monkeypatch):
    """Token for token: the untrained model's tokens are rarely text."""
    model, processor, pictures = ragged
    tokenizer = processor.tokenizer
    monkeypatch.setattr(
        type(processor),
        "batch_decode",
        lambda self, ids, **_: [
            " ".join(tokenizer.convert_ids_to_tokens(row[row != tokenizer.pad_token_id]))
            for row in ids
        ],
    )

    def speak(size, images=pictures):
        return generate.answers(model, processor, images, ASKED, max_new_tokens=24, batch_size=size)

    alone = speak(1)
    assert speak(8) == speak(3) == alone
    assert len(alone[0].split()) > 5
    other = speak(8, pictures[::-1])
    assert sum(a != b for a, b in zip(alone, other, strict=True)) > 4  # it does look


def test_ragged_logps_are_those_of_one_at_a_time(ragged):
    model, processor, pictures = ragged

    def score(size, images=pictures):
        return generate.answer_logps(model, processor, images, ASKED, GIVEN, batch_size=size)

    alone = score(1)
    assert torch.allclose(score(8), alone, atol=1e-3, rtol=0)
    assert torch.allclose(score(3), alone, atol=1e-3, rtol=0)
    assert (score(8, pictures[::-1]) - alone).abs().min() > 1e-2


def test_yes_and_no_in_several_tokens(ragged):
    """This tokenizer spells " Yes" and " No": the space that both begin with tells nothing."""
    model, processor, pictures = ragged
    tokenizer = processor.tokenizer
    yes, no = (tokenizer(f" {word}")["input_ids"] for word in ("Yes", "No"))
    assert yes[0] == no[0] and yes[1] != no[1]
    odds = generate.yes_no_log_odds(model, processor, pictures, ASKED)
    alone = generate.yes_no_log_odds(model, processor, pictures, ASKED, batch_size=1)
    assert torch.allclose(odds, alone, atol=1e-3)
    for row in (0, 3):
        prompt = processor.apply_chat_template(
            turns(ASKED[row]), tokenize=False, add_generation_prompt=True
        )
        batch = processor(images=[pictures[row]], text=[f"{prompt} Yes"], return_tensors="pt")
        logits = model(**batch).logits[0, -len(yes)]  # what the token after the space is told by
        assert odds[row].item() == pytest.approx((logits[yes[1]] - logits[no[1]]).item(), abs=1e-3)


def test_yes_and_no_that_are_the_same_tokens(untrained, processor, images, monkeypatch):
    monkeypatch.setattr(generate, "_completion", lambda *texts: [5, 3])
    with pytest.raises(ValueError, match="the same tokens for Yes and for No"):
        generate.yes_no_answers(untrained, processor, images, QUESTIONS)


def test_unequal_lengths_are_refused(untrained, processor, images):
    with pytest.raises(ValueError, match="as many questions.*6, 1"):
        generate.answers(untrained, processor, images, ["Is there a fork?"])
