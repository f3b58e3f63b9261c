"""Train the pocket VLM from the seed, then make its preference pairs: all of data/pocket.

    python -m tools.train_pocket                      # about 15 minutes on 2 cores
    python -m tools.train_pocket --out runs/pocket    # elsewhere, to compare

Writes the checkpoint (model/), the log of its training (training_log.json) and the pairs
(preferences.parquet): the model's own sampled answers, ranked by the truth.
"""

import argparse
import json
import time
from pathlib import Path

from datasets import concatenate_datasets

from helpers import pocket, synthesis, world
from helpers.trainer import check_writable

SCENES, EPOCHS, BATCH, LEARNING_RATE, SEED = 12_000, 6, 24, 1e-3, 0
PAIR_SCENES = {"train": 1600, "test": 400}  # half of them traps


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=pocket.CHECKPOINT.parent)
    options.add_argument("--scenes", type=int, default=SCENES)
    options.add_argument("--epochs", type=int, default=EPOCHS)
    options = options.parse_args()
    check_writable(options.out)
    model, processor, log = train(options.scenes, options.epochs)
    pocket.save(model, processor, options.out / "model")
    (options.out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    make_pairs(model, processor).to_parquet(options.out / "preferences.parquet")
    print(f"wrote {options.out}")


def train(scene_count, epochs):
    """(model, processor, log): the log has the caption loss, and what was measured each epoch."""
    processor = pocket.build_processor()
    model = pocket.build_model(processor, SEED)
    lessons = pocket.encode_lessons(processor, world.sample_scenes(scene_count, part="train"), SEED)
    steps_per_epoch = 2 * (scene_count // BATCH)
    log = {"scenes": scene_count, "epochs": epochs, "seed": SEED, "loss": [], "measured": []}
    began = time.time()

    def watch(step, loss):
        if step % 50 == 0:
            log["loss"].append({"step": step, "caption_loss": round(loss, 4)})
        if (step + 1) % steps_per_epoch == 0:
            epoch = (step + 1) // steps_per_epoch
            log["measured"].append({"epoch": epoch, **measure(model.eval(), processor)})
            log["seconds"] = round(time.time() - began)
            print(json.dumps(log["measured"][-1]), flush=True)
            model.train()

    pocket.train_supervised(model, lessons, epochs, BATCH, LEARNING_RATE, SEED, watch)
    return model, processor, log


def measure(model, processor, count=300):
    """Hal and Cover of captions of fresh training-part scenes, in percent."""
    row = {}
    for split in ("iid", "trap"):
        scenes = world.sample_scenes(count, split, "train", seed="measure")
        found = pocket.hallucinations(pocket.captions(model, processor, scenes), scenes)
        row[f"{split}_hal"] = round(100 * found.chair_s, 1)
        row[f"{split}_cover"] = round(100 * found.cover, 1)
    return row


def make_pairs(model, processor):
    """The preference pairs in the raw columns but the picture, which is drawn again when loaded."""
    parts = []
    for part, count in PAIR_SCENES.items():
        scenes = synthesis.preference_scenes(count, seed=part)
        made = synthesis.rank_own_samples(model, processor, scenes, seed=SEED)
        parts.append(made.remove_columns("image").add_column("part", [part] * len(made)))
    return concatenate_datasets(parts)


if __name__ == "__main__":
    main()
