"""One DPO training at real size: random weights, photographs, the course's settings, the peak.

    row = rehearse(Case("256M", "float32", "fp16", cap_gib=14.6))

The trainer is TRL's, whose memory helpers.vlm.memory predicts; benchmarks.bench shows how much less
ours takes. For benchmarks.gpu_rehearsal, which runs many, and for the tests of helpers.vlm.memory.
Its models and pairs are those of benchmarks.dpo_step too.
"""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, TrainerCallback
from trl import DPOTrainer

from benchmarks.harness import ROOT, allocated
from helpers.dpo.trainer import dpo_trainer
from helpers.pairs.format import turns
from helpers.setup.tracks import TRACKS
from helpers.vlm import pocket, smolvlm
from helpers.vlm.load import load_policy
from helpers.vlm.memory import PARTS, budget, plan_for

PHOTOS = ROOT / "data" / "photos" / "images"
TILES = {"1_tile": 512, "17_tiles": 2048}  # edge of a square picture: its tiles
ANSWERS = (150, 120)  # tokens of chosen and rejected


@dataclass(frozen=True)
class Case:
    """One configuration to train: a SmolVLM, what a track decides, and a cap in GiB or None."""

    size: str
    dtype: str
    autocast: str | None
    device: str = "cuda"
    cap_gib: float | None = None
    pairs: int = 2
    edge: int = 512
    quantize: bool = False
    checkpointing: bool = True

    @property
    def steps(self):
        """(optimizer steps, batches in each): the first makes AdamW's moments, the rest is timed.

        A second batch in a step finds the first one's gradients there; the CPU has no time for it.
        """
        return (3, 2) if self.device == "cuda" else (2, 1)

    @property
    def name(self):
        base = "4 bits" if self.quantize else self.dtype
        where = f"{self.cap_gib} GiB" if self.cap_gib else self.device
        given = f"{base}, autocast {self.autocast}, {where}, {self.pairs} pairs, edge {self.edge}"
        return f"{self.size}, {given}, {'' if self.checkpointing else 'no '}checkpointing"


def rehearse(case, tiny=False):
    """Train for a few steps; a dictionary with predicted and measured peak in GB, their ratio.

    On a GPU also the pace; without memory enough only the prediction, and what torch said.
    """
    with tempfile.TemporaryDirectory() as folder:
        track = replace(
            TRACKS["ampere" if case.quantize else "t4"],
            model=str(checkpoint(case.size, Path(folder) / "model", tiny)),
            dtype=case.dtype, autocast=case.autocast, device=case.device, quantize=case.quantize,
            image_edge=case.edge, batch_size=case.pairs, accumulate=case.steps[1],
        )  # fmt: skip
        found = {}
        try:
            if case.cap_gib:
                cap(case.cap_gib)
            trainer, plan = build(track, folder, case)
            predicted = budget(smolvlm.shapes(trainer.model.config), plan)
            parts = {part: getattr(predicted, part) / 1e9 for part in PARTS}
            found = {"plan": asdict(plan), "predicted": parts, "predicted_gb": sum(parts.values())}
            found |= on_the_gpu(trainer) if case.device == "cuda" else on_the_cpu(trainer)
        except torch.OutOfMemoryError as error:
            return {**found, "out_of_memory": str(error).split(". ")[0]}
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {**found, "ratio": found["predicted_gb"] / found["measured_gb"], "losses": losses}


def checkpoint(size, folder, tiny=False):
    """Save random weights of a published SmolVLM in bf16, with its processor, in `folder`.

    The tokenizer is the pocket one, a word a token; `tiny` keeps tiles and layers' kinds only.
    """
    tokenizer = pocket.build_tokenizer()
    processor = smolvlm.processor(size, tokenizer, pocket.CHAT_TEMPLATE)
    ids = {"image_token_id": processor.image_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = smolvlm.config(size, **ids)
    if tiny:
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        config.text_config.update({**small, **heads, "vocab_size": len(tokenizer)})
        config.vision_config.update({**small, "num_attention_heads": 4})
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build(track, folder, case):
    """(trainer, plan): the track's own trainer, and the Plan of the longest row it will see."""
    model, processor = load_policy(track)
    steps, accumulate = case.steps
    trainer = dpo_trainer(
        model, processor, photograph_pairs(steps * accumulate * case.pairs), track, folder,
        activation_checkpointing=case.checkpointing, gradient_checkpointing=case.checkpointing,
        max_steps=steps, logging_steps=1, save_strategy="no", disable_tqdm=True,
        trainer_class=DPOTrainer,  # whose memory helpers.vlm.memory counts
    )  # fmt: skip
    batch = trainer.data_collator([dict(trainer.train_dataset[0])])
    tiles, answer = batch["pixel_values"].shape[1], int(batch["completion_mask"].sum(1).max())
    markers_and_features = tiles * (smolvlm.tile_tokens(trainer.model.config) + 2)
    text = batch["input_ids"].shape[1] - answer - markers_and_features
    return trainer, plan_for(track, tiles, text, answer, checkpointing=case.checkpointing)


def photograph_pairs(count, size=(640, 480)):
    """Pairs in conversational form: photographs of `size` pixels, answers of ANSWERS tokens."""
    words = "I see a red plate and a fork".split()

    def answer(length):  # the closing token comes on top
        return turns("", " ".join(words[i % len(words)] for i in range(length - 1)))[1:]

    files, rows = sorted(PHOTOS.glob("*.jpg")), []
    texts = {"prompt": turns("What do you see?")}
    texts |= zip(("chosen", "rejected"), map(answer, ANSWERS), strict=True)
    for i in range(count):
        with Image.open(files[i % len(files)]) as photograph:
            rows.append({"images": [photograph.convert("RGB").resize(size)], **texts})
    return Dataset.from_list(rows)


# --- measuring -----------------------------------------------------------------------------


def cap(gib):
    """Let torch's allocator take no more than this of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total))


class Clock(TrainerCallback):
    """The time at the end of each optimizer step."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def on_the_gpu(trainer):
    """Train; torch's own peaks in GB, weights included, and seconds a pair after the first step."""
    clock = Clock()
    trainer.add_callback(clock)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    settings = trainer.args
    pairs = settings.gradient_accumulation_steps * settings.per_device_train_batch_size
    pairs *= len(clock.ends) - 1
    return {
        "measured_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        "seconds_a_pair": (clock.ends[-1] - clock.ends[0]) / pairs,
    }


def on_the_cpu(trainer):
    """Train; the peak in GB of weights, a batch and what torch's CPU allocator recorded."""
    held = sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters())
    size = trainer.args.per_device_train_batch_size
    batch = trainer.data_collator([dict(trainer.train_dataset[i]) for i in range(size)])
    held += sum(values.numel() * values.element_size() for values in batch.values())
    return {"measured_gb": (held + allocated(trainer.train)[0]) / 1e9}
