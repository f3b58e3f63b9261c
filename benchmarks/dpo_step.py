"""One DPO step, forward and backward, by TRL's trainer and by the one that shares pictures.

    contest = build({**SMOLVLM, "edge": 2048, "checkpointing": True}, folder)
    one_round(contest, 0)      # benchmarks.harness

SmolVLM has its published dimensions and random weights, the pocket model its own. All sides start
from the same weights and work on the same pairs; each makes its batch with its own collator. Timed
is `training_step`, after one step of `train()` has set everything up as in any training; making the
batch is timed apart. `benchmarks.bench` runs it.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from trl import DPOTrainer

from benchmarks import flops
from benchmarks.harness import Case, Contest, Side
from benchmarks.rehearsal import TILES, cap, checkpoint, photograph_pairs
from helpers.dpo.shared_images import SharedImageDPOTrainer
from helpers.dpo.trainer import dpo_trainer
from helpers.pairs.format import to_conversational
from helpers.pairs.images import digests_of
from helpers.pairs.load import load_raw
from helpers.setup.machine import precision, this_machine
from helpers.setup.tracks import TRACKS
from helpers.vlm import smolvlm
from helpers.vlm.load import load_policy

T4_GIB = 14.6  # of memory that torch reports of a T4
CACHED = {"precompute_ref_log_probs": True}
# name of the side: (what makes its trainer, what differs in its DPOConfig)
SIDES = {
    "TRL": (DPOTrainer, {}),
    "shared pictures": (SharedImageDPOTrainer, {}),
    "and a cached reference": (SharedImageDPOTrainer, CACHED),
    "and the prompt read once": (partial(SharedImageDPOTrainer, share_prompt=True), CACHED),
}
SOURCES = ("benchmarks/dpo_step.py", "benchmarks/rehearsal.py", "helpers/dpo/*.py")
SOURCES += ("helpers/vlm/*.py",)
SMOLVLM = {"model": "256M", "picture": [640, 640], "pairs": 1, "tiny": False}
POCKET = {"model": "pocket", "pairs": 32}


def cases():
    """SmolVLM at 1 and 17 tiles, the pocket model; seconds are those of a core of an AMD EPYC."""
    taken = {"1_tile": (50, 60), "17_tiles": (600, 850)}  # checkpointing off, on
    found = [
        Case(
            f"dpo_{name}{'_checkpointing' if on else ''}",
            f"DPO step, SmolVLM-256M, {name.replace('_', ' ')}, checkpointing {('off', 'on')[on]}",
            build, {**SMOLVLM, "edge": edge, "checkpointing": on}, SOURCES,
            rounds=5 if name == "1_tile" else 3, seconds=taken[name][on], unit="a step",
        )
        for name, edge in TILES.items()
        for on in (False, True)
    ]  # fmt: skip
    settings, title = {**POCKET, "checkpointing": False}, "DPO step, pocket model, batch of 32"
    return [*found, Case("dpo_pocket", title, build, settings, SOURCES, 15, 3, "a step")]


def build(settings, folder):
    """The Contest of SIDES for settings such as SMOLVLM or POCKET, with `checkpointing`."""
    track, pairs = course_of(settings, Path(folder))
    trainers = {
        name: trainer_of(kind, track, pairs, Path(folder) / name, settings["checkpointing"], **more)
        for name, (kind, more) in SIDES.items()
    }
    for name, trainer in trainers.items():
        require_shared(name, trainer)
    made, shapes = lengths(trainers["TRL"]), smolvlm.shapes(trainers["TRL"].model.config)
    sides = {}
    for name, trainer in trainers.items():
        cached = trainer.precompute_ref_logps
        least = sum(flops.dpo_pair(shapes, pair, track.lora_rank, cached) for pair in made)
        sides[name] = side_of(trainer, least)
    if track.device == "cuda":  # the other sides' weights are not to take from a side's memory
        cap(T4_GIB + (len(trainers) - 1) * weights(trainers["TRL"]) / 2**30)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(track.autocast, torch.float32)
    notes = {"precision": str(dtype)[6:], "pairs": len(made)}
    for name in ("tiles", "prompt", "chosen", "rejected"):  # means over the pairs
        notes[name] = round(sum(getattr(pair, name) for pair in made) / len(made), 1)
    return Contest(sides, track.device, dtype, notes)


def require_shared(name, trainer):
    """Raises RuntimeError if a side would do what the stock trainer does, which it may with a
    warning: then there is nothing to compare."""
    asked, kind = SIDES[name][0], getattr(SIDES[name][0], "func", SIDES[name][0])
    if kind is DPOTrainer:
        return
    if trainer.unshared:
        raise RuntimeError(f"{name}: the pictures are not shared, as {trainer.unshared}")
    if asked is not kind and not trainer.share_prompt:
        raise RuntimeError(f"{name}: the prompt is not shared; the case's log says why")


def course_of(settings, folder):
    """(track, pairs): the track with the model and precision, the pairs of one batch."""
    if settings["model"] == "pocket":
        raw = load_raw(TRACKS["pocket"], count=settings["pairs"])
        return replace(TRACKS["pocket"], batch_size=len(raw)), to_conversational(raw)
    machine = this_machine()
    chosen = precision(machine)
    track = replace(
        TRACKS["t4"],
        model=str(checkpoint(settings["model"], folder / "model", settings["tiny"])),
        dtype=chosen.dtype, autocast=chosen.autocast, device=machine.kind,
        image_edge=settings["edge"], batch_size=settings["pairs"],
    )  # fmt: skip
    return track, photograph_pairs(settings["pairs"], tuple(settings["picture"]))


def trainer_of(kind, track, pairs, folder, checkpointing, **changes):
    """A trainer of this kind with the course's settings, for one step on all pairs at once."""
    model, processor = load_policy(track)
    # Ours would try its first pairs both ways, which takes minutes at 17 tiles. Here the losses of
    # all sides are kept with every round.
    with patch.object(SharedImageDPOTrainer, "_tried", lambda trainer, switch: switch()):
        return dpo_trainer(
            model, processor, pairs, replace(track, accumulate=1), folder, trainer_class=kind,
            activation_checkpointing=checkpointing, gradient_checkpointing=checkpointing,
            max_steps=1, save_strategy="no", logging_strategy="no", disable_tqdm=True, **changes,
        )  # fmt: skip


def side_of(trainer, flop):
    rows = list(trainer.train_dataset)
    batch = collate(trainer, rows)
    held = weights(trainer)
    if trainer.args.device.type == "cpu":  # else the batch is moved there in `run`
        held += sum(values.numel() * values.element_size() for values in batch.values())
    return Side(
        run=partial(step, trainer, batch), prepare=partial(collate, trainer, rows),
        warm_up=trainer.train, held=held, measure_memory=True, flop=flop,
    )  # fmt: skip


def weights(trainer):
    return sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters())


def collate(trainer, rows):
    return trainer.data_collator([dict(row) for row in rows])  # it changes the rows


def step(trainer, batch):
    """Forward and backward of one batch; the loss."""
    trainer.model.zero_grad()
    return trainer.training_step(trainer.model_wrapped, batch).item()


# --- the least work ------------------------------------------------------------------------


def lengths(trainer):
    """A flops.Pair for each pair of the batch, a picture's tiles at its first appearance."""
    rows = list(trainer.train_dataset)
    batch = collate(trainer, rows)
    count, seen, found = len(rows), set(), []
    answers = batch["completion_mask"].sum(1).tolist()
    prompts = (batch["attention_mask"].sum(1) - batch["completion_mask"].sum(1)).tolist()
    tiles = batch["pixel_attention_mask"].flatten(2).any(2).sum(1).tolist()  # the rest is padding
    for i, row in enumerate(rows):
        new = not seen.issuperset(digests_of(row))
        seen.update(digests_of(row))
        pair = flops.Pair(tiles[i] if new else 0, prompts[i], answers[i], answers[count + i])
        found.append(pair)
    return found
