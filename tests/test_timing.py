"""The parts of a step are all of it, are charged where they were spent, and change nothing."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer

from helpers.dpo import timing
from helpers.dpo.shared_images import SharedImageDPOTrainer, backbone
from helpers.dpo.timing import PARTS, step_times
from helpers.plots.curves import step_time_bars
from tests.vlms import trainer

BOTH = pytest.mark.parametrize("kind", [DPOTrainer, SharedImageDPOTrainer])


@BOTH
def test_nothing_is_changed_and_every_part_takes_time(kind):
    made = trainer(kind, "pocket")
    weights = {name: weight.clone() for name, weight in made.model.state_dict().items()}
    times = step_times({"it": made}, made.train_dataset, repeats=1)["it"]
    assert tuple(times) == PARTS and all(seconds > 0 for seconds in times.values())
    assert all(torch.equal(weights[n], weight) for n, weight in made.model.state_dict().items())
    assert all(weight.grad is None for weight in made.model.parameters())
    assert not any(made._metrics["train"].values()) and made._total_train_tokens == 0
    assert len(step_time_bars({"a": times, "b": times}).patches) == 2 * len(PARTS)


@BOTH
def test_time_is_charged_where_it_was_spent(kind, monkeypatch):
    """On a clock that only the tower and the language model move."""
    made, clock = trainer(kind, "pocket"), Counter()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock.total))
    base = backbone(made.model)
    base.vision_model.register_forward_pre_hook(lambda *_: clock.update(seconds=1))
    base.get_decoder().norm.register_forward_pre_hook(lambda *_: clock.update(seconds=10))
    times = step_times({"it": made}, made.train_dataset, repeats=1)["it"]
    passes = 2 if kind is DPOTrainer else 1  # policy and reference, or once for both
    assert times == dict(zip(PARTS, (0, passes, 20, 0, 0), strict=True))


def test_trainers_take_turns():
    trainers, order = {name: trainer(DPOTrainer) for name in ("first", "second")}, []
    for name, made in trainers.items():
        collate = made.data_collator
        made.data_collator = lambda rows, n=name, c=collate: order.append(n) or c(rows)
    assert list(step_times(trainers, trainers["first"].train_dataset, 2)) == ["first", "second"]
    assert order == ["first", "second"] * 3
