"""TRL's DPOTrainer, encoding each picture once a pair: the same numbers, several times as fast.

    trainer = SharedImageDPOTrainer(model, args=config, train_dataset=pairs, ...)   # as DPOTrainer

The stock trainer sends a picture through the processor twice (chosen, rejected) and through the
vision tower four times (policy and reference), and with checkpointing makes and back-propagates the
frozen tower once more. But a frozen tower gives the same features every time. Here a picture is
processed once, encoded once without a graph, and its features are given to all four passes through
`mm_encoder_outputs`, which transformers' models take since version 5. `docs/upstream.md` has the
stock path's waste with a reproduction of each; `tests/test_shared_images.py` the equality.
"""

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from types import MethodType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import trl.trainer.utils
from datasets import Dataset, IterableDataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from helpers.dpo.reference_cache import COLUMNS, add_reference_logps, reference_logps
from helpers.dpo.shared_prompt import shared_prompts, why_not_packed
from helpers.pairs.images import column_names

logger = logging.get_logger(__name__)


class SharedImageDPOTrainer(DPOTrainer):
    """A DPOTrainer with the same arguments and, to rounding, losses, metrics and gradients.

    On some processors they are the same to the bit, on others a few millionths of the largest
    gradient apart: processor, batch and number of threads decide in which order sums run.

    Where the pictures cannot be shared (something on their path is trained, say) it warns with the
    reason, keeps it in `unshared`, and does what the stock trainer does. It tries the first pairs
    in both ways, so that this holds for kinds of models that nobody has tested here.

    `precompute_ref_log_probs=True` in the DPOConfig, which TRL refuses for pictures, works: the
    reference is computed once for each pair, before the first step, and kept on disk in
    `reference_folder` (default: beside the dataset, or in output_dir if that has no file), so that
    a second run finds it. It is found only for the same weights, pairs and processing.

    `share_prompt=True` also reads the prompt that chosen and rejected have in common once, where
    the model allows it (helpers.dpo.shared_prompt).
    """

    unshared: str | None = None  # why pictures are not shared, in words
    share_prompt = False

    def __init__(self, *positional, reference_folder=None, share_prompt=False, **named):
        given = inspect.signature(DPOTrainer).bind(*positional, **named).arguments
        cached = _cache_wanted(given.get("args"), given.get("train_dataset"))
        if cached:  # TRL raises for this setting: it is put back below
            given["args"] = copy.copy(given["args"])
            given["args"].precompute_ref_log_probs = False
        super().__init__(**given)
        self.args.precompute_ref_log_probs |= cached
        hook_once(without_adapters(self.model))

        self._stock_collator = self.data_collator
        if self._is_vision_dataset:
            self.unshared = "not tried yet"
            if reason := why_not_shared(self) or self._tried(self._share_pictures):
                self._unshare(reason)
            if share_prompt:
                self._share_prompts()
        if cached:
            self._cache_reference(reference_folder)

    # --- what is shared ----------------------------------------------------------------------

    def _share_pictures(self):
        self.unshared, self.data_collator = None, EachImageOnce(**vars(self._stock_collator))

    def _share_prompts(self):
        apart = self.unshared or why_not_packed(backbone(self.model))
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            apart = "the adapter puts tokens of its own in front"
        if self.args.torch_compile:
            apart = "a compiled model takes no packed rows: set torch_compile=False"
        apart = apart or self._tried(lambda: setattr(self, "share_prompt", True))
        self.share_prompt = not apart
        if apart:
            logger.warning(f"chosen and rejected are read apart: {apart}")

    def _unshare(self, reason):
        logger.warning(f"pictures are encoded for every pass: {reason}")
        self.unshared, self.share_prompt = reason, False
        self.data_collator = self._stock_collator
        if self.precompute_ref_logps:
            self.data_collator = WithReference(self.data_collator)
        vars(self).pop("_eval_dataloaders", None)  # workers that go on have the other collator

    def _tried(self, switch):
        """Why the first pairs do not come out the same after `switch()`, in words, or None."""
        try:
            pairs = self._first_pairs()
        except Exception:  # a row that cannot be read: training will raise it
            return switch()
        before = self._logps(pairs)
        switch()
        after = self._logps(pairs)
        if isinstance(before, Exception):
            return None  # nothing to compare with; training will raise it
        if isinstance(after, Exception):
            return f"the first pairs end in {type(after).__name__}: {after}"
        whole = self.accelerator.mixed_precision == "no" and self.model.dtype == torch.float32
        rounding = 1e-4 if whole else 1e-2  # nats; a wrong picture moves an answer by far more
        if not torch.allclose(before, after, rounding, 10 * rounding, equal_nan=True):
            return "the first pairs come out with other log-probs"
        return None

    def _first_pairs(self):
        """The first pairs with pictures, read once: a transform may make others the next time."""
        pairs, count = [], min(2, self.args.per_device_train_batch_size)
        with same_randomness_after():
            for pair in islice(self.train_dataset, 100):
                pairs.append(pair)
                if sum(map(_has_picture, pairs)) == count:
                    break
        return sorted(pairs, key=_has_picture, reverse=True)[:count]

    def _logps(self, pairs):
        try:
            return reference_logps(self, copy.deepcopy(pairs))
        except Exception as error:  # a model of an unknown kind can fail in any way
            return error

    def train(self, *positional, **named):
        shared = self._is_vision_dataset and not self.unshared
        if shared and (reason := features_differ(self)):  # changed since the trainer was built
            self._unshare(reason)
        return super().train(*positional, **named)

    def _compute_loss(self, model, inputs, return_outputs):
        with self._sharing(model):
            return super()._compute_loss(model, self.encoded(inputs), return_outputs)

    def compute_ref_log_probs(self, model, inputs):
        with self._sharing(model):
            return super().compute_ref_log_probs(model, self.encoded(inputs))

    @contextmanager
    def _sharing(self, model):
        with ExitStack() as stack:
            stack.enter_context(only_scored_positions())
            if self.share_prompt:
                models = {self.accelerator.unwrap_model(model), self.ref_model or self.model}
                for base in {backbone(one) for one in models}:
                    stack.enter_context(shared_prompts(base))
            yield

    def encoded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch with features where it had pictures, for chosen and rejected both.

        In: 2N rows of tokens and N pairs' pictures, as `EachImageOnce` makes them. Out:
        `mm_encoder_outputs` in place of `pixel_values`, with features for 2N rows (N packed ones).
        """
        if self.unshared or "pixel_values" not in inputs:
            return inputs
        base = backbone(self.accelerator.unwrap_model(self.model))
        # What this kind of model needs besides pixels: masks of padding, grids, sizes.
        taken = set(inspect.signature(base.get_image_features).parameters) & set(inputs)
        with torch.no_grad(), self.accelerator.autocast():  # which `model` only enters by itself
            features = base.get_image_features(**{k: inputs[k] for k in taken}, return_dict=True)
        rest = {k: v for k, v in inputs.items() if not k.startswith("pixel_")}
        if self.share_prompt:
            prompt = (inputs["attention_mask"] - inputs["completion_mask"]).sum(1)
            rest["prompt_tokens"] = prompt[: len(prompt) // 2]  # (N,)
            return {**rest, "mm_encoder_outputs": {"image": features}}
        # What is left beside the pixels, such as Qwen's `image_grid_thw`, also places the tokens.
        rest |= {k: torch.cat([rest[k]] * 2) for k in taken & set(rest)}
        return {**rest, "mm_encoder_outputs": {"image": twice(features)}}

    # --- the cached reference ----------------------------------------------------------------

    def _cache_reference(self, folder):
        self.precompute_ref_logps = True  # from here on TRL reads the columns instead of computing
        self.reference_folder = folder
        self.data_collator = WithReference(self.data_collator)
        self.train_dataset = self._with_reference(self.train_dataset)
        sets = self.eval_dataset
        if isinstance(sets, dict):
            self.eval_dataset = {name: self._with_reference(one) for name, one in sets.items()}
        else:
            self.eval_dataset = self._with_reference(sets)

    def _with_reference(self, dataset):
        """Not `None`, nor the name of one that was there from the beginning."""
        cached = self._is_vision_dataset and self.precompute_ref_logps
        if cached and isinstance(dataset, (Dataset, IterableDataset)):
            return add_reference_logps(self, dataset, self.reference_folder)
        return dataset

    def evaluate(self, eval_dataset=None, *positional, **named):
        return super().evaluate(self._with_reference(eval_dataset), *positional, **named)

    def predict(self, test_dataset, *positional, **named):
        return super().predict(self._with_reference(test_dataset), *positional, **named)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in COLUMNS if c not in self._signature_columns]


def _has_picture(pair):
    return bool(pair.get("image") or pair.get("images"))


def _cache_wanted(config, dataset):
    if config is None or dataset is None or not config.precompute_ref_log_probs:
        return False
    if config.sync_ref_model:
        raise ValueError(
            "precompute_ref_log_probs=True keeps the reference as it is, and sync_ref_model=True "
            "changes it: set one of them to False"
        )
    return bool({"image", "images"} & set(column_names(dataset)))


@contextmanager
def same_randomness_after() -> Iterator[None]:
    """Random numbers drawn within do not change those that are drawn afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# --- batches -------------------------------------------------------------------------------


class EachImageOnce(DataCollatorForVisionPreference):
    """TRL's collator, with each prompt and its pictures processed once and not once an answer.

    `input_ids` and masks are TRL's: (2N, L) for N pairs, the chosen first. What is made of
    pictures, such as `pixel_values`, has one entry a pair.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        once = replace(self, processor=_OnceAPair(self.processor))
        return DataCollatorForVisionPreference.torch_call(once, examples)


class _OnceAPair:
    """A processor for TRL's collator, which gives it all prompts twice."""

    per_token = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

    def __init__(self, processor):
        self.processor = processor

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, text, images=None, **settings):
        if images is None:
            return self.processor(text=text, **settings)
        half = len(text) // 2  # N of 2N
        assert text[:half] == text[half:], "TRL's collator no longer gives the prompts twice"
        batch = self.processor(images=images[:half], text=text[:half], **settings)
        for name in self.per_token:
            if name in batch:
                batch[name] = torch.cat([batch[name]] * 2)  # (2N, prompt tokens)
        return batch


@dataclass
class WithReference:
    """Any collator, with the columns of helpers.dpo.reference_cache passed on as float32 (N,)."""

    collator: Callable

    def __call__(self, examples):
        found = [name for name in COLUMNS if name in examples[0]]
        columns = {name: torch.tensor([example[name] for example in examples]) for name in found}
        return {**self.collator(examples), **columns}


# --- may the pictures be shared? -----------------------------------------------------------


def without_adapters(model: nn.Module) -> nn.Module:
    """The model below PEFT's wrapper, with its output layer."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone(model: nn.Module) -> nn.Module:
    """Vision tower, connector and text model, without adapters' wrapper and output layer."""
    return without_adapters(model).base_model


def why_not_shared(trainer: DPOTrainer) -> str | None:
    """The reason why this trainer's pictures cannot be shared, in words, or None."""
    base = backbone(trainer.model)
    if type(trainer.data_collator) is not DataCollatorForVisionPreference:
        return "the data_collator is your own"
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights may be sharded"
    forward = inspect.signature(type(base).forward).parameters
    if not hasattr(base, "get_image_features") or "mm_encoder_outputs" not in forward:
        return f"{type(base).__name__} does not take encoded pictures (`mm_encoder_outputs`)"
    if base.get_decoder() is base:
        return f"the language model of {type(base).__name__} cannot be told from its vision tower"
    return features_differ(trainer)


def features_differ(trainer: DPOTrainer) -> str | None:
    """Why a picture's features may differ between the four passes of a step, in words, or None."""
    base = backbone(trainer.model)
    for name, module in image_path(base):
        if reason := _changes(module):
            return f"{name or type(module).__name__} {reason}"
    if trainer.ref_model is not None:
        mine, theirs = _image_weights(base), _image_weights(backbone(trainer.ref_model))
        if mine.keys() != theirs.keys() or not all(
            weight.dtype == theirs[name].dtype and torch.equal(weight, theirs[name])
            for name, weight in mine.items()
        ):
            return "ref_model encodes pictures with other weights than the policy"
    return None


def image_path(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of all that a picture goes through before the language model.

    `base` itself is among them: LLaVA-NeXT's `image_newline` is a weight of its own.
    """
    text = set(base.get_decoder().modules())
    return [(name, module) for name, module in base.named_modules() if module not in text]


def _image_weights(base):
    return {
        f"{name}.{key}": weight
        for name, module in image_path(base)
        for key, weight in module.named_parameters(recurse=False)
    }


def _changes(module):
    """Why `module` may not compute the same for chosen and rejected, policy and reference."""
    if any(weight.requires_grad for weight in module.parameters(recurse=False)):
        return "is trained: freeze it, or give LoRA a regular expression for the language model"
    if isinstance(module, BaseTunerLayer):
        return "has an adapter, which the reference has not"
    if isinstance(module, _BatchNorm):
        return "is a batch norm, which depends on the other pictures"
    # Modules that call F.dropout keep the rate as a number, which disable_dropout does not change.
    rates = [rate for name, rate in vars(module).items() if "drop" in name]
    rates += [module.p] if isinstance(module, nn.Dropout) else []
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        return "drops out at random"
    return None


# --- the model -----------------------------------------------------------------------------


def twice(features):
    """What `get_image_features` gave, for all pictures and then for all of them once more."""

    def repeat(one):
        return torch.cat([one, one]) if isinstance(one, Tensor) else [*one, *one]

    fields = {"pooler_output": repeat(features.pooler_output)}
    if features.get("deepstack_features") is not None:  # a list of layers
        fields["deepstack_features"] = [repeat(layer) for layer in features.deepstack_features]
    return type(features)(**fields)


@contextmanager
def only_scored_positions() -> Iterator[None]:
    """Logits for completion tokens alone, on every device.

    TRL's head does so where it has a Triton kernel; elsewhere it projects every position to the
    vocabulary and throws the prompt's away. Only the gradient of a trained head feels it, by
    rounding: it is a sum of fewer rows.
    """
    with patch.object(trl.trainer.utils, "_use_triton", lambda device: True):
        yield


def hook_once(model: nn.Module) -> None:
    """Make `enable_input_require_grads` take back its earlier hooks before it sets new ones.

    TRL switches checkpointing off and on in every step, and each time one more hook stayed on every
    embedding.
    """

    def enable(self):
        self.disable_input_require_grads()
        type(self).enable_input_require_grads(self)

    model.enable_input_require_grads = MethodType(enable, model)
