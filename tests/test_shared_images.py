"""SharedImageDPOTrainer is TRL's DPOTrainer to rounding, and encodes a picture once a pair.

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

from helpers.dpo import shared_images
from helpers.dpo.shared_images import (
    EachImageOnce,
    SharedImageDPOTrainer,
    backbone,
    features_differ,
)
from helpers.dpo.trainer import dpo_config
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

BOTH = (DPOTrainer, SharedImageDPOTrainer)
REENTRANT = {"activation_checkpointing_kwargs": {"use_reentrant": True}}


def both(evaluate=True, ref_model=lambda: None, **settings):
    """The two runs, TRL's first; `ref_model` makes a new one for each."""
    return [follow(trainer(kind, ref_model=ref_model(), **settings), evaluate) for kind in BOTH]


def lora(**settings):
    return LoraConfig(r=4, target_modules=r".*language_model.*(q|v)_proj", **settings)


def train_text_model(model, head=False):
    model.requires_grad_(False)
    backbone(model).get_decoder().requires_grad_(True)
    model.lm_head.requires_grad_(head)


def learned_adapter(model):
    torch.manual_seed(5)  # an adapter that has learned something, which becomes the reference
    return get_peft_model(model, lora(init_lora_weights=False))


def llava_model():
    return build("llava")[0]


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


LOSSES = ["sigmoid", "hinge", "ipo", "apo_zero", "sigmoid_norm", "bco_pair", "sft"]
OWN_REFERENCE = {"adapter": None, "ref_model": llava_model}
SETTINGS = {
    "losses": {"loss_type": LOSSES, "loss_weights": [0.8, 0.2, 1.0, 0.5, 0.3, 0.2, 1.0]},
    "weighted": {"ld_alpha": 0.5, "use_weighting": True},
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
        "adapter": lambda model: lora(lora_dropout=0.2),
        "disable_dropout": False,
        "activation_checkpointing": True,
    },
    "an adapter that goes on": {"prepare": learned_adapter, "adapter": None},
    "all of the text model": {"prepare": train_text_model, **OWN_REFERENCE},
    # Its gradient is a sum over the scored rows, where the stock one also adds zeros.
    "the head, too": {"prepare": lambda model: train_text_model(model, head=True), **OWN_REFERENCE},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_same(name):
    stock, ours = both(**{"max_steps": 2, **SETTINGS[name]})
    assert ours.trainer.unshared is None
    assert_same(stock, ours)


def test_bf16_gives_the_same_within_its_rounding_and_runs_the_tower_in_it():
    stock, ours = (trainer(kind, "idefics3", bf16=True, max_steps=2) for kind in BOTH)
    dtypes = set()
    layer = backbone(ours.model).vision_model.encoder.layers[0].mlp.fc1
    layer.register_forward_hook(lambda module, given, output: dtypes.add(output.dtype))
    assert_same(follow(stock), follow(ours), rounding=2**-8)
    assert dtypes == {torch.bfloat16}


def mask_one_token_late(batch):
    batch["completion_mask"] = batch["completion_mask"].roll(1, dims=1)


def swap_a_pair(batch):
    count = len(batch["input_ids"]) // 2
    for name in ("input_ids", "attention_mask", "completion_mask"):
        batch[name][[0, count]] = batch[name][[count, 0]]


def another_pairs_picture(batch):
    batch["pixel_values"] = batch["pixel_values"].roll(1, dims=0)


def with_batches(change):
    def break_it(made):
        collate = made.data_collator

        def changed(examples):
            batch = collate(examples)
            change(batch)
            return batch

        made.data_collator = changed

    return break_it


def double_the_loss(made):
    compute = made._compute_loss
    made._compute_loss = lambda *given: 2 * compute(*given)


def reference_with_the_adapter_on(made):
    made.model.disable_adapter = nullcontext


@pytest.fixture(scope="module")
def stock():
    return follow(trainer(DPOTrainer), evaluate=False)


@pytest.mark.parametrize(
    "fault",
    [
        *map(with_batches, (mask_one_token_late, swap_a_pair, another_pairs_picture)),
        double_the_loss,
        reference_with_the_adapter_on,
    ],
)
def test_a_fault_is_far_beyond_rounding(fault, stock):
    ours = trainer(SharedImageDPOTrainer)
    fault(ours)
    found = differences(stock, follow(ours, evaluate=False))
    assert found["gradients"] > 100 * ROUNDING


# --- once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trainer_class", BOTH)
def test_a_picture_is_encoded_once_a_pair_and_never_backwards(trainer_class, checkpointing):
    one = {"data": pairs((0, 1)), "max_steps": 2, "gradient_accumulation_steps": 1}
    made = trainer(trainer_class, activation_checkpointing=checkpointing, **one)
    tower, encoded, backward = backbone(made.model).vision_tower, [], []

    def watch(module, given, named, output):
        encoded.append(len(named["pixel_values"] if "pixel_values" in named else given[0]))

    tower.register_forward_hook(watch, with_kwargs=True)
    for layer in tower.modules():
        layer.register_full_backward_hook(lambda *_: backward.append(1))
    made.train()
    if trainer_class is SharedImageDPOTrainer:
        assert encoded == [2, 2] and not backward  # 2 pairs with a picture each, in 2 steps
    else:
        assert sum(encoded) == 4 * (2 + 2) and bool(backward) == checkpointing


def test_tiles_are_encoded_once_a_pair_outside_of_autograd():
    made = trainer(SharedImageDPOTrainer, "idefics3", activation_checkpointing=True)
    tiles = []
    backbone(made.model).connector.register_forward_hook(
        lambda module, given, output: tiles.append(len(given[0]))
    )
    made.model.train()
    made.model.enable_input_require_grads()
    batch = made.data_collator([dict(row) for row in pairs()])
    real = (batch["pixel_values"] != 0).flatten(2).any(2).sum().item()
    features = made.encoded(batch)["mm_encoder_outputs"]["image"].pooler_output
    assert tiles == [real]
    assert not any(one.requires_grad for one in features)


def test_a_prompt_is_processed_once_a_pair(monkeypatch):
    made = trainer(SharedImageDPOTrainer)
    given, kind = [], type(made.processing_class.image_processor)
    preprocess = kind.preprocess

    def watched(self, images, *more, **named):
        given.append(images)
        return preprocess(self, images, *more, **named)

    monkeypatch.setattr(kind, "preprocess", watched)
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


@pytest.mark.parametrize("trainer_class", BOTH)
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
    function, rows = trl.trainer.utils._ChunkedLogProbFunction, []
    apply = function.apply
    monkeypatch.setattr(
        function, "apply", lambda hidden, *rest: rows.append(len(hidden)) or apply(hidden, *rest)
    )
    made = trainer(SharedImageDPOTrainer)
    batch = made.data_collator([dict(row) for row in pairs()])
    scored = int(batch["completion_mask"].sum())
    rows.clear()
    made.compute_loss(made.model, batch)
    assert rows == [scored, scored] and scored < batch["input_ids"].numel() / 2


# --- not shared --------------------------------------------------------------------------------


def drop_by_a_function(model):
    for module in backbone(model).vision_tower.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.3  # CLIP drops attention by a function, and not by an nn.Dropout


def drop_by_a_module(model):
    projector = backbone(model).multi_modal_projector
    projector.linear_2 = torch.nn.Sequential(projector.linear_2, torch.nn.Dropout(0.3))


def other_connector():
    model = llava_model()
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_1.bias)
    return model


def other_precision():
    return llava_model().to(torch.bfloat16)


def rounded_and_trained(model):
    model.to(torch.bfloat16).float()  # so that its numbers are those of a bf16 reference
    train_text_model(model)


def own_collator(processor):
    return type("Own", (DataCollatorForVisionPreference,), {})(processor)


OTHER = "ref_model encodes pictures with other weights"
UNSHARED = [
    ("has an adapter", {"adapter": lambda model: LoraConfig(r=4, target_modules=["q_proj"])}),
    ("linear_1.* is trained", {"adapter": lambda model: lora(modules_to_save=["linear_1"])}),
    (OTHER, {"prepare": train_text_model, "adapter": None, "ref_model": other_connector}),
    (OTHER, {"prepare": rounded_and_trained, "adapter": None, "ref_model": other_precision}),
    ("data_collator is your own", {"data_collator": own_collator}),
    ("drops out at random", {"prepare": drop_by_a_function}),
    ("drops out at random", {"prepare": drop_by_a_module, "disable_dropout": False}),
]


@pytest.mark.parametrize(("reason", "settings"), UNSHARED)
def test_what_cannot_be_shared_is_said_and_trained_as_before(reason, settings, caplog):
    stock, ours = both(max_steps=2, **settings)
    assert re.search(reason, ours.trainer.unshared)
    assert ours.trainer.unshared in caplog.text
    assert_same(stock, ours)


def test_what_is_unfrozen_after_the_trainer_was_built_is_trained():
    """Also where workers that go on were started for an evaluation, with the other collator."""
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    runs = []
    for trainer_class in BOTH:
        made = trainer(trainer_class, max_steps=2, **workers)
        made.evaluate()
        backbone(made.model).multi_modal_projector.linear_1.requires_grad_(True)
        runs.append(follow(made))
    assert_same(*runs)
    assert "linear_1 is trained" in runs[1].trainer.unshared
    assert any("linear_1" in name for name in runs[1].gradients[0])


def rolled_twice(features):
    return type(features)(pooler_output=[one.roll(1, 0) for one in features.pooler_output] * 2)


@pytest.mark.parametrize(
    ("broken", "which", "reason"),
    [
        (lambda features: features, (0, 1, 2, 3, 4), "end in ValueError: Image features"),
        (rolled_twice, (0, 1, 2, 3, 4), "come out with other log-probs"),
        # Text alone comes out the same however the pictures are shared, so it looks for pictures.
        (lambda features: features, (3, 3, 0, 1, 4), "end in ValueError: Image features"),
    ],
)
def test_a_model_that_takes_features_otherwise_is_found_out(monkeypatch, broken, which, reason):
    """As a model would be whose forward reads more of the features than we hand over."""
    monkeypatch.setattr(shared_images, "twice", broken)
    stock, ours = both(max_steps=1, data=pairs(which))
    assert ours.trainer.unshared.startswith(f"the first pairs {reason}")
    assert_same(stock, ours)


def test_the_trial_leaves_no_trace():
    """A transform that draws at random is read once; no flag and no random number has moved."""

    def turned(rows):
        angles = 0, 90, 180
        rows["images"] = [[i.rotate(random.choice(angles)) for i in row] for row in rows["images"]]
        return rows

    def after(trainer_class):
        random.seed(3)
        data = pairs().with_transform(turned)
        made = trainer(trainer_class, data=data, remove_unused_columns=False)
        flags = [module.training for module in made.model.modules()]
        return made, (random.getstate(), torch.get_rng_state().tolist(), flags)

    (_, stock), (made, ours) = map(after, BOTH)
    assert ours == stock and made.unshared is None


def test_a_weight_of_the_whole_belongs_to_the_image_path():
    _, processor = build("llava")
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(processor.tokenizer)},
    )
    model = LlavaNextForConditionalGeneration(config).requires_grad_(False)
    asked = SimpleNamespace(model=model, ref_model=None)
    assert features_differ(asked) is None
    backbone(model).image_newline.requires_grad_(True)
    assert "LlavaNextModel is trained" in features_differ(asked)


# --- around it ---------------------------------------------------------------------------------


def test_model_and_collator_can_be_copied_saved_and_sent(tmp_path):
    made = trainer(SharedImageDPOTrainer, max_steps=1, output_dir=tmp_path)
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
    made.create_model_card(model_name="a-name")
    card = (tmp_path / "README.md").read_text()
    assert "DPO" in card and "a-name" in card and "SharedImage" not in card


def test_it_takes_the_arguments_of_trls():
    with pytest.raises(TypeError, match="tokenizer"):
        SharedImageDPOTrainer("model", tokenizer=None)
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        SharedImageDPOTrainer(llava_model(), None, dpo_config(choose("pocket"), "unused"))
