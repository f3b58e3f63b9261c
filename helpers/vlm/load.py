"""Load a policy and its processor, put an adapter on its language model, tell two models apart.

model, processor = load_policy(choose("auto"))
adapter = lora_config(model, rank=16)
same = model_digest(model) == model_digest(another)
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from helpers.setup.storage import key_of
from helpers.setup.tracks import Track

# The linear layers of the language model, in Idefics3/SmolVLM (text_model) and in LLaVA, Qwen-VL
# and others (language_model). A plain list such as ["q_proj"] would also hit the vision tower.
TEXT_LINEARS = r".*\.(text_model|language_model)\..*\.(q|k|v|o|gate|up|down)_proj"


# Settings of a configuration that training or loading changes and that change no answer.
PASSING = {
    "_name_or_path", "dtype", "transformers_version", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict",
}  # fmt: skip


class ModelError(ValueError):
    """A checkpoint cannot be used; the message says what to do."""


def load_policy(track: Track) -> tuple[PreTrainedModel, ProcessorMixin]:
    """(model, processor) of a track. Raises ModelError with one sentence when it cannot be read."""
    dtype = getattr(torch, track.dtype)
    return load(track.model, dtype, track.quantize, track.image_edge, track.device)


def load(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    quantize: bool = False,
    image_edge: int | None = None,
    device: str = "cpu",
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """(model, processor) of a checkpoint: a folder or a Hub id, safetensors only.

    `quantize` loads the weights in 4 bits (NF4, double quantisation; arXiv 2305.14314).
    `image_edge` is the longest edge in pixels that a picture is resized to before it is tiled.
    Raises ModelError with one sentence when the checkpoint is missing or cannot be read.
    """
    folder = Path(name)
    if folder.is_absolute() and not any(folder.glob("*.safetensors")):  # big ones come in shards
        raise ModelError(
            f"no checkpoint in {name}: restore the folder with `git checkout -- data`, or train "
            "the pocket model again with `make pocket-model`"
        )
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    four_bits |= {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=dtype,
            quantization_config=BitsAndBytesConfig(**four_bits) if quantize else None,
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
        # On CPUs with bf16 instructions, bitsandbytes 0.50 packs 4-bit weights for inference at the
        # first forward pass in eval mode, and then no gradient gets through them any more.
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    return model, processor


def limit_edge(processor: ProcessorMixin, image_edge: int) -> None:
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


def lora_config(model: nn.Module, rank: int = 16) -> LoraConfig:
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


# --- digests: two that are equal compute the same ------------------------------------------------


def model_digest(
    model: nn.Module,
    of: Callable[[str], bool] = lambda name: True,
    passing: set[str] = PASSING,
) -> str:
    """A digest of what the model computes: every weight, the configuration, the adapters.

    Of each adapter also whether it is on and how strongly, and which modules have a hook of the
    caller's. `of`: the weights to look at, by name; `passing`: the settings of the configuration
    not to look at. About a second for each GB of weights on a server's CPU.
    """
    sha = hashlib.sha256(transformers.__version__.encode())
    for name, weight in model.state_dict().items():
        if of(name):
            sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            sha.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    about = [_without(passing, c.to_dict()) for c in (model.config, model.generation_config)]
    about += [_switches(name, module) for name, module in model.named_modules()]
    sha.update(json.dumps(about, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:24]


def _switches(name, module):
    """What changes a module's output beside its weights: the caller's hooks, an adapter's state."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    theirs = [h for h in hooks if not h.__module__.startswith(("transformers.", "peft."))]
    names = [(name, h.__module__, getattr(h, "__qualname__", type(h).__name__)) for h in theirs]
    if not isinstance(module, BaseTunerLayer):
        return names
    if module.disable_adapters:
        return [*names, "off"]
    return [*names, module.active_adapters, getattr(module, "scaling", None)]


def _without(names, value):
    if isinstance(value, dict):
        return {key: _without(names, v) for key, v in value.items() if key not in names}
    return value


def processor_digest(processor: ProcessorMixin) -> str:
    """A digest of what decides pixels and token ids: settings, chat template, tokenizer."""
    tokenizer = processor.tokenizer
    rules = tokenizer.get_vocab()
    if hasattr(tokenizer, "backend_tokenizer"):  # its padding and truncation are each call's own
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {name: rules[name] for name in rules if name not in ("padding", "truncation")}
    return key_of(processor.to_json_string(), processor.chat_template, rules)
