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
from tqdm.auto import tqdm
from transformers.utils import logging

from benchmarks.harness import RESULTS, code_of, hardware, versions, write_rows
from benchmarks.pocket_dpo import captioned, mean_words, percent, probed
from benchmarks.pocket_dpo import table as table_of
from helpers.dpo.checkpoints import trained
from helpers.dpo.trainer import dpo_trainer
from helpers.feedback import sources as make
from helpers.feedback.pairing import best_worst, rlaifv_pairs
from helpers.feedback.pocket_stages import PocketFactCount, likes_length, tells_truth
from helpers.pairs.check import require_sound
from helpers.pairs.format import to_conversational
from helpers.setup.storage import Store, key_of
from helpers.setup.tracks import choose
from helpers.vlm import pocket
from helpers.vlm.load import model_digest

KEPT = Path("runs/preference_sources")
FIGURES = ("trap_hal", "trap_cover", "iid_hal", "iid_cover", "probes", "tempting", "yes", "words")
SHOWN = 6  # captions of each distribution that are kept beside the figures
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
    command = shlex.join(["python", "-m", "benchmarks.preference_sources", *sys.argv[1:]])
    spent = round(sum(row["cpu_seconds"] for row in rows))
    about = {"machine": hardware(), "versions": versions(), "cpu_seconds": spent}
    write_rows(options.out, rows, command=command, **about)
    print(table(rows))


def parse():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    options.add_argument("--scenes", type=int, default=2600, help="to make pairs about")
    options.add_argument("--pairs", type=int, default=1280, help="trained on, at most")
    rate = choose("pocket").learning_rate
    options.add_argument("--lr", type=float, nargs="+", default=[rate, 5 * rate])
    options.add_argument("--test-scenes", type=int, default=500, help="of each distribution")
    options.add_argument("--kept", type=Path, default=KEPT, help="figures of finished runs")
    options.add_argument("--out", type=Path, default=RESULTS / "preference_sources.json")
    return options.parse_args()


def run(options):
    """A row of figures for the base, and for each source of each seed; finished ones are kept."""
    model, processor = pocket.load()
    store, material = Store(options.kept), functools.cache(lambda seed: Material(options, seed))
    sizes = options.scenes, options.pairs, options.test_scenes
    about = sizes, versions(), model_digest(model), code_of("helpers/feedback/*.py")
    runs = list(itertools.product(options.lr, options.seeds, options.sources))
    rows = []
    for lr, seed, name in tqdm([(None, None, "base"), *runs], "runs", unit="run"):
        key = key_of(about, lr, seed, name)
        if key not in store:
            began = time.process_time()  # not the wall's: what a neighbour had of the core is out
            if name == "base":
                row = {"source": name, "title": name, "seed": None}
                row |= measure(model, processor, options.test_scenes)
            else:
                folder = options.kept / f"{name}-{key[:12]}"
                row = source_row(name, material, seed, lr, options, folder)
            seconds = round(time.process_time() - began, 1)
            store.add({key: {"lr": lr, **row, "cpu_seconds": seconds}})
        rows.append(store[key])
    return rows


def source_row(name, material, seed, lr, options, folder):
    """Train a new adapter on a source's pairs; what is known of the pairs, and the figures."""
    source = SOURCES[name]
    pairs = few(source.pairs(material(seed)), options.pairs)
    base, processor = pocket.load()
    trainer = dpo_trainer(
        base, processor, require_sound(to_conversational(pairs)), choose("pocket"), folder,
        loss_type=list(source.loss), seed=seed, learning_rate=lr, disable_tqdm=True,
    )  # fmt: skip
    model = trained(trainer)
    row = {"source": name, "title": source.title, "seed": seed, **about_pairs(pairs)}
    row["steps"] = len(trainer.get_train_dataloader())
    return row | measure(model, processor, options.test_scenes)


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
    """Figures on `count` test scenes of each distribution, the same scenes for every model, and
    what the model says about the first of each."""
    figures, first = {}, {}
    for name in ("trap", "iid"):
        scenes, texts, found = captioned(model, processor, name, count, SILENT)
        figures |= {f"{name}_hal": percent(found.chair_s), f"{name}_cover": percent(found.cover)}
        figures["words"], first[name] = mean_words(texts), texts[:SHOWN]
    for name, negatives in (("probes", "random"), ("tempting", "adversarial")):
        found = probed(model, processor, scenes[: count // 2], negatives, SILENT)
        figures[name] = percent(found.accuracy)
        figures.setdefault("yes", percent(found.yes_ratio))
    return {**figures, "says": first}


def table(rows):
    """A block of lines for each learning rate; the sample standard deviation over the seeds."""
    columns = ("pairs", "right", "trap_hal", "trap_cover", "iid_cover", "probes", "yes", "words")
    rates = dict.fromkeys(row["lr"] for row in rows if row["lr"] is not None)
    blocks = {lr: [row for row in rows if row["lr"] in (None, lr)] for lr in rates}
    return "\n\n".join(
        table_of(block, columns, "title", f"learning rate {lr:.0e}", ddof=1, width=13)
        for lr, block in blocks.items()
    )


if __name__ == "__main__":
    main()
