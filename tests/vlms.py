"""Tiny random VLMs of several kinds, pairs for them, and training runs that are compared.

    stock = follow(trainer(DPOTrainer, "llava"))
    assert_same(stock, follow(trainer(SharedImageDPOTrainer, "llava")))

Weights, pictures and adapters are made anew for each trainer, from the same seeds.
"""

import functools
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PrinterCallback,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    TrainerCallback,
)
from transformers.processing_utils import ProcessorMixin

from helpers import pocket
from helpers.messages import turns
from helpers.models import lora_config
from helpers.tracks import choose
from helpers.trainer import dpo_config
from tests import standin

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

# --- models ------------------------------------------------------------------------------------


def idefics3():
    """Ragged tiles: 2 to 17 a picture, as its sides are."""
    processor = standin._processor(16)
    return standin._model(processor, 16), processor


def smolvlm():
    """SmolVLM2's class. Its own processor needs torchvision; the batches have the same keys."""
    model, processor = idefics3()
    config = model.config.to_dict() | {"model_type": "smolvlm"}
    config["vision_config"]["model_type"] = "smolvlm_vision"
    twin = SmolVLMForConditionalGeneration(SmolVLMConfig(**config))
    twin.load_state_dict(model.state_dict())
    return twin, processor


def llava():
    tokenizer = standin._tokenizer()
    side = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=pocket.CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


class _QwenProcessor(Qwen2_5_VLProcessor):
    """Without the part for videos, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<image>", "<global-img>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen():
    """Pictures are placed by `image_grid_thw`; rotary positions in three dimensions."""
    tokenizer = standin._tokenizer()
    area = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}  # pixels, not edges
    image_processor = Qwen2VLImageProcessorPil(size=area, patch_size=4, merge_size=2)
    start, end = "<fake_token_around_image>", "<row_1_col_1>"  # as <|vision_start|>, <|vision_end|>
    template = pocket.CHAT_TEMPLATE.replace("<image>", f"{start}<image>{end}")
    processor = _QwenProcessor(image_processor, tokenizer, chat_template=template)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids(start),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(end),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def tiny_pocket():
    processor = pocket.build_processor()
    return pocket.build_model(processor), processor


KINDS = {
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "llava": llava,
    "qwen": qwen,
    "pocket": tiny_pocket,
}


def build(kind):
    torch.manual_seed(0)
    model, processor = KINDS[kind]()
    return model.eval(), processor


# --- pairs -------------------------------------------------------------------------------------

# pictures (width, height), chosen, rejected: one, two and no pictures; either answer the longer
ROWS = (
    ([(50, 25)], "A dog is sitting.", "There are two cats in the background on the table"),
    ([(25, 60)], "A tall building beside the window", "No"),
    ([(25, 25), (50, 20)], "two", "three trees and a car"),
    ([], "The man is holding an umbrella", "A tree"),
    ([(75, 25)], "window", "A white plate. A wooden table."),
)


@functools.cache
def pairs(which=(0, 1, 2, 3, 4)):
    rng = np.random.default_rng(0)
    rows = []
    for sizes, chosen, rejected in ROWS:
        images = [
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            for width, height in sizes
        ]
        prompt = turns("What is in the picture?")
        prompt[0]["content"][:1] = [{"type": "image"} for _ in images]
        rows.append(
            {
                "images": images,
                "prompt": prompt,
                "chosen": turns("", chosen)[1:],
                "rejected": turns("", rejected)[1:],
            }
        )
    return Dataset.from_list([rows[i] for i in which])


# --- runs --------------------------------------------------------------------------------------

TIMES = ("runtime", "per_second", "preparation_time")


def trainer(
    trainer_class,
    kind="llava",
    data=None,
    prepare=lambda model: None,
    adapter=lora_config,
    sharing=None,
    output_dir=None,
    ref_model=None,
    data_collator=None,
    **changes,
):
    """A trainer of batches of 2, accumulated twice. `prepare` changes the model, or gives another;
    `sharing`: what SharedImageDPOTrainer takes beyond DPOTrainer's arguments."""
    model, processor = build(kind)
    model = prepare(model) or model
    data = pairs() if data is None else data
    settings = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,  # so that the second step has other weights
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    torch.manual_seed(0)
    made = trainer_class(
        model,
        ref_model=ref_model,
        args=dpo_config(choose("pocket"), output_dir or tempfile.mkdtemp(), **settings),
        data_collator=data_collator(processor) if data_collator else None,
        train_dataset=data,
        eval_dataset=pairs(),
        processing_class=processor,
        peft_config=adapter(model) if adapter else None,
        **(sharing or {}),
    )
    made.remove_callback(PrinterCallback)
    return made


class _Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )


def follow(trained, evaluate=True):
    """Evaluate, train, evaluate; the logs without times and the gradients of every step."""
    gradients = _Gradients()
    trained.add_callback(gradients)
    torch.manual_seed(1)
    if evaluate:
        trained.evaluate()
    trained.train()
    if evaluate:
        trained.evaluate()
    logs = [
        {k: v for k, v in log.items() if not k.endswith(TIMES)} for log in trained.state.log_history
    ]
    return SimpleNamespace(logs=logs, gradients=gradients.steps, trainer=trained)


def assert_same(one, other):
    """To the bit: every logged number and every gradient of every step."""
    assert one.logs == other.logs
    assert len(one.gradients) == len(other.gradients) > 0
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        assert mine.keys() == theirs.keys() and len(mine) > 0
        assert any(gradient.abs().sum() > 0 for gradient in mine.values())
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name


def assert_close(one, other, rounding=1e-4):
    """The same to `rounding`, of the gradients relative to the largest one of the step.

    But for the accuracies: where a margin is 0, rounding decides what is greater.
    """
    for mine, theirs in zip(one.logs, other.logs, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            difference = abs(mine[name] - theirs[name])
            near = difference <= rounding * (1 + abs(mine[name]))
            assert near or name.endswith("accuracies"), (name, mine[name], theirs[name])
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        largest = max(gradient.abs().max() for gradient in mine.values())
        for name in mine:
            assert (mine[name] - theirs[name]).abs().max() <= 10 * rounding * largest, name
