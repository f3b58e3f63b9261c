"""Batches of a trainer that shares pictures: each processed once a pair, the reference beside them.

collate = EachImageOnce(processor)         # as TRL's DataCollatorForVisionPreference
collate = WithReference(collate)           # passes on what helpers.dpo.reference_cache added
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from helpers.dpo.reference_cache import COLUMNS


class EachImageOnce(DataCollatorForVisionPreference):
    """TRL's collator, with each prompt and its pictures processed once and not once an answer.

    `input_ids` and masks are TRL's: 2 rows a pair, the chosen first. What is made of pictures, such
    as `pixel_values`, has one entry a pair.
    """

    def torch_call(self, examples):
        once = replace(self, processor=_OnceAPair(self.processor))
        return DataCollatorForVisionPreference.torch_call(once, examples)


@dataclass
class WithReference:
    """Any collator, with the reference's columns passed on as float32."""

    collator: Callable

    def __call__(self, examples):
        found = [name for name in COLUMNS if name in examples[0]]
        columns = {name: torch.tensor([example[name] for example in examples]) for name in found}
        return {**self.collator(examples), **columns}


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
        half = len(text) // 2
        assert text[:half] == text[half:], "TRL's collator no longer gives the prompts twice"
        batch = self.processor(images=images[:half], text=text[:half], **settings)
        for name in self.per_token:
            if name in batch:
                batch[name] = torch.cat([batch[name]] * 2)
        return batch
