"""The checks at step 0 stop every wrong set-up with its sentence; resuming is exact."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from datasets import Dataset
from trl import DPOTrainer

from helpers.dpo import trainer
from helpers.pairs.format import turns
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.load import lora_config
from helpers.world import scenes as world


@pytest.fixture(scope="module")
def pairs():
    rows = []
    for scene in world.sample_scenes(12, part="preference"):
        truth = world.describe(scene)
        rows.append(
            {
                "images": [world.draw(scene)],
                "prompt": turns(world.DESCRIBE),
                "chosen": turns("", truth)[1:],
                "rejected": turns("", truth.replace("a ", "two "))[1:],
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def build(untrained, processor, pairs, tmp_path):
    def make(model=untrained, adapter=True, ref_model=None, callbacks=None, **changes):
        settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "logging_steps": 1}
        return DPOTrainer(
            model,
            ref_model=ref_model,
            args=trainer.dpo_config(choose("pocket"), tmp_path, **{**settings, **changes}),
            train_dataset=pairs,
            processing_class=processor,
            peft_config=lora_config(model, rank=4) if adapter else None,
            callbacks=callbacks,
        )

    return make


def test_a_sound_setup_starts_at_ln_2_with_margin_0(build):
    trained = build()
    measured = trainer.check_setup(trained)
    assert measured["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert measured["margin"] == pytest.approx(0, abs=1e-5)
    assert measured["image_effect"] > 0 and measured["trainable"] > 0
    assert trained.state.log_history == []  # the check leaves no trace in the training curve


def test_a_cut_answer_is_named(build):
    with pytest.raises(trainer.SetupError, match="answer of pair 0 is cut .*max_length=None"):
        trainer.check_setup(build(max_length=30))


def test_an_answer_cut_away_whole_is_named(build):
    with pytest.raises(trainer.SetupError, match="chosen answer of pair 0 has no token left"):
        trainer.check_setup(build(max_length=23))


def test_nothing_trainable(build):
    trained = build()
    trained.model.requires_grad_(False)
    with pytest.raises(trainer.SetupError, match="no weight is trainable.*lora_config"):
        trainer.check_setup(trained)


def test_half_precision_trainable_weights(build):
    trained = build()
    for weight in trained.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.half()
    with pytest.raises(trainer.SetupError, match="lora_.*float16"):
        trainer.check_setup(trained)
    trainer.keep_adapter_in_float32(trained.model)
    trainer.check_setup(trained)


def test_a_model_that_ignores_the_picture(build, untrained):
    torch.nn.init.zeros_(untrained.model.connector.modality_projection.proj.weight)
    with pytest.raises(trainer.SetupError, match="does not see them"):
        trainer.check_setup(build())


def test_a_reference_that_is_another_model(build, processor):
    other = pocket.build_model(processor, seed=1)
    wrong = build(adapter=False, ref_model=other)
    with pytest.raises(trainer.SetupError, match="margin before the first step .*not the model"):
        trainer.check_setup(wrong)


def test_lora_leaves_the_vision_tower_alone(build):
    names = [n for n, p in build().model.named_parameters() if p.requires_grad]
    assert names and all("text_model" in n and "lora" in n for n in names)


def test_live_curve_draws_at_every_log_and_leaves_no_figure_open(build, capsys):
    drawn = []

    def draw(history):
        drawn.append([row["loss"] for row in history])
        return [plt.subplots()[1]]

    build(callbacks=[trainer.LiveCurve(draw)], max_steps=3).train()
    assert [len(losses) for losses in drawn] == [1, 2, 3]
    assert plt.get_fignums() == []
