"""Preference losses as free functions of log-probs; nothing of a trainer in them.

Each loss takes the log-probs of the chosen and the rejected answers under the policy and under
the reference, all of shape (n,), and returns three numbers a pair:

    # each of the four is sequence_logps(model(**batch).logits, labels), of helpers.vlm.answers
    losses, chosen_rewards, rejected_rewards = dpo_loss(
        policy_chosen_logps, policy_rejected_logps,
        reference_chosen_logps, reference_rejected_logps, beta=0.1,
    )
    losses.mean().backward()

The losses are not reduced, so a lesson can look at single pairs; the rewards carry no gradient,
they are for looking. The margin of a pair is its chosen reward minus its rejected reward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PerPair = tuple[Tensor, Tensor, Tensor]  # losses, chosen rewards, rejected rewards: each (n,)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> PerPair:
    """Direct Preference Optimization, equation 7 of arXiv 2305.18290 (TRL: "sigmoid").

    Four tensors of log-probs, summed over the answer's tokens, of shape (n,), and beta > 0: the
    higher, the closer the policy stays to the reference. Returns losses, chosen rewards and
    rejected rewards, each (n,). Raises ValueError when shapes differ or beta is not above 0.
    """
    chosen, rejected = _log_ratios(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
    )
    # logsigmoid and not log(sigmoid): that is -inf where the margin is far below 0.
    losses = -F.logsigmoid(beta * (chosen - rejected))  # equation 7, (n,)
    return losses, beta * chosen.detach(), beta * rejected.detach()


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> PerPair:
    """Identity Preference Optimization, equation 17 of arXiv 2310.12036, where beta is tau.

    As `dpo_loss`, with one trap: the target 1 / (2 beta) is the same for short and long answers,
    so TRL (and its authors' runs) take the *mean* log-prob of an answer's tokens. To get TRL's
    "ipo", divide each log-prob by its answer's number of tokens first. The rewards are then per
    token, while TRL logs those of the sums.
    """
    chosen, rejected = _log_ratios(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
    )
    # A square: a margin beyond the target is pulled back, where DPO would let it grow.
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2  # equation 17, (n,)
    return losses, beta * chosen.detach(), beta * rejected.detach()


def hinge_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> PerPair:
    """The hinge of SLiC-HF (arXiv 2305.10425) on DPO's margin, as in arXiv 2309.06657.

    As `dpo_loss`, but a pair whose margin has reached 1 stops pulling: its gradient is zero.
    """
    chosen, rejected = _log_ratios(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
    )
    losses = torch.relu(1 - beta * (chosen - rejected))  # (n,)
    return losses, beta * chosen.detach(), beta * rejected.detach()


def sft_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> PerPair:
    """Supervised training on the chosen answers, in the same form: the control.

    As `dpo_loss`; the rejected answers, the reference and beta only enter the rewards. TRL's "sft"
    is the mean over all tokens of a batch: the sum of these losses over the number of tokens.
    """
    chosen, rejected = _log_ratios(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
    )
    # Minus the log-prob is cross entropy, summed over the answer's tokens.
    return -policy_chosen_logps, beta * chosen.detach(), beta * rejected.detach()


def _log_ratios(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """log(policy / reference) of chosen and rejected, in nats, (n,) each."""
    # Unequal shapes would broadcast: (n,) with (n, 1) gives n x n losses, and a mean of nonsense.
    shapes = {
        "policy_chosen_logps": policy_chosen_logps.shape,
        "policy_rejected_logps": policy_rejected_logps.shape,
        "reference_chosen_logps": reference_chosen_logps.shape,
        "reference_rejected_logps": reference_rejected_logps.shape,
    }
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"the four log-probs must have one shape, one number a pair: {found}.")
    if not beta > 0:  # also for NaN
        raise ValueError(f"beta is {beta}: it must be above 0 (0.1 is usual).")
    chosen = policy_chosen_logps - reference_chosen_logps
    return chosen, policy_rejected_logps - reference_rejected_logps
