"""What only a GPU can show: the budget beside torch's own peak, and training in a T4's precision.

pytest -m gpu
"""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu_rehearsal import T4, on
from benchmarks.rehearsal import checkpoint, photograph_pairs, rehearse
from helpers.dpo.trainer import dpo_trainer
from helpers.setup.machine import precision, this_machine
from helpers.setup.tracks import TRACKS
from helpers.vlm.load import load_policy

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("machine", [T4, None], ids=["t4", "this GPU"])
def test_a_budget_meets_the_peak_of_a_256m_at_one_tile(machine):
    row = rehearse(on(machine or this_machine(), "256M"))
    assert row["ratio"] == pytest.approx(1, abs=0.15), row
    assert all(map(math.isfinite, row["losses"]))


@pytest.mark.parametrize("quantize", [False, True], ids=["float32", "4 bits"])
def test_training_in_the_precision_of_a_t4_learns(quantize, tmp_path):
    losses = train_on_two_pairs(T4, quantize, tmp_path)
    assert losses[0] == pytest.approx(math.log(2), abs=0.01)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.01


def train_on_two_pairs(machine, quantize, folder, steps=12):
    """Losses of a tiny SmolVLM that sees the same pairs again and again."""
    chosen = precision(machine, quantize)
    track = replace(
        TRACKS["t4"], model=str(checkpoint("256M", folder / "model", tiny=True)),
        dtype=chosen.dtype, autocast=chosen.autocast, device=machine.kind, quantize=quantize,
        accumulate=1, learning_rate=1e-3,
    )  # fmt: skip
    torch.manual_seed(0)
    model, processor = load_policy(track)
    trainer = dpo_trainer(
        model, processor, photograph_pairs(2), track, folder,
        max_steps=steps, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
