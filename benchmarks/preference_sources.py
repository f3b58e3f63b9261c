"""What does each source of preference pairs teach? The same training on pairs of each, measured.

    OMP_NUM_THREADS=1 python -m benchmarks.preference_sources               # every source, 3 seeds
    python -m benchmarks.preference_sources --seeds 0 --sources truth blind noise --lr 8e-5

All sources ask about the same scenes of a seed, and those that rank samples rank the very same
samples. Each run trains a new adapter on as many pairs, in as many steps, as the others; counted
facts differ too seldom for that and give fewer, as `pairs` says. All of it is done at two learning
rates: the pocket track's, and five times that. Everything is measured on the same fresh scenes, in
percent:

    trap_hal, iid_hal      captions that name something that is not there
    trap_cover, iid_cover  of what is there, what captions name
    probes, tempting       right answers to POPE's questions, random and adversarial
    yes                    answers "yes" to the random ones, of which half are true
    words                  words in a caption (iid)
    right                  pairs whose chosen answer has fewer false and missed phrases

A finished run's figures are kept in runs/preference_sources: a benchmark that was killed goes on
with the run it was in. Writes benchmarks/results/preference_sources.json.
"""

import argparse
import functools
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers.utils import logging

from benchmarks.records import code, digest, write
from benchmarks.side_by_side import hardware, versions
from helpers.dpo.checkpoints import trained
from helpers.dpo.trainer import dpo_trainer
from helpers.evaluation.metrics import scene_hallucination, yes_no
from helpers.feedback import sources as make
from helpers.feedback.pairing import best_worst, rlaifv_pairs
from helpers.feedback.pocket_stages import PocketFactCount, likes_length, tells_truth
from helpers.pairs.check import require_sound
from helpers.pairs.format import to_conversational
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.answers import yes_no_answers
from helpers.vlm.load import model_digest
from helpers.world.scenes import draw, probes, sample_scenes

RESULTS = Path(__file__).parent / "results" / "preference_sources.json"
KEPT = Path("runs/preference_sources")
FIGURES = ("trap_hal", "trap_cover", "iid_hal", "iid_cover", "probes", "tempting", "yes", "words")
SHOWN = 6  # captions of each split that are kept beside the figures
SILENT = tqdm(disable=True)


@dataclass(frozen=True)
class Source:
    """`pairs` of a `Material`, in raw columns, and the loss that is trained on them."""

    title: str
    pairs: Callable
    loss: tuple[str, ...] = ("sigmoid",)


class Material:
    """What the sources of one seed are made from: the base, scenes, and its samples about them."""

    def __init__(self, options, seed):
        self.model, self.processor = pocket.load()
        self.scenes = make.preference_scenes(options.scenes, seed=f"benchmark-{seed}")
        self.count, self.seed = options.pairs, seed

    @functools.cached_property
    def said(self):
        return make.own_answers(self.model, self.processor, self.scenes, seed=self.seed, bar=SILENT)

    @functools.cached_property
    def by_truth(self):
        return self.ranked(tells_truth)

    @property
    def facts(self):
        return PocketFactCount(self.model, self.processor)

    def ranked(self, reward, rule=best_worst):
        return make.ranked(self.scenes, self.said, reward, rule)


SOURCES = {
    "truth": Source("own samples, ranked by the truth", lambda m: m.by_truth),
    "control": Source("supervised on their chosen", lambda m: m.by_truth, ("sft",)),
    "chair": Source("own samples, ranked by CHAIR", lambda m: m.ranked(make.fewest_false)),
    "facts": Source("own samples, facts counted", lambda m: m.ranked(m.facts)),
    "rlaif-v": Source("the same, RLAIF-V's rule", lambda m: m.ranked(m.facts, rlaifv_pairs)),
    "unbalanced": Source(
        "that rule without its length balance",
        lambda m: m.ranked(m.facts, functools.partial(rlaifv_pairs, balance=False)),
    ),
    "blind": Source("own samples, ranked blind by length", lambda m: m.ranked(likes_length)),
    "noise": Source(
        "answer to a noised picture",
        lambda m: make.noised_pictures(m.model, m.processor, m.scenes, seed=m.seed, bar=SILENT),
    ),
    "inject": Source("injected in the truth", lambda m: make.injected_in_truth(m.scenes, m.seed)),
    "inject-sft": Source(
        "the same plus sft",
        lambda m: make.injected_in_truth(m.scenes, m.seed),
        ("sigmoid", "sft"),
    ),
    "inject-own": Source(
        "injected in its own answer",
        lambda m: make.injected_in_own(m.model, m.processor, m.scenes, m.seed, bar=SILENT),
    ),
    "no": Source("yes/no, always No", lambda m: make.always_no(m.scenes, m.seed)),
    "yes-no": Source("yes/no, balanced", lambda m: make.balanced_yes_no(m.scenes, m.seed)),
    "mixed": Source(
        "half captions (truth), half yes/no",
        lambda m: make.mixed(
            few(m.by_truth, m.count // 2),
            few(make.balanced_yes_no(m.scenes, m.seed), m.count // 2),
            seed=m.seed,
        ),
    ),
}


def few(pairs, count):
    return pairs.select(range(min(count, len(pairs))))


# --- runs ----------------------------------------------------------------------------------


def main():
    options = parse()
    datasets.disable_progress_bars()  # the runs have the one bar
    logging.disable_progress_bar()
    rows = run(options)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.preference_sources", *sys.argv[1:]]),
        "machine": hardware(),
        "versions": versions(),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows)),
        "rows": rows,
    }
    write(options.out, report)
    print(table(rows))


def parse():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    options.add_argument("--scenes", type=int, default=2600, help="to make pairs about")
    options.add_argument("--pairs", type=int, default=1280, help="trained on, at most")
    rate = choose("pocket").learning_rate
    options.add_argument("--lr", type=float, nargs="+", default=[rate, 5 * rate])
    options.add_argument("--test-scenes", type=int, default=500, help="of each split")
    options.add_argument("--kept", type=Path, default=KEPT, help="figures of finished runs")
    options.add_argument("--out", type=Path, default=RESULTS)
    return options.parse_args()


def run(options):
    """A row of figures for the base, and for each source of each seed."""
    model, processor = pocket.load()
    folders = {lr: options.kept / identity(model, options, lr) for lr in options.lr}
    material = functools.cache(lambda seed: Material(options, seed))
    runs = list(itertools.product(options.lr, options.seeds, options.sources))
    with tqdm(total=1 + len(runs), desc="runs", unit="run") as bar:
        base = functools.partial(base_row, model, processor, options)
        rows = [{"lr": None, **kept(folders[options.lr[0]] / "base.json", base, bar)}]
        for lr, seed, name in runs:
            one = functools.partial(source_row, name, material, seed, lr, options, folders[lr])
            rows.append({"lr": lr, **kept(folders[lr] / f"{name}-{seed}.json", one, bar)})
    return rows


def identity(model, options, lr):
    """A name for all that a run's figures hang on but its source and seed."""
    sizes = options.scenes, options.pairs, options.test_scenes, lr
    return digest([sizes, versions(), model_digest(model), code(Path(make.__file__))])[:12]


def kept(file, make_row, bar):
    """The row in `file`; else it is made and written there."""
    bar.set_postfix_str(file.stem)
    if not file.exists():
        write(file, make_row())
    bar.update()
    return json.loads(file.read_text(encoding="utf-8"))


def base_row(model, processor, options):
    began = time.process_time()
    figures = measure(model, processor, options.test_scenes)
    return {"source": "base", "title": "base", "seed": None, **figures, **took(began)}


def source_row(name, material, seed, lr, options, folder):
    began, source, material = time.process_time(), SOURCES[name], material(seed)
    pairs = few(source.pairs(material), options.pairs)
    base, processor = pocket.load()
    trainer = dpo_trainer(
        base, processor, require_sound(to_conversational(pairs)), choose("pocket"),
        folder / f"{name}-{seed}", loss_type=list(source.loss), seed=seed,
        learning_rate=lr, disable_tqdm=True,
    )  # fmt: skip
    model = trained(trainer)
    return {
        "source": name,
        "title": source.title,
        "seed": seed,
        **about_pairs(pairs),
        "steps": len(trainer.get_train_dataloader()),
        **measure(model, processor, options.test_scenes),
        **took(began),
    }


def took(began):
    """Of CPU, not of a clock on the wall: what a neighbour had of the core is left out."""
    return {"cpu_seconds": round(time.process_time() - began, 1)}


def about_pairs(pairs):
    """How many, how long, and in what share of them the truth agrees with the preference."""
    known = [json.loads(about) for about in pairs["origin_split"]]
    errors = [
        [sum(about[f"{side}_false_missed"]) for side in ("chosen", "rejected")]
        for about in known
        if "chosen_false_missed" in about
    ]
    yes_no_pairs = len(known) - len(errors)  # their chosen answer is true
    right = yes_no_pairs + sum(chosen < rejected for chosen, rejected in errors)
    words = {f"{s}_words": mean_words(pairs[s]) for s in ("chosen", "rejected")}
    return {"pairs": len(pairs), "right": percent(right / len(pairs)), **words}


# --- figures -------------------------------------------------------------------------------


def measure(model, processor, count):
    """Figures on `count` test scenes of each split, the same scenes for every model, and what the
    model says about the first of each."""
    figures, first = {}, {}
    for split in ("trap", "iid"):
        scenes = sample_scenes(count, split, "test", seed="benchmark")
        texts = pocket.captions(model, processor, scenes, bar=SILENT)
        found = scene_hallucination(texts, scenes)
        figures |= {f"{split}_hal": percent(found.chair_s), f"{split}_cover": percent(found.cover)}
        figures["words"], first[split] = mean_words(texts), texts[:SHOWN]
    for name, negatives in (("probes", "random"), ("tempting", "adversarial")):
        found = probed(model, processor, scenes[: count // 2], negatives)
        figures[name] = percent(found.accuracy)
        figures.setdefault("yes", percent(found.yes_ratio))
    return {**figures, "says": first}


def probed(model, processor, scenes, negatives):
    """`metrics.yes_no` of the existence questions about scenes."""
    asked = [(s, p) for s in scenes for p in probes(s, negatives) if p.kind == "existence"]
    pictures, questions = [draw(s) for s, _ in asked], [p.question for _, p in asked]
    said = yes_no_answers(model, processor, pictures, questions, bar=SILENT)
    return yes_no(said, [probe.answer for _, probe in asked])


def mean_words(texts):
    return round(float(np.mean([len(text.split()) for text in texts])), 1)


def percent(share):
    return round(100 * float(share), 1)


def table(rows):
    """A block of lines for each learning rate."""
    base = [row for row in rows if row["lr"] is None]
    rates = dict.fromkeys(row["lr"] for row in rows if row["lr"] is not None)
    blocks = ([*base, *(row for row in rows if row["lr"] == lr)] for lr in rates)
    return "\n\n".join(frame(block).to_string() for block in blocks)


def frame(rows):
    """Rows of one learning rate: a line for each source, the mean±sample standard deviation over
    the seeds."""
    shown = ("pairs", "right", "trap_hal", "trap_cover", "iid_cover", "probes", "yes", "words")
    lines = {}
    for title in dict.fromkeys(row["title"] for row in rows):
        found = [row for row in rows if row["title"] == title]
        lines[title] = {name: cell([row.get(name) for row in found]) for name in shown}
    table = pd.DataFrame(lines).T
    table.columns.name = f"learning rate {max(row['lr'] or 0 for row in rows):.0e}"
    return table


def cell(values):
    if None in values:
        return ""
    if len(values) == 1 or isinstance(values[0], int):
        return f"{np.mean(values):.4g}"
    return f"{np.mean(values):.1f}±{np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    main()
