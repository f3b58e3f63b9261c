"""Batched answers and log-probs: the batch, the padding and the order change nothing."""

import pytest
import torch

from helpers import generate, world
from helpers.messages import turns

QUESTIONS = ["What do you see?", "Is there a fork?", "Is the plate to the left of the cup?"] * 2
TEXTS = [
    "I see a red cup on the left.",
    "Yes",
    "No",
    "I see two blue balls and a green book in the middle. I also see a fork on the left.",
    "No",
    "Yes",
]


def test_greedy_answers_do_not_depend_on_the_batch(untrained, processor, images):
    together = generate.answers(untrained, processor, images, QUESTIONS, max_new_tokens=8)
    alone = generate.answers(
        untrained, processor, images, QUESTIONS, max_new_tokens=8, batch_size=1
    )
    assert together == alone and len(together) == 6


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
    asked = [world.probes(world.sample_scene(0))[0].question] * 6
    first = generate.answers(untrained, processor, images, asked, max_new_tokens=1)
    answers = generate.yes_no_answers(untrained, processor, images, asked)
    assert set(answers) <= {"yes", "no"}
    decided = [(a, f) for a, f in zip(answers, first, strict=True) if f in ("Yes", "No")]
    assert all(a == f.lower() for a, f in decided)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    head = untrained.lm_head
    head.weight = torch.nn.Parameter(head.weight.clone())
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[yes] += 50
    assert generate.yes_no_answers(untrained, processor, images, asked) == ["yes"] * 6


def test_unequal_lengths_are_refused(untrained, processor, images):
    with pytest.raises(ValueError, match="as many questions.*6, 1"):
        generate.answers(untrained, processor, images, ["Is there a fork?"])
