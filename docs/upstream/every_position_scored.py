"""Without Triton the fused LM head projects prompt, image and padding positions as well.

Its docstring says that only positions with a label are projected. That holds on devices with
Triton; on the CPU, on MPS and on CUDA without Triton every position is.
"""

import time
from types import SimpleNamespace

import torch
import trl.trainer.utils as utils
from tiny import model, verdict

POSITIONS, ANSWER, WIDTH, VOCABULARY = 401, 40, 64, 49_280  # one row; SmolVLM's vocabulary
torch.manual_seed(0)
policy = model()
policy.lm_head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
hidden = torch.randn(1, POSITIONS, WIDTH, requires_grad=True)
labels = torch.full((1, POSITIONS), -100)
labels[:, -ANSWER:] = torch.randint(VOCABULARY, (1, ANSWER))
projected = []
stock_function, stock_choice = utils._ChunkedLogProbFunction, utils._use_triton


class Noted(stock_function):
    @staticmethod
    def forward(ctx, positions, *args):
        projected.append(len(positions))
        return stock_function.forward(ctx, positions, *args)


def score():
    """(log-probs, seconds of forward and backward pass)"""
    start = time.perf_counter()
    log_probs = policy(labels=labels, fused_lm_head=True).log_probs
    log_probs.sum().backward()
    return log_probs.detach(), time.perf_counter() - start


utils._ChunkedLogProbFunction = Noted
utils.add_fused_lm_head(policy)
policy.model.forward = lambda **inputs: SimpleNamespace(last_hidden_state=hidden)  # any backbone
every, slow = score()
utils._use_triton = lambda device: True  # the kernels have their own: this picks positions only
labelled, fast = score()
utils._ChunkedLogProbFunction, utils._use_triton = stock_function, stock_choice

print(f"every position {slow:.2f} s, labelled ones {fast:.2f} s;", end=" ")
print(f"log-probs equal: {every.equal(labelled)}")
verdict(
    there=projected[0] > ANSWER,
    expected=f"{ANSWER} positions, those with a label, are projected",
    happens=f"{projected[0]} positions are projected",
)
