"""The losses against what they must be, whatever their code, and against TRL's own."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer

from helpers.dpo.losses import dpo_loss, hinge_loss, ipo_loss, sft_loss
from helpers.vlm.answers import sequence_logps

LOSSES = [dpo_loss, ipo_loss, hinge_loss, sft_loss]


@pytest.fixture
def logps():
    """Policy chosen, policy rejected, reference chosen, reference rejected: (5,) each."""
    return -20 * torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_policy_equal_to_reference_gives_ln_2_and_no_rewards(logps):
    chosen, rejected = logps[:2]
    losses, *rewards = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    assert losses.tolist() == pytest.approx([math.log(2)] * 5)
    assert all(reward.tolist() == [0.0] * 5 for reward in rewards)


def test_four_numbers_by_hand():
    numbers = torch.tensor([-10.0, -14.0, -12.0, -13.0])  # policy, then reference: chosen, rejected
    loss, chosen, rejected = dpo_loss(*numbers.split(1), beta=0.5)
    assert (chosen.item(), rejected.item()) == pytest.approx((1.0, -0.5))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-6)


def test_an_independent_formula_agrees(logps):
    beta = 0.3
    wins = (logps[0] - logps[2]).mul(beta).exp()  # Bradley-Terry strengths of equation 6
    loses = (logps[1] - logps[3]).mul(beta).exp()
    losses, _, _ = dpo_loss(*logps, beta)
    torch.testing.assert_close(losses, -(wins / (wins + loses)).log())


def test_swapping_chosen_and_rejected_flips_the_margin(logps):
    _, chosen, rejected = dpo_loss(*logps, beta=0.1)
    swapped, chosen_after, rejected_after = dpo_loss(*logps[[1, 0, 3, 2]], beta=0.1)
    torch.testing.assert_close(chosen_after - rejected_after, rejected - chosen)
    torch.testing.assert_close(swapped, (1 + (chosen - rejected).exp()).log())


def test_a_step_against_the_gradient_raises_chosen_and_lowers_rejected(logps):
    policy = logps[:2].clone().requires_grad_()
    losses, chosen, _ = dpo_loss(*policy, *logps[2:], beta=0.1)
    losses.sum().backward()
    assert (policy.grad[0] < 0).all() and (policy.grad[1] > 0).all()
    assert not chosen.requires_grad


def test_a_large_margin_neither_overflows_nor_vanishes():
    far = torch.tensor([-1e4])
    losses, _, _ = dpo_loss(far, torch.zeros(1), torch.zeros(1), far, beta=1.0)
    assert losses.item() == pytest.approx(2e4)


def test_hinge_stops_pulling_at_a_margin_of_one():
    zero = torch.zeros(3)
    policy_chosen = torch.tensor([5.0, 10.0, 15.0], requires_grad=True)
    losses, _, _ = hinge_loss(policy_chosen, zero, zero, zero, beta=0.1)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.5, 0.0, 0.0])
    assert policy_chosen.grad[0] < 0 and policy_chosen.grad[2] == 0


def test_ipo_is_least_at_half_over_beta():
    margins = torch.tensor([4.0, 5.0, 6.0])
    losses, _, _ = ipo_loss(margins, *torch.zeros(3, 3), beta=0.1)
    assert losses.tolist() == pytest.approx([1.0, 0.0, 1.0])


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_do_not_touch_each_other(loss, logps):
    together, _, _ = loss(*logps, 0.1)
    alone = torch.cat([loss(*logps[:, i : i + 1], 0.1)[0] for i in range(5)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("loss", LOSSES)
def test_unequal_shapes_and_no_beta_are_refused(loss, logps):
    with pytest.raises(ValueError, match=r"policy_rejected_logps \(5, 1\)"):
        loss(logps[0], logps[1].unsqueeze(1), logps[2], logps[3], 0.1)
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="beta is"):
            loss(*logps, beta)


# --- log-probs of sequences ----------------------------------------------------------------


@pytest.fixture
def batch():
    """Logits (2, 7, 11) and labels: a prompt of 3, then answers of 4 and of 2 with padding."""
    logits = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([[-100] * 3 + [4, 9, 0, 2], [-100] * 3 + [7, 1, -100, -100]])
    return logits, labels


def test_each_token_is_predicted_one_position_earlier(batch):
    logits, labels = batch
    by_hand = torch.zeros(2, dtype=torch.float64)
    for row, token in (labels != -100).nonzero():
        by_hand[row] += logits[row, token - 1].softmax(-1)[labels[row, token]].log()
    torch.testing.assert_close(sequence_logps(logits, labels), by_hand)


def test_a_model_that_knows_the_next_token_scores_zero():
    labels = torch.tensor([[3, 1, 2, 0]])
    certain = torch.full((1, 4, 5), -1e4)
    certain[0, range(3), labels[0, 1:]] = 0.0  # right only for the token that comes next
    assert sequence_logps(certain, labels).item() == pytest.approx(0.0, abs=1e-3)


def test_padding_changes_nothing(batch):
    logits, labels = batch
    more = torch.randn(2, 3, 11, dtype=torch.float64)
    padded = torch.nn.functional.pad(labels, (0, 3), value=-100)
    expected = sequence_logps(logits, labels)
    torch.testing.assert_close(sequence_logps(torch.cat([logits, more], 1), padded), expected)
    left = torch.nn.functional.pad(labels, (3, 0), value=-100)
    torch.testing.assert_close(sequence_logps(torch.cat([more, logits], 1), left), expected)


def test_the_prompt_is_not_scored_and_half_precision_is_raised(batch):
    logits, labels = batch
    changed = logits.clone()
    changed[:, :2] += 5 * torch.randn(2, 2, 11, dtype=torch.float64)
    torch.testing.assert_close(sequence_logps(changed, labels), sequence_logps(logits, labels))
    assert sequence_logps(logits.bfloat16(), labels).dtype == torch.float32


def test_sequence_logps_refuses_what_does_not_fit(batch):
    logits, labels = batch
    with pytest.raises(ValueError, match=r"\(2, 6, 11\) do not fit labels of shape \(2, 7\)"):
        sequence_logps(logits[:, 1:], labels)
    labels[1] = -100
    with pytest.raises(ValueError, match=r"\[1\] have no scored token"):
        sequence_logps(logits, labels)


# --- the same as TRL -----------------------------------------------------------------------


def trl_loss(loss_type, per_token_logps, completion_mask, reference_logps, beta):
    """What TRL's own `_compute_loss` makes of given token log-probs, with a model that is a stub.

    `per_token_logps` (2n, length - 1), `completion_mask` (2n, length), chosen rows first;
    `reference_logps` (2n,).
    """

    def model(**kwargs):
        zeros = torch.zeros_like(per_token_logps)
        return SimpleNamespace(
            log_probs=per_token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    model.training = True
    same = {"gather": lambda x: x, "gather_for_metrics": lambda x: x}
    trainer = SimpleNamespace(
        model=model, accelerator=SimpleNamespace(device="cpu", **same), aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=[loss_type], loss_weights=[1.0], beta=beta, use_weighting=False,
        _total_train_tokens=0, _tp_size=1, _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    chosen, rejected = reference_logps.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, False), trainer._metrics["train"]


@pytest.fixture
def tokens():
    """Token log-probs (6, 9), completion mask (6, 10) and reference log-probs (6,): three pairs."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([3, 6, 2, 5, 4, 1])
    positions = torch.arange(10)
    mask = ((positions >= 3) & (positions < 3 + lengths.unsqueeze(1))).long()
    per_token = -3 * torch.rand(6, 9, generator=generator, dtype=torch.float64) * mask[:, 1:]
    reference = per_token.sum(1) + torch.randn(6, generator=generator, dtype=torch.float64)
    return per_token, mask, reference


@pytest.mark.parametrize("loss, name", [(dpo_loss, "sigmoid"), (hinge_loss, "hinge")])
def test_sums_agree_with_trl(loss, name, tokens):
    per_token, _, reference = tokens
    losses, chosen, rejected = loss(*per_token.sum(1).chunk(2), *reference.chunk(2), 0.3)
    expected, metrics = trl_loss(name, *tokens, beta=0.3)
    torch.testing.assert_close(losses.mean(), expected)
    assert metrics["rewards/chosen"] == pytest.approx([chosen.mean().item()])
    assert metrics["rewards/margins"] == pytest.approx([(chosen - rejected).mean().item()])


def test_ipo_agrees_with_trl_on_means_over_tokens(tokens):
    per_token, mask, reference = tokens
    policy, reference_means = per_token.sum(1) / mask.sum(1), reference / mask.sum(1)
    losses, _, _ = ipo_loss(*policy.chunk(2), *reference_means.chunk(2), 0.3)
    torch.testing.assert_close(losses.mean(), trl_loss("ipo", *tokens, beta=0.3)[0])


def test_sft_agrees_with_trl_over_the_tokens_of_the_batch(tokens):
    per_token, mask, reference = tokens
    losses, _, _ = sft_loss(*per_token.sum(1).chunk(2), *reference.chunk(2), 0.3)
    expected, _ = trl_loss("sft", *tokens, beta=0.3)
    torch.testing.assert_close(losses.sum() / mask.chunk(2)[0].sum(), expected)
