"""The parts of a step are all of it, are charged where they were spent, and change nothing."""

import time

import pytest
import torch
from datasets import Dataset
from trl import DPOTrainer

from helpers.dpo.image_path import backbone
from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.dpo.timing import PARTS, step_times
from helpers.dpo.trainer import dpo_trainer
from helpers.pairs.format import turns
from helpers.setup.tracks import choose
from helpers.world.scenes import DESCRIBE, describe, draw, sample_scenes


@pytest.fixture
def build(untrained, processor, tmp_path):
    scenes = sample_scenes(4, part="preference")
    pairs = Dataset.from_list(
        [
            {
                "images": [draw(scene)],
                "prompt": turns(DESCRIBE),
                "chosen": turns("", describe(scene))[1:],
                "rejected": turns("", "two forks.")[1:],
            }
            for scene in scenes
        ]
    )

    def make(kind):
        track = choose("pocket")
        return dpo_trainer(untrained, processor, pairs, track, tmp_path, trainer_class=kind)

    return make


@pytest.mark.parametrize("kind", [DPOTrainer, SharedImageDPOTrainer])
def test_nothing_is_changed_and_every_part_takes_time(build, kind):
    trainer = build(kind)
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    times = step_times({"it": trainer}, trainer.train_dataset, repeats=1)["it"]
    assert tuple(times) == PARTS and all(seconds > 0 for seconds in times.values())
    assert all(torch.equal(weights[n], weight) for n, weight in trainer.model.state_dict().items())
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert not any(trainer._metrics["train"].values()) and trainer._total_train_tokens == 0
    assert len(step_times({"a": times, "b": times}).patches) == 2 * len(PARTS)


@pytest.mark.parametrize("kind, looks", [(DPOTrainer, 2), (SharedImageDPOTrainer, 1)])
def test_a_slow_tower_is_charged_to_the_tower(build, kind, looks):
    trainer = build(kind)
    backbone(trainer.model).vision_model.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    times = step_times({"it": trainer}, trainer.train_dataset, repeats=1)["it"]
    assert times["vision tower"] >= 0.3 * looks  # policy and reference, or once for both
    assert max(times, key=times.get) == "vision tower"


def test_trainers_take_turns(build):
    trainers, order = {name: build(DPOTrainer) for name in ("first", "second")}, []
    for name, trainer in trainers.items():
        collate = trainer.data_collator
        trainer.data_collator = lambda rows, n=name, c=collate: order.append(n) or c(rows)
    assert list(step_times(trainers, trainers["first"].train_dataset, 2)) == ["first", "second"]
    assert order == ["first", "second"] * 3
