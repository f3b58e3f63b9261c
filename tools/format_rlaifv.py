"""RLAIF-V made ready for TRL: load, format, split, save, and push to the Hub under your name.

    python -m tools.format_rlaifv --count 1000               # of one shard, to runs/rlaif-v
    python -m tools.format_rlaifv --push me/rlaif-v          # all of it, more than 11 GB

TRL has a script for this, examples/datasets/rlaif-v.py. Two things differ here. Images keep their
bytes: decoding and writing them again, as there, changes their pixels. And the split is by image:
RLAIF-V has several questions about one picture, and a split by rows tests on pictures that were
trained on. Before anything is written every row is checked, each picture decoded to its end; a row
that no training can use stops the tool, which names it.
"""

import argparse
import sys
from pathlib import Path

from datasets import load_dataset

from helpers.dpo.publish import (
    Data,
    PublishError,
    dataset_card,
    push_pairs,
    require_login,
    require_ours,
    write_pairs,
)
from helpers.pairs.check import require_sound
from helpers.pairs.format import to_conversational
from helpers.pairs.load import split_by_image
from helpers.pairs.rlaifv import find_source, hub_pairs, named, source_of
from helpers.setup.hub import ask
from helpers.setup.storage import PreferenceDataError

ROOT = Path(__file__).resolve().parent.parent
NAME = "openbmb/RLAIF-V-Dataset"


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m tools.format_rlaifv",
        description="Make RLAIF-V ready for TRL: load, format, split by image, save, push.",
        epilog="RLAIF-V is CC-BY-NC-4.0: not for commercial use, and neither is what you push.",
    )
    add = parser.add_argument
    add("--dataset", default=NAME, help="a Hub dataset or a folder of parquet files, raw columns")
    add("--count", type=positive, help="only so many pairs, of one shard, shuffled (default: all)")
    add("--seed", type=int, default=0, help="of the shuffle and of the split (default: 0)")
    add("--test-share", type=share, default=0.01, help="share of the rows to hold out (0.01)")
    add("--workers", type=positive, help="processes that format (default: this one)")
    add("--out", type=Path, default=ROOT / "runs" / "rlaif-v", help="where to save (runs/rlaif-v)")
    add("--push", metavar="OWNER/NAME", help="push to this dataset on the Hub; log in first")
    add("--drop", action="store_true", help="leave out rows that are not sound (default: stop)")
    add("--public", action="store_true", help="with --push: a new repository for everybody")
    return parser.parse_args(arguments)


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def share(text):
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1, such as 0.01")
    return float(text)


def check(options):
    """Stop now for what would stop us after hours of work."""
    if options.push:
        require_login(options.push)
    out = options.out.resolve()
    if Path(options.dataset).resolve() in (out, out / "data"):
        raise PublishError(f"--out {options.out} holds the dataset itself: choose another folder")
    require_ours(options.out)


def load(options):
    """The raw pairs and the `Source` they come from."""
    name = options.dataset
    if options.count:
        pairs = hub_pairs(name, "train", options.count, options.seed)
        return pairs, source_of(name)
    source = find_source(name)
    revision = None if Path(name).is_dir() else source.revision
    pairs = ask(lambda: load_dataset(**named(name), split="train", revision=revision), name)
    return pairs, source


def described(options, source, train, test):
    """The card; of a local folder only its name goes on it."""
    local = Path(options.dataset).is_dir()
    data = Data(
        name=Path(options.dataset).resolve().name if local else options.dataset,
        revision=None if local else source.revision,
        licence=source.licence,
        train=len(train),
        test=len(test),
    )
    how = f"by image, no picture is on both sides (share {options.test_share}, seed {options.seed})"
    return dataset_card(options.push or f"me/{options.out.name}", data, how)


def sound(pairs, drop):
    """The pairs, without their unsound rows if these may be dropped; else stops at them."""
    try:
        return require_sound(pairs)
    except PreferenceDataError as error:
        bad = {problem.row for problem in error.problems}
        if not drop or None in bad:  # None: the whole dataset is wrong
            raise
        print(f"leaving out {len(bad)} of {len(pairs)} rows:\n{error}")
        return pairs.select([row for row in range(len(pairs)) if row not in bad])


def main(arguments=None):
    options = parse(arguments)
    try:
        check(options)
        raw, source = load(options)
        pairs = sound(to_conversational(raw, num_proc=options.workers), options.drop)
        train, test = split_by_image(pairs, options.test_share, options.seed)
        card = described(options, source, train, test)
        write_pairs({"train": train, "test": test}, options.out, card)
        print(f"{len(train)} pairs for training and {len(test)} for testing are in {options.out}")
        if options.push:
            print(push_pairs(options.out, options.push, private=not options.public))
    except (PreferenceDataError, PublishError, ValueError, OSError) as error:
        sys.exit(f"Stopped: {error}")


if __name__ == "__main__":
    main()
