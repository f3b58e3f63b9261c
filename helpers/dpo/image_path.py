"""What a picture goes through before the language model, and whether all of a step sees the same.

    eye = backbone(trainer.model)
    sees_otherwise(trainer)       # None, or why chosen, rejected, policy and reference differ

`helpers.dpo.shared_images` shares the features of a picture only where nothing on this path
changes.
"""

import inspect

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.modules.batchnorm import _BatchNorm
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference


def backbone(model, whole=False):
    """The model below adapters: with its head if `whole`, else vision, connector, text model."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    return model if whole else model.base_model


def why_not(trainer):
    """The reason why this trainer's pictures cannot be shared, in words, or None."""
    eye = backbone(trainer.model)
    if type(trainer.data_collator) is not DataCollatorForVisionPreference:
        return "the data_collator is your own"
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights may be sharded"
    forward = inspect.signature(type(eye).forward).parameters
    if not hasattr(eye, "get_image_features") or "mm_encoder_outputs" not in forward:
        return f"{type(eye).__name__} does not take encoded pictures (`mm_encoder_outputs`)"
    if eye.get_decoder() is eye:
        return f"the language model of {type(eye).__name__} cannot be told from its vision tower"
    return sees_otherwise(trainer)


def sees_otherwise(trainer):
    """Why not all four passes see the same in a picture, in words, or None."""
    eye = backbone(trainer.model)
    for name, module in image_path(eye):
        if reason := _changes(module):
            return f"{name or type(module).__name__} {reason}"
    if trainer.ref_model is not None and not _same_sight(eye, backbone(trainer.ref_model)):
        return "ref_model sees with other weights than the policy"
    return None


def image_path(eye):
    """(name, module) of all that a picture goes through before the language model.

    `eye` itself is among them: LLaVA-NeXT's `image_newline` is a weight of its own.
    """
    text = set(eye.get_decoder().modules())
    return [(name, module) for name, module in eye.named_modules() if module not in text]


def _changes(module):
    """Why `module` may not compute the same for chosen and rejected, policy and reference."""
    if any(weight.requires_grad for weight in module.parameters(recurse=False)):
        return "is trained: freeze it, or give LoRA a regular expression for the language model"
    if isinstance(module, BaseTunerLayer):
        return "has an adapter, which the reference has not"
    if isinstance(module, _BatchNorm):
        return "is a batch norm, which depends on the other pictures"
    # Who drops out by a function keeps the rate as a number, to which disable_dropout is blind.
    rates = [rate for name, rate in vars(module).items() if "drop" in name]
    rates += [module.p] if isinstance(module, torch.nn.Dropout) else []
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        return "drops out at random"
    return None


def _same_sight(eye, other):
    mine, theirs = _weights(eye), _weights(other)
    return mine.keys() == theirs.keys() and all(
        weight.dtype == theirs[name].dtype and torch.equal(weight, theirs[name])
        for name, weight in mine.items()
    )


def _weights(eye):
    return {
        f"{name}.{key}": weight
        for name, module in image_path(eye)
        for key, weight in module.named_parameters(recurse=False)
    }
