"""Does DPO help on the pocket track? Base, supervised control and DPO over several seeds.

    python -m benchmarks.pocket_dpo                     # seeds 0 1 2, about 5 minutes on 2 cores
    python -m benchmarks.pocket_dpo --seeds 0 --lr 1e-3

Each seed samples its own preference pairs from the base, trains its own adapters, and is measured
on the same fresh scenes. The control is trained on the chosen answers alone, with the same pairs,
adapter, batches and steps. Writes benchmarks/results/pocket_dpo.json.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import RESULTS, hardware, versions, write_rows
from helpers.dpo.trainer import dpo_trainer
from helpers.evaluation.metrics import scene_hallucination, yes_no
from helpers.feedback.sources import preference_scenes, rank_own_samples
from helpers.pairs.format import to_conversational
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.answers import yes_no_answers
from helpers.world.scenes import NEGATIVES, draw, probes, sample_scenes

METHODS = {"DPO": ["sigmoid"], "supervised on chosen": ["sft"]}
COLUMNS = ("trap_hal", "trap_cover", "iid_hal", "iid_cover", "probes_random")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--lr", type=float, default=choose("pocket").learning_rate)
    options.add_argument("--epochs", type=float, default=choose("pocket").epochs)
    options.add_argument("--scenes", type=int, default=1600, help="preference scenes")
    options.add_argument("--test-scenes", type=int, default=1000, help="of each distribution")
    options.add_argument("--model", type=Path, default=pocket.CHECKPOINT)
    options.add_argument("--out", type=Path, default=RESULTS / "pocket_dpo.json")
    options = options.parse_args()
    rows = run(options)
    command = f"python -m benchmarks.pocket_dpo --seeds {' '.join(map(str, options.seeds))}"
    write_rows(options.out, rows, command=command, machine=hardware(), versions=versions())
    print(table(rows))


def run(options):
    model, processor = pocket.load(options.model)
    rows = [{"method": "base", "seed": None, **measure(model, processor, options.test_scenes)}]
    print(rows[0], flush=True)
    for seed in options.seeds:
        scenes = preference_scenes(options.scenes, seed=f"benchmark-{seed}")
        pairs = to_conversational(rank_own_samples(model, processor, scenes, seed=seed))
        for method, loss in METHODS.items():
            base, _ = pocket.load(options.model)
            began = time.time()
            tuned = tune(base, processor, pairs, loss, seed, options)
            seconds = round(time.time() - began, 1)
            row = {"method": method, "seed": seed, "pairs": len(pairs), "seconds": seconds}
            rows.append({**row, **measure(tuned, processor, options.test_scenes)})
            print(rows[-1], flush=True)
    return rows


def tune(model, processor, pairs, loss, seed, options):
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(
            model, processor, pairs, choose("pocket"), folder, loss_type=loss, seed=seed,
            learning_rate=options.lr, num_train_epochs=options.epochs,
            disable_tqdm=True, logging_strategy="no", save_strategy="no",
        )  # fmt: skip
        trainer.train()
    return trainer.model.eval()


# --- figures, also of benchmarks.preference_sources ------------------------------------------


def measure(model, processor, count):
    """Percent, on `count` test scenes of each distribution; the same scenes for every model."""
    row = {}
    for name in ("iid", "trap", "pair"):
        _, texts, found = captioned(model, processor, name, count)
        row[f"{name}_hal"], row[f"{name}_cover"] = percent(found.chair_s), percent(found.cover)
        row[f"{name}_words"] = mean_words(texts)
    scenes = sample_scenes(count // 4, "iid", "test", seed="benchmark")
    for negatives in NEGATIVES:
        row[f"probes_{negatives}"] = percent(probed(model, processor, scenes, negatives).accuracy)
    return row


def captioned(model, processor, distribution, count, bar=None):
    """(scenes, the model's captions of them, their hallucination metrics)"""
    scenes = sample_scenes(count, distribution, "test", seed="benchmark")
    texts = pocket.captions(model, processor, scenes, bar=bar)
    return scenes, texts, scene_hallucination(texts, scenes)


def probed(model, processor, scenes, negatives, bar=None):
    """`metrics.yes_no` of the existence questions about scenes."""
    asked = [(s, p) for s in scenes for p in probes(s, negatives) if p.kind == "existence"]
    pictures, questions = [draw(s) for s, _ in asked], [p.question for _, p in asked]
    said = yes_no_answers(model, processor, pictures, questions, bar=bar)
    return yes_no(said, [probe.answer for _, probe in asked])


def mean_words(texts):
    return round(float(np.mean([len(text.split()) for text in texts])), 1)


def percent(share):
    return round(100 * float(share), 1)


def table(rows, columns=COLUMNS, by="method", label="method", ddof=0, width=16):
    """Mean and standard deviation over seeds, a line for each value of the column `by`."""
    names = list(dict.fromkeys(row[by] for row in rows))
    wide = max(24, *(len(name) + 1 for name in names))
    lines = [label.ljust(wide) + "".join(name.rjust(width) for name in columns)]
    for name in names:
        same = [row for row in rows if row[by] == name]
        cells = (cell([row.get(column) for row in same], ddof) for column in columns)
        lines.append(name.ljust(wide) + "".join(text.rjust(width) for text in cells))
    return "\n".join(lines)


def cell(values, ddof):
    if None in values:
        return ""
    spread = f" ± {np.std(values, ddof=ddof):.1f}" if len(values) > ddof else ""
    return f"{np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
