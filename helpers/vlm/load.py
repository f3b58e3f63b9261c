"""Load a policy and its processor; adapters on its language model.

model, processor = load_policy(choose("auto"))
adapter = lora_config(model, rank=16)
"""

import re
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

# The linear layers of the language model, in Idefics3/SmolVLM (text_model) and in LLaVA, Qwen-VL
# and others (language_model). A plain list such as ["q_proj"] would also hit the vision tower.
TEXT_LINEARS = r".*\.(text_model|language_model)\..*\.(q|k|v|o|gate|up|down)_proj"


class ModelError(ValueError):
    """A checkpoint cannot be used; the message says what to do."""


def load_policy(track):
    """(model, processor) of a track. Raises ModelError with one sentence when it cannot be read."""
    dtype = getattr(torch, track.dtype)
    return load(track.model, dtype, track.quantize, track.image_edge, track.device)


def load(name, dtype=torch.float32, quantize=False, image_edge=None, device="cpu"):
    """(model, processor) of a checkpoint: a folder or a Hub id, safetensors only.

    `quantize` loads the weights in 4 bits (NF4, double quantisation; arXiv 2305.14314).
    `image_edge` is the longest edge in pixels that a picture is resized to before it is tiled.
    """
    folder = Path(name)
    if folder.is_absolute() and not any(folder.glob("*.safetensors")):  # big ones come in shards
        raise ModelError(
            f"no checkpoint in {name}: restore the folder with `git checkout -- data`, or train "
            "the pocket model again with `make pocket-model`"
        )
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=dtype,
            quantization_config=_four_bits(dtype) if quantize else None,
            device_map={"": 0 if device == "cuda" else device},  # 0: as the trainer names it
            attn_implementation="sdpa",
            use_safetensors=True,
        )
    except Exception as error:  # every library below has exceptions of its own
        raise ModelError(
            f"the checkpoint {name} cannot be read ({type(error).__name__}: {error}); "
            "if it is a folder of this course, restore it with `git checkout -- data`, if it is on "
            "the Hub, check the name and the network"
        ) from error
    if image_edge:
        limit_edge(processor, image_edge)
    if quantize and device == "cpu":
        _stay_trainable(model)
    return model, processor


def _stay_trainable(model):
    """On CPUs with bf16 instructions, bitsandbytes 0.50 packs 4-bit weights for inference at the
    first forward pass in eval mode, and then no gradient gets through them any more."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _four_bits(dtype):
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def limit_edge(processor, image_edge):
    """Resize pictures to `image_edge` pixels (the longest edge) before they are tiled.

    Raises ModelError for a processor that does not resize by the longest edge alone: Qwen2.5-VL,
    for one, takes `longest_edge` for a number of pixels.
    """
    size = processor.image_processor.size
    given = sorted(key for key, value in dict(size).items() if value is not None)
    if given != ["longest_edge"]:
        raise ModelError(
            f"{type(processor).__name__} sizes pictures by {', '.join(given)}, not by the longest "
            "edge alone: set image_edge=None in the track, and the size in the processor"
        )
    processor.image_processor.size = {"longest_edge": image_edge}


def lora_config(model, rank=16):
    """A LoRA adapter on every linear layer of the language model, none in the vision tower.

    arXiv 2106.09685; alpha is twice the rank. Raises ModelError if no layer matches.
    """
    if not any(re.fullmatch(TEXT_LINEARS, name) for name, _ in model.named_modules()):
        raise ModelError(
            f"{type(model).__name__} has no text_model or language_model with projections: "
            "name its linear layers in helpers.vlm.load.TEXT_LINEARS"
        )
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=TEXT_LINEARS,
        task_type="CAUSAL_LM",
    )
