"""Packed pairs: the layout and the mask against a slow check, and training equal to rounding."""

import pytest
import torch
from peft import PromptTuningConfig
from transformers import LlamaConfig, LlamaModel
from trl import DPOTrainer

from helpers.dpo.shared_images import SharedImageDPOTrainer, backbone
from helpers.dpo.shared_prompt import packing, shared_prompts, why_not_packed
from tests.vlms import assert_same, build, follow, pairs, trainer

PACKED = {"share_prompt": True}


def rows_of(lengths, extra=0):
    """(ids, mask, prompt lengths) of pairs (prompt, chosen, rejected tokens); a token is unique."""
    widest = extra + max(p + max(c, r) for p, c, r in lengths)
    ids = torch.zeros(2 * len(lengths), widest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    fresh = iter(range(1, 1000))
    for pair, (p, c, r) in enumerate(lengths):
        prompt = [next(fresh) for _ in range(p)]
        for row, answer in ((pair, c), (pair + len(lengths), r)):
            tokens = prompt + [next(fresh) for _ in range(answer)]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    return ids, mask, torch.tensor([p for p, _, _ in lengths])


LENGTHS = {
    "ragged": [(5, 3, 1), (2, 1, 4), (7, 2, 2)],
    "one pair": [(4, 2, 3)],
    "cut to nothing": [(4, 0, 2), (3, 0, 0)],
    "one prompt token": [(1, 5, 1), (1, 1, 5)],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("extra", [0, 2])
def test_the_layout_agrees_with_a_slow_check(lengths, extra):
    ids, mask, prompts = rows_of(lengths, extra)
    plan = packing(mask, prompts)
    count = len(lengths)
    packed = torch.cat([ids[:count], ids[count:]], 1).gather(1, plan.into)
    for pair, (p, c, r) in enumerate(lengths):
        chosen, rejected = ids[pair, : p + c].tolist(), ids[pair + count, : p + r].tolist()
        row = packed[pair].tolist()
        total = p + c + r
        assert row[:total] == chosen + rejected[p:]
        assert plan.position[pair, :total].tolist() == [*range(p + c), *range(p, p + r)]
        for query in range(total):
            own = chosen if query < p + c else rejected
            before = own[: own.index(row[query]) + 1]  # in its own row: itself and what precedes
            attended = [row[key] for key in range(total) if plan.mask[pair, 0, query, key]]
            assert attended == before
        for unpacked, where in ((chosen, pair), (rejected, pair + count)):
            back = [row[place] for place in plan.out_of[where, : len(unpacked)].tolist()]
            assert back == unpacked
    assert plan.out_of.shape == ids.shape
    assert plan.mask.any(-1).all()  # a query that attends to nothing would be NaN


def test_the_padding_of_a_packed_row_is_no_picture():
    """It repeats the pair's first answer token; a repeated picture token would want features."""
    ids, mask, prompts = rows_of([(3, 1, 1), (3, 4, 4)])
    plan = packing(mask, prompts)
    row = torch.cat([ids[:2], ids[2:]], 1).gather(1, plan.into)[0]
    assert set(row[5:].tolist()) == {ids[0, 3].item()}


@pytest.fixture
def text_model():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaModel(config).eval()


def test_hidden_states_are_those_of_the_rows(text_model):
    ids, mask, prompts = rows_of([(5, 3, 1), (2, 1, 4), (7, 2, 2)], extra=1)
    with torch.no_grad():
        expected = text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        with shared_prompts(text_model):
            found = text_model(input_ids=ids, attention_mask=mask, prompt_tokens=prompts)
            plain = text_model(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(found.last_hidden_state[real], expected[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(plain, expected)  # without prompt_tokens: the model's own forward
    assert "forward" not in vars(text_model)


# --- in the trainer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("idefics3", {"activation_checkpointing": True}),
        ("smolvlm", {}),
        ("llava", {"data": pairs((0,)), "per_device_train_batch_size": 1}),
        (
            "llava",
            {"max_length": 50, "data": pairs((0, 1, 3, 4)), "activation_checkpointing": True},
        ),
        ("pocket", {"precompute_ref_log_probs": True}),
    ],
    ids=["idefics3", "smolvlm", "one pair", "cut answers", "pocket, cached reference"],
)
def test_training_is_the_same_to_rounding(kind, settings):
    settings = {"max_steps": 2, **settings}
    ours = follow(trainer(SharedImageDPOTrainer, kind, sharing=PACKED, **settings))
    assert ours.trainer.share_prompt
    stock = {name: value for name, value in settings.items() if "precompute" not in name}
    assert_same(follow(trainer(DPOTrainer, kind, **stock)), ours)


def test_predictions_come_out_too():
    ours = trainer(SharedImageDPOTrainer, sharing=PACKED).predict(pairs())
    stock = trainer(DPOTrainer).predict(pairs())
    assert ours.metrics["test_loss"] == pytest.approx(stock.metrics["test_loss"], abs=1e-5)


def test_a_prompt_is_read_once_a_pair():
    made = trainer(SharedImageDPOTrainer, sharing=PACKED)
    read = []
    backbone(made.model).get_decoder().register_forward_hook(
        lambda module, given, named, output: read.append(named["inputs_embeds"].shape),
        with_kwargs=True,
    )
    batch = made.data_collator([dict(row) for row in pairs((0, 1))])
    made.compute_loss(made.model, batch)
    prompt = batch["attention_mask"] - batch["completion_mask"]
    longest = (batch["attention_mask"].sum(1).view(2, 2).sum(0) - prompt[:2].sum(1)).max()
    assert [tuple(shape[:2]) for shape in read] == [(2, longest)] * 2


def attend_eagerly(model):
    model.set_attn_implementation("eager")


def prompt_tuning(model):
    return PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3)


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("qwen", {}, "qwen2_5_vl is not among idefics3, smolvlm, llava"),
        ("llava", {"prepare": attend_eagerly}, "eager attention takes no such mask"),
        ("llava", {"adapter": prompt_tuning}, "the adapter puts tokens of its own in front"),
        ("llava", COMPILED, "a compiled model takes no packed rows"),
    ],
)
def test_what_cannot_be_packed_is_said_and_read_apart(kind, settings, reason, caplog):
    settings = {"max_steps": 1, **settings}
    ours = trainer(SharedImageDPOTrainer, kind, sharing=PACKED, **settings)
    assert not ours.share_prompt
    assert f"read apart: {reason}" in caplog.text
    if not ours.args.torch_compile:  # which takes a minute, and is the stock trainer's own
        assert_same(follow(trainer(DPOTrainer, kind, **settings)), follow(ours))


def test_a_model_with_a_sliding_window_is_refused():
    model, _ = build("llava")
    model.config.get_text_config().sliding_window = 8
    assert "sliding window" in why_not_packed(backbone(model))
