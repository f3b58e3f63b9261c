"""SharedImageDPOTrainer is TRL's DPOTrainer to rounding, and looks at a picture once a pair.

What is compared is every logged number and every gradient of runs with evaluation before and after.
"""

import copy
import pickle
import random
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import trl.trainer.utils
from peft import LoraConfig, get_peft_model
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from helpers.dpo import checkpoints, shared_images
from helpers.dpo.collators import EachImageOnce
from helpers.dpo.image_path import backbone, sees_otherwise
from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.dpo.trainer import StopAt, dpo_config
from helpers.setup.tracks import choose
from tests.vlms import (
    ROUNDING,
    TEXT,
    VISION,
    assert_same,
    build,
    differences,
    follow,
    pairs,
    trainer,
)

REENTRANT = {"activation_checkpointing_kwargs": {"use_reentrant": True}}
Q_PROJ = LoraConfig(r=4, target_modules=["q_proj"])  # also those of the vision tower


def both(evaluate=True, **settings):
    """The two runs. What only ours takes is in `sharing`."""
    sharing = settings.pop("sharing", None)
    stock = follow(trainer(DPOTrainer, **settings), evaluate)
    return stock, follow(trainer(SharedImageDPOTrainer, sharing=sharing, **settings), evaluate)


# --- equal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("idefics3", {"activation_checkpointing": False}),
        ("smolvlm", {"activation_checkpointing": True}),
        ("llava", {"activation_checkpointing": True, **REENTRANT}),
        ("qwen", {"activation_checkpointing": False}),
        ("qwen", {"activation_checkpointing": True}),
        ("pocket", {"activation_checkpointing": True}),
    ],
)
def test_every_kind_of_model_gives_the_same(kind, settings):
    stock, ours = both(kind=kind, **settings)
    assert ours.trainer.unshared is None
    assert_same(stock, ours)
    losses = [log["loss"] for log in ours.logs if "loss" in log]
    assert len(set(losses)) == len(losses) == 3  # it learned something that could have differed


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "hinge"},
        {"loss_type": "ipo"},
        {"loss_type": "apo_zero"},
        {"loss_type": "sigmoid_norm"},
        {"loss_type": "sft"},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"ld_alpha": 0.5, "use_weighting": True},
    ],
    ids=lambda settings: str(settings.get("loss_type", "weighted")),
)
def test_every_loss_is_the_same(settings):
    assert_same(*both(evaluate=False, max_steps=2, **settings))


def _text_model_trained(model):
    model.requires_grad_(False)
    backbone(model).get_decoder().requires_grad_(True)


def _adapted(model):
    torch.manual_seed(5)  # an adapter that has learned something, which becomes the reference
    return get_peft_model(model, _lora(init_lora_weights=False))


def _lora(**settings):
    return LoraConfig(r=4, target_modules=r".*language_model.*(q|v)_proj", **settings)


SETTINGS = {
    "workers": {"dataloader_num_workers": 2},
    "text-only batches": {"data": pairs((3, 3, 0, 3, 3))},
    "a stream": {"data": pairs().to_iterable_dataset()},
    "one `image` column": {
        "data": pairs((0, 1, 4))
        .map(lambda row: {"image": row["images"][0]})
        .remove_columns("images")
    },
    "cut answers": {"max_length": 50, "data": pairs((0, 1, 3, 4))},
    "dropout in the adapter": {
        "adapter": lambda model: _lora(lora_dropout=0.2),
        "disable_dropout": False,
        "activation_checkpointing": True,
    },
    "an adapter that goes on": {"prepare": _adapted, "adapter": None},
    "all of the text model": {
        "prepare": _text_model_trained,
        "adapter": None,
        "ref_model": lambda: build("llava")[0],
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_same(name):
    settings = dict(SETTINGS[name])
    make = settings.pop("ref_model", lambda: None)
    stock = follow(trainer(DPOTrainer, ref_model=make(), **settings))
    ours = follow(trainer(SharedImageDPOTrainer, ref_model=make(), **settings))
    assert ours.trainer.unshared is None
    assert_same(stock, ours)


def test_a_trained_head_gives_the_same_to_rounding():
    """Its gradient is a sum over the scored rows, where the stock one also adds zeros."""

    def prepared(model):
        _text_model_trained(model)
        model.lm_head.requires_grad_(True)

    runs = [
        follow(trainer(kind, ref_model=build("llava")[0], prepare=prepared, adapter=None))
        for kind in (DPOTrainer, SharedImageDPOTrainer)
    ]
    assert runs[1].trainer.unshared is None
    assert_same(*runs)


def test_bf16_gives_the_same_within_its_rounding():
    stock, ours = both(kind="idefics3", bf16=True)
    assert_same(stock, ours, rounding=2**-8)


def test_the_vision_tower_runs_in_bf16_too():
    made = trainer(SharedImageDPOTrainer, bf16=True, max_steps=1)
    dtypes = set()
    layer = backbone(made.model).vision_tower.encoder.layers[0].mlp.fc1
    layer.register_forward_hook(lambda module, given, output: dtypes.add(output.dtype))
    made.train()
    assert dtypes == {torch.bfloat16}


def _mask_one_token_late(batch):
    batch["completion_mask"] = batch["completion_mask"].roll(1, dims=1)


def _a_swapped_pair(batch):
    count = len(batch["input_ids"]) // 2
    for name in ("input_ids", "attention_mask", "completion_mask"):
        batch[name][[0, count]] = batch[name][[count, 0]]


def _another_pairs_picture(batch):
    batch["pixel_values"] = batch["pixel_values"].roll(1, dims=0)


def _with_batches(change):
    def break_it(made):
        collate = made.data_collator

        def changed(examples):
            batch = collate(examples)
            change(batch)
            return batch

        made.data_collator = changed

    return break_it


def _doubled_loss(made):
    compute = made._compute_loss
    made._compute_loss = lambda *given: 2 * compute(*given)


def _reference_with_the_adapter_on(made):
    made.model.disable_adapter = nullcontext


FAULTS = {
    "the mask one token late": _with_batches(_mask_one_token_late),
    "a swapped pair": _with_batches(_a_swapped_pair),
    "the picture of another pair": _with_batches(_another_pairs_picture),
    "a doubled loss": _doubled_loss,
    "a reference with the adapter on": _reference_with_the_adapter_on,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_far_beyond_rounding(name):
    stock, ours = (trainer(cls) for cls in (DPOTrainer, SharedImageDPOTrainer))
    FAULTS[name](ours)
    found = differences(follow(stock, evaluate=False), follow(ours, evaluate=False))
    print({name: f"{apart / ROUNDING:.0f} times" for name, apart in found.items() if apart})
    assert found["gradients"] > 100 * ROUNDING


# --- once --------------------------------------------------------------------------------------


def _watched(made):
    """(pictures in each call of the vision tower, its layers' backward passes) of a run."""
    tower, seen, backward = backbone(made.model).vision_tower, [], []

    def see(module, given, named, output):
        seen.append(len(named["pixel_values"] if "pixel_values" in named else given[0]))

    tower.register_forward_hook(see, with_kwargs=True)
    for layer in tower.modules():
        layer.register_full_backward_hook(lambda *_: backward.append(1))
    made.train()
    return seen, backward


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_picture_is_encoded_once_a_pair_and_never_backwards(checkpointing):
    one = {"data": pairs((0, 1)), "max_steps": 2, "gradient_accumulation_steps": 1}
    runs = {}
    for trainer_class in (DPOTrainer, SharedImageDPOTrainer):
        made = trainer(trainer_class, activation_checkpointing=checkpointing, **one)
        runs[trainer_class] = _watched(made)
    seen, backward = runs[SharedImageDPOTrainer]
    assert seen == [2, 2] and not backward  # 2 pairs with a picture each, in 2 steps
    seen, backward = runs[DPOTrainer]
    assert sum(seen) == 4 * (2 + 2)
    assert bool(backward) == checkpointing


def test_tiles_are_encoded_once_a_pair():
    made = trainer(SharedImageDPOTrainer, "idefics3", data=pairs((0, 1)), max_steps=1)
    tiles = []
    backbone(made.model).connector.register_forward_hook(
        lambda module, given, output: tiles.append(len(given[0]))
    )
    batch = made.data_collator([dict(row) for row in made.train_dataset])
    real = (batch["pixel_values"] != 0).flatten(2).any(2).sum().item()
    made.args.gradient_accumulation_steps = 1
    made.train()
    assert tiles == [real]


def test_features_stand_outside_of_autograd():
    made = trainer(SharedImageDPOTrainer, activation_checkpointing=True)
    made.model.train()
    made.model.enable_input_require_grads()
    batch = made.encoded(made.data_collator([dict(row) for row in pairs()]))
    features = batch["mm_encoder_outputs"]["image"].pooler_output
    assert not any(one.requires_grad for one in features)


def test_a_prompt_is_processed_once_a_pair(monkeypatch):
    made = trainer(SharedImageDPOTrainer)
    given = []
    image_processor = type(made.processing_class.image_processor)
    preprocess = image_processor.preprocess
    monkeypatch.setattr(
        image_processor,
        "preprocess",
        lambda self, images, *args, **kw: (
            given.append(images) or preprocess(self, images, *args, **kw)
        ),
    )
    batch = made.data_collator([dict(row) for row in pairs((0, 1, 2))])
    assert len(batch["pixel_values"]) == 4 and len(given) == 1  # 4 pictures in 3 pairs
    assert len(batch["input_ids"]) == 6


def test_the_batch_is_trls_but_for_the_pictures():
    _, processor = build("qwen")
    rows = [dict(row) for row in pairs()]
    theirs = DataCollatorForVisionPreference(processor)(copy.deepcopy(rows))
    ours = EachImageOnce(processor)(rows)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        again = name in ("pixel_values", "image_grid_thw")
        assert torch.equal(torch.cat([tensor] * 2) if again else tensor, theirs[name]), name


@pytest.mark.parametrize("trainer_class", [DPOTrainer, SharedImageDPOTrainer])
def test_no_hook_is_left_behind(trainer_class):
    made = trainer(trainer_class, activation_checkpointing=True, max_steps=1)
    counts = []
    for _ in range(3):
        made.train()
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.model.modules()]
        counts.append(sum(hooks))
    leak = trainer_class is DPOTrainer  # or this test has become blind
    assert (counts[0] < counts[1] < counts[2]) if leak else (counts[0] == counts[1] == counts[2])


def test_logits_only_where_they_are_scored(monkeypatch):
    rows, apply = [], trl.trainer.utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl.trainer.utils._ChunkedLogProbFunction,
        "apply",
        lambda hidden, *rest: rows.append(len(hidden)) or apply(hidden, *rest),
    )
    made = trainer(SharedImageDPOTrainer)
    batch = made.data_collator([dict(row) for row in pairs()])
    scored = int(batch["completion_mask"].sum())
    rows.clear()
    made.compute_loss(made.model, batch)
    assert rows == [scored, scored] and scored < batch["input_ids"].numel() / 2


# --- not shared --------------------------------------------------------------------------------


def _drops(model):
    for module in backbone(model).vision_tower.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.3  # CLIP drops attention by a function, and not by an nn.Dropout


def _drops_by_module(model):
    eye = backbone(model)
    eye.multi_modal_projector.linear_2 = torch.nn.Sequential(
        eye.multi_modal_projector.linear_2, torch.nn.Dropout(0.3)
    )


def _other_eyes():
    model, _ = build("llava")
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_1.bias)
    return model


def _rounded_text_model_trained(model):
    model.to(torch.bfloat16).float()  # so that its numbers are those of a bf16 reference
    _text_model_trained(model)


UNSHARED = {
    "LoRA on the vision tower": ("has an adapter", {"adapter": lambda model: Q_PROJ}),
    "a trained connector": (
        "linear_1.* is trained",
        {"adapter": lambda model: _lora(modules_to_save=["linear_1"])},
    ),
    "another eye in ref_model": (
        "ref_model sees with other weights",
        {"prepare": _text_model_trained, "adapter": None, "ref_model": _other_eyes},
    ),
    "an eye of another precision in ref_model": (
        "ref_model sees with other weights",
        {
            "prepare": _rounded_text_model_trained,
            "adapter": None,
            "ref_model": lambda: build("llava")[0].to(torch.bfloat16),
        },
    ),
    "an own collator": (
        "data_collator is your own",
        {
            "data_collator": lambda processor: type("Own", (DataCollatorForVisionPreference,), {})(
                processor
            )
        },
    ),
    "dropout by a function": ("drops out at random", {"prepare": _drops}),
    "dropout by a module": (
        "drops out at random",
        {"prepare": _drops_by_module, "disable_dropout": False},
    ),
}


@pytest.mark.parametrize("name", UNSHARED)
def test_what_cannot_be_shared_is_said_and_trained_as_before(name, caplog):
    reason, settings = UNSHARED[name]
    settings = {"max_steps": 2, **settings}
    make = settings.pop("ref_model", lambda: None)
    ours = trainer(SharedImageDPOTrainer, ref_model=make(), **settings)
    assert re.search(reason, ours.unshared)
    assert ours.unshared in caplog.text
    stock = trainer(DPOTrainer, ref_model=make(), **settings)
    assert_same(follow(stock), follow(ours))


def test_what_is_unfrozen_after_the_trainer_was_built_is_trained():
    runs = []
    for trainer_class in (DPOTrainer, SharedImageDPOTrainer):
        made = trainer(trainer_class, max_steps=2)
        backbone(made.model).multi_modal_projector.linear_1.requires_grad_(True)
        runs.append(follow(made))
    assert_same(*runs)
    assert "linear_1 is trained" in runs[1].trainer.unshared
    assert any("linear_1" in name for name in runs[1].gradients[0])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda features: features, "the first pairs end in ValueError: Image features"),
        (
            lambda features: type(features)(
                pooler_output=[one.roll(1, 0) for one in features.pooler_output] * 2
            ),
            "the first pairs come out with other log-probs",
        ),
    ],
)
def test_a_model_that_takes_features_otherwise_is_found_out(monkeypatch, broken, reason):
    """As a model would be whose forward reads more of the features than we hand over."""
    monkeypatch.setattr(shared_images, "twice", broken)
    ours = follow(trainer(SharedImageDPOTrainer, max_steps=1))
    assert ours.trainer.unshared.startswith(reason)
    assert_same(follow(trainer(DPOTrainer, max_steps=1)), ours)


def test_the_trial_looks_for_pictures(monkeypatch):
    """Text alone comes out the same however the pictures are shared."""
    monkeypatch.setattr(shared_images, "twice", lambda features: features)
    ours = follow(trainer(SharedImageDPOTrainer, max_steps=2, data=pairs((3, 3, 0, 1, 4))))
    assert ours.trainer.unshared.startswith("the first pairs end in ValueError")


def test_the_trial_leaves_no_trace():
    """A transform that draws at random is read once; no flag and no random number has moved."""

    def turned(rows):
        rows["images"] = [
            [image.rotate(random.choice((0, 90, 180))) for image in images]
            for images in rows["images"]
        ]
        return rows

    def after(trainer_class):
        random.seed(3)
        data = pairs().with_transform(turned)
        made = trainer(trainer_class, data=data, remove_unused_columns=False)
        flags = [module.training for module in made.model.modules()]
        return made, (random.getstate(), torch.get_rng_state().tolist(), flags)

    (_, stock), (made, ours) = after(DPOTrainer), after(SharedImageDPOTrainer)
    assert ours == stock and made.unshared is None


def test_workers_that_go_on_get_the_batches_of_the_stock_trainer():
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}

    def evaluated(trainer_class):
        made = trainer(trainer_class, max_steps=1, **settings)
        made.evaluate()
        backbone(made.model).multi_modal_projector.linear_1.requires_grad_(True)
        made.train()
        return made.evaluate()["eval_loss"]

    losses = [evaluated(kind) for kind in (SharedImageDPOTrainer, DPOTrainer)]
    assert losses[0] == pytest.approx(losses[1], abs=ROUNDING)


def test_a_weight_of_the_whole_belongs_to_the_image_path():
    _, processor = build("llava")
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(processor.tokenizer)},
    )
    model = LlavaNextForConditionalGeneration(config)
    model.requires_grad_(False)
    eye = backbone(model)
    asked = SimpleNamespace(model=model, ref_model=None)
    assert sees_otherwise(asked) is None
    eye.image_newline.requires_grad_(True)
    assert "LlavaNextModel is trained" in sees_otherwise(asked)


# --- around it ---------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_losses(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}

    def made(folder):
        return trainer(SharedImageDPOTrainer, output_dir=tmp_path / folder, **settings)

    straight, stopped, resumed = made("straight"), made("stopped"), made("stopped")
    checkpoints.train(straight)
    stopped.add_callback(StopAt(2))
    checkpoints.train(stopped)
    checkpoints.train(resumed)
    losses = [
        [log["loss"] for log in run.state.log_history if "loss" in log]
        for run in (straight, resumed)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=ROUNDING) and len(losses[0]) == 3


def test_model_and_collator_can_be_copied_saved_and_sent(tmp_path):
    made = trainer(SharedImageDPOTrainer, max_steps=1)
    made.train()
    twin = copy.deepcopy(made.model)
    twin.enable_input_require_grads()
    assert not any(m._forward_hooks for m in made.model.modules() if hasattr(m, "num_embeddings"))
    made.model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    sent = pickle.loads(pickle.dumps(made.data_collator))
    rows = [dict(row) for row in pairs()]
    again, batch = sent(copy.deepcopy(rows)), made.data_collator(rows)
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_the_card_names_the_method(tmp_path):
    made = trainer(SharedImageDPOTrainer, output_dir=tmp_path)
    made.create_model_card(model_name="a-name")
    card = (tmp_path / "README.md").read_text()
    assert "DPO" in card and "a-name" in card and "SharedImage" not in card


def test_it_takes_the_arguments_of_trls():
    with pytest.raises(TypeError, match="tokenizer"):
        SharedImageDPOTrainer("model", tokenizer=None)
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        model, processor = build("llava")
        SharedImageDPOTrainer(model, None, dpo_config(choose("pocket"), "unused"))
