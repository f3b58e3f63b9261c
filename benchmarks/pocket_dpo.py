"""Does DPO help on the pocket track? Base, supervised control and DPO over several seeds.

    python -m benchmarks.pocket_dpo                     # seeds 0 1 2, about 5 minutes on 2 cores
    python -m benchmarks.pocket_dpo --seeds 0 --lr 1e-3

Each seed samples its own preference pairs from the base, trains its own adapters, and is measured
on the same fresh scenes. The control is trained on the chosen answers alone, with the same pairs,
adapter, batches and steps. Writes benchmarks/results/pocket_dpo.json.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from helpers.dpo.trainer import dpo_trainer
from helpers.evaluation.metrics import scene_hallucination, yes_no
from helpers.feedback.sources import preference_scenes, rank_own_samples
from helpers.pairs.format import to_conversational
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.answers import yes_no_answers
from helpers.world.scenes import NEGATIVES, draw, probes, sample_scenes

RESULTS = Path(__file__).parent / "results" / "pocket_dpo.json"
METHODS = {"DPO": ["sigmoid"], "supervised on chosen": ["sft"]}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--lr", type=float, default=choose("pocket").learning_rate)
    options.add_argument("--epochs", type=float, default=choose("pocket").epochs)
    options.add_argument("--scenes", type=int, default=1600, help="preference scenes")
    options.add_argument("--test-scenes", type=int, default=1000, help="of each split")
    options.add_argument("--model", type=Path, default=pocket.CHECKPOINT)
    options.add_argument("--out", type=Path, default=RESULTS)
    options = options.parse_args()
    rows = run(options)
    report = {
        "command": f"python -m benchmarks.pocket_dpo --seeds {' '.join(map(str, options.seeds))}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.__version__}",
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(table(rows))


def run(options):
    model, processor = pocket.load(options.model)
    rows = [{"method": "base", "seed": None, **measure(model, processor, options.test_scenes)}]
    print(rows[0], flush=True)
    for seed in options.seeds:
        pairs = sample_pairs(model, processor, options.scenes, seed)
        for method, loss in METHODS.items():
            base, _ = pocket.load(options.model)
            began = time.time()
            tuned = tune(base, processor, pairs, loss, seed, options)
            seconds = round(time.time() - began, 1)
            row = {"method": method, "seed": seed, "pairs": len(pairs), "seconds": seconds}
            rows.append({**row, **measure(tuned, processor, options.test_scenes)})
            print(rows[-1], flush=True)
    return rows


def sample_pairs(model, processor, count, seed):
    scenes = preference_scenes(count, seed=f"benchmark-{seed}")
    return to_conversational(rank_own_samples(model, processor, scenes, seed=seed))


def tune(model, processor, pairs, loss, seed, options):
    changes = {"learning_rate": options.lr, "num_train_epochs": options.epochs}
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(
            model, processor, pairs, choose("pocket"), folder, loss_type=loss, seed=seed,
            disable_tqdm=True, logging_strategy="no", save_strategy="no", **changes,
        )  # fmt: skip
        trainer.train()
    return trainer.model.eval()


def measure(model, processor, count):
    """Percent, on `count` test scenes of each split; the same scenes for every model."""
    row = {}
    for split in ("iid", "trap", "pair"):
        scenes = sample_scenes(count, split, "test", seed="benchmark")
        texts = pocket.captions(model, processor, scenes)
        found = scene_hallucination(texts, scenes)
        row[f"{split}_hal"], row[f"{split}_cover"] = 100 * found.chair_s, 100 * found.cover
        row[f"{split}_words"] = np.mean([len(text.split()) for text in texts])
    for negatives in NEGATIVES:
        row[f"probes_{negatives}"] = 100 * probe_accuracy(model, processor, negatives, count // 4)
    return {name: round(float(value), 1) for name, value in row.items()}


def probe_accuracy(model, processor, negatives, count):
    scenes = sample_scenes(count, "iid", "test", seed="benchmark")
    asked = [
        (scene, probe)
        for scene in scenes
        for probe in probes(scene, negatives)
        if probe.kind == "existence"
    ]
    pictures = [draw(scene) for scene, _ in asked]
    answers = yes_no_answers(model, processor, pictures, [p.question for _, p in asked])
    return yes_no(answers, [p.answer for _, p in asked]).accuracy


def table(rows):
    """Mean and standard deviation over seeds, one line a method."""
    columns = ("trap_hal", "trap_cover", "iid_hal", "iid_cover", "probes_random")
    lines = ["method".ljust(24) + "".join(name.rjust(16) for name in columns)]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for name in columns:
            values = [row[name] for row in rows if row["method"] == method]
            cells.append(f"{np.mean(values):.1f} ± {np.std(values):.1f}".rjust(16))
        lines.append(method.ljust(24) + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
