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

from helpers.dpo.trainer import dpo_config
from helpers.pairs.format import turns
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.load import lora_config
from tests import standin

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip

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
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32,
            "num_heads": 2, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={
            **TEXT, "vocab_size": len(tokenizer),
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids(start),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(end),
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config), processor


def tiny_pocket():
    processor = pocket.build_processor()
    return pocket.build_model(processor), processor


KINDS = {
    "idefics3": idefics3, "smolvlm": smolvlm, "llava": llava, "qwen": qwen, "pocket": tiny_pocket
}  # fmt: skip


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
        noise = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]
        images = [Image.fromarray(pixels) for pixels in noise]
        prompt = turns("What is in the picture?")
        prompt[0]["content"][:1] = [{"type": "image"} for _ in images]
        answers = {"chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:]}
        rows.append({"images": images, "prompt": prompt, **answers})
    return Dataset.from_list([rows[i] for i in which])


# --- runs --------------------------------------------------------------------------------------

TIMES = ("runtime", "per_second", "preparation_time")
# Of runs in float32 as below: up to 4e-6 was seen. Which bits differ, if any, depends on processor,
# batch and number of threads. A fault is above 100 times this (tests/test_shared_images.py).
ROUNDING = 1e-4


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
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 2, "max_steps": 3, "logging_steps": 1,
        # The second step has other weights, by as much as the first step's gradients: Adam would
        # turn the sign of a gradient that is nothing but rounding into a step of full size.
        "optim": "sgd", "learning_rate": 1.0, "save_strategy": "no", "disable_tqdm": True,
        **changes,
    }  # fmt: skip
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


def differences(one, other):
    """The largest differences of two runs: {logged name or "gradients": difference}.

    Of a logged number against 1 + its size; of a gradient against the largest entry of all
    gradients of its step, because rounding errors are as large as the sums they come from. But for
    the accuracies: where a margin is 0, rounding decides what is greater.
    """
    found = {}
    for mine, theirs in zip(one.logs, other.logs, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not name.endswith("accuracies"):
                apart = abs(mine[name] - theirs[name]) / (1 + abs(mine[name]))
                found[name] = max(apart, found.get(name, 0.0))
    assert len(one.gradients) == len(other.gradients) > 0
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        assert mine.keys() == theirs.keys()
        largest = max(gradient.abs().max().item() for gradient in mine.values())
        assert largest > 0
        apart = max((mine[name] - theirs[name]).abs().max().item() for name in mine) / largest
        found["gradients"] = max(apart, found.get("gradients", 0.0))
    return found


def assert_same(one, other, rounding=ROUNDING):
    """Every logged number and every gradient of every step, to `rounding`."""
    found = differences(one, other)
    worst = sorted(found, key=found.get)[-3:]
    print("largest differences:", {name: f"{found[name]:.1e}" for name in {*worst, "gradients"}})
    assert max(found.values()) <= rounding, found
