"""Train the pocket VLM from the seed, then make its preference pairs: all of data/pocket.

    python -m tools.train_pocket                      # about 10 minutes, on one core
    python -m tools.train_pocket --out runs/pocket    # elsewhere, to compare

Writes the checkpoint (model/), the log of its training (training_log.json) and the pairs
(preferences.parquet): the model's own sampled answers, ranked by the truth.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import concatenate_datasets
from tqdm.auto import tqdm

from helpers.evaluation.metrics import scene_hallucination
from helpers.feedback.sources import preference_scenes, rank_own_samples
from helpers.setup.storage import check_writable
from helpers.vlm import pocket
from helpers.world.scenes import sample_scenes

BATCH, SEED = 24, 0
# It learns to see where habit does not pay; then the habit, in the world as it is; then, at a lower
# learning rate, how far to trust each. Split, scenes, epochs, learning rate:
STAGES = (("fair", 8000, 4, 1e-3), ("iid", 8000, 2, 1e-3), ("iid", 8000, 1, 3e-4))
PAIR_SCENES = {"train": 1600, "test": 400}  # half of them traps


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=pocket.CHECKPOINT.parent)
    options = options.parse_args()
    torch.set_num_threads(1)  # sums in one order: the seed gives the same weights again
    check_writable(options.out)
    model, processor, log = train()
    pocket.save(model, processor, options.out / "model")
    (options.out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    make_pairs(model, processor).to_parquet(options.out / "preferences.parquet")
    print(f"wrote {options.out}")


def train(stages=STAGES):
    """(model, processor, log): the log has the caption loss, and what was measured each epoch."""
    processor = pocket.build_processor()
    model = pocket.build_model(processor, SEED)
    log = {"stages": stages, "seed": SEED, "loss": [], "measured": []}
    began = time.time()
    for split, count, epochs, lr in stages:
        scenes = sample_scenes(count, split, "train")
        lessons = pocket.encode_conversations(processor, scenes, SEED)
        watch = watcher(model, processor, log, split, 2 * (count // BATCH))
        pocket.train_supervised(model, lessons, epochs, BATCH, lr, SEED, watch)
    log["seconds"] = round(time.time() - began)
    return model, processor, log


def watcher(model, processor, log, split, steps_per_epoch):
    """A callback that keeps the loss and, after each epoch, measures the captions."""

    def watch(step, loss):
        if step % 50 == 0:  # even steps are captions
            log["loss"].append({"stage": split, "step": step, "caption_loss": round(loss, 4)})
        if (step + 1) % steps_per_epoch == 0:
            row = {"stage": split, "epoch": len(log["measured"]) + 1}
            log["measured"].append(row | measure(model.eval(), processor))
            tqdm.write(json.dumps(log["measured"][-1]))
            model.train()

    return watch


def measure(model, processor, count=300):
    """Hal and Cover of captions of fresh training-part scenes, in percent."""
    row = {}
    for split in ("iid", "trap"):
        scenes = sample_scenes(count, split, "train", seed="measure")
        found = scene_hallucination(pocket.captions(model, processor, scenes), scenes)
        row[f"{split}_hal"] = round(100 * found.chair_s, 1)
        row[f"{split}_cover"] = round(100 * found.cover, 1)
    return row


def make_pairs(model, processor):
    """The preference pairs in the raw columns but the picture, which is drawn again when loaded."""
    parts = []
    for part, count in PAIR_SCENES.items():
        scenes = preference_scenes(count, seed=part)
        made = rank_own_samples(model, processor, scenes, seed=SEED)
        parts.append(made.remove_columns("image").add_column("part", [part] * len(made)))
    return concatenate_datasets(parts)


if __name__ == "__main__":
    main()
