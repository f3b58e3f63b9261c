"""Where the time of a training step goes, measured on the trainers themselves.

times = step_times({"TRL": stock, "ours": shared}, pairs.select(range(32)))
plots.step_times(times)
"""

import copy
import functools
import time
from collections import defaultdict
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch

from helpers.dpo.image_path import backbone

PARTS = ("prepare", "vision tower", "language model", "head and loss", "backward")


def step_times(trainers, pairs, repeats=5):
    """Seconds that one step over `pairs` spends in each of PARTS: {name: {part: seconds}}.

    `trainers`: {name: trainer}. prepare: texts and pictures to tensors; vision tower: with its
    connector; backward: all of it, so with checkpointing also what is computed again. Medians over
    `repeats`, in which the trainers take turns, after one that is not counted: what else the
    machine does falls on all alike. Gradients are thrown away and no weight changes.
    """
    rounds = [
        {name: _one_step(trainer, pairs) for name, trainer in trainers.items()}
        for _ in range(repeats + 1)
    ][1:]
    return {
        name: {part: median(one[name][part] for one in rounds) for part in PARTS}
        for name in trainers
    }


def _one_step(trainer, pairs):
    spent, model = defaultdict(float), trainer.model
    eye = backbone(model)
    seeing, reading = eye.get_image_features, eye.get_decoder().forward
    before = copy.deepcopy(trainer._metrics), trainer._total_train_tokens
    model.train()
    with (
        patch.object(eye, "get_image_features", _timed(spent, "vision tower", seeing)),
        patch.object(eye.get_decoder(), "forward", _timed(spent, "language model", reading)),
    ):
        with _clock(spent, "prepare"):
            batch = trainer._prepare_inputs(trainer.data_collator(list(pairs)))
        with _clock(spent, "forward"), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)
        with _clock(spent, "backward"):
            trainer.accelerator.backward(loss)
    model.zero_grad()
    trainer._metrics, trainer._total_train_tokens = before  # this was no step of the training
    spent["head and loss"] = spent["forward"] - spent["vision tower"] - spent["language model"]
    return spent


def _timed(spent, part, function):
    @functools.wraps(function)
    def run(*inputs, **settings):
        with _clock(spent, part):
            return function(*inputs, **settings)

    return run


@contextmanager
def _clock(spent, part):
    """Adds the seconds within to `spent[part]`; waits for a GPU, where calls return early."""
    _wait()
    start = time.perf_counter()
    yield
    _wait()
    spent[part] += time.perf_counter() - start


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
