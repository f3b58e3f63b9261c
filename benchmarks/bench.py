"""Each thing beside what it beats: `make bench`. Writes benchmarks/results.md.

    python -m benchmarks.bench                           # all but the course
    python -m benchmarks.bench --only course             # the whole course, 1 round
    python -m benchmarks.bench --only dpo_17_tiles --rounds 5
    python -m benchmarks.bench --quick                   # every line in small; publishes nothing

Every case has a process of its own, so that one that fails or finds no memory does not end the
others. Its rounds are kept in runs/bench as they come: an interrupted benchmark goes on where it
was, and more --rounds are added to those that are there. benchmarks.records says when they are
measured anew. On a GPU the same cases run there, the DPO steps in 14.6 GiB of its memory.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm.auto import tqdm

from benchmarks import collator, course, dpo_step, formatting, generation
from benchmarks.child import told_by_a_child
from benchmarks.records import ROOT, Case, Record
from benchmarks.report import lines_of, publish

OUT, KEPT = ROOT / "benchmarks", ROOT / "runs" / "bench"
STEP = (
    "benchmarks/dpo_step.py", "benchmarks/rehearsal.py", "helpers/dpo/shared_images.py",
    "helpers/dpo/shared_prompt.py", "helpers/dpo/reference_cache.py", "helpers/dpo/trainer.py",
    "helpers/vlm/load.py", "helpers/vlm/smolvlm.py",
)  # fmt: skip
FORMAT = ("benchmarks/formatting.py", "helpers/pairs/format.py", "helpers/pairs/messages.py")
ANSWERS = ("benchmarks/generation.py", "helpers/vlm/answers.py")
COURSE = ("lessons/*.py", "helpers/**/*.py", "tools/run_course.py")
TILES = {"1_tile": {"edge": 512}, "17_tiles": {"edge": 2048}}


def all_cases():
    """In the order of the table. The seconds of a round are those of one core of an AMD EPYC."""
    steps = [*smolvlm_steps(), pocket_step()]
    return [*formats(), *collators(), *steps, *ways_to_answer(), whole_course()]


def formats():
    settings = {"rows": 5000, "slow_rows": 500}
    return [
        Case(
            name, f"Raw pairs to conversations, {what}", build, settings, FORMAT,
            rounds=5, seconds=15, unit="a pair",
        )
        for name, what, build in (
            ("formatting", "a dataset on disk", formatting.build),
            ("formatting_stream", "a stream", formatting.build_stream),
        )
    ]  # fmt: skip


def collators():
    settings = {"picture": [640, 640], "pairs": 2}
    return [
        Case(
            f"collator_{name}", f"Collator, {name.replace('_', ' ')}", collator.build,
            {**settings, **tiles}, ("benchmarks/collator.py", "helpers/dpo/shared_images.py"),
            rounds=9, seconds=2, unit="a pair",
        )
        for name, tiles in TILES.items()
    ]  # fmt: skip


def smolvlm_steps():
    taken = {"1_tile": (50, 60), "17_tiles": (600, 850)}  # checkpointing off, on
    return [
        Case(
            f"dpo_{name}{'_checkpointing' if on else ''}",
            f"DPO step, SmolVLM-256M, {name.replace('_', ' ')}, checkpointing {('off', 'on')[on]}",
            dpo_step.build,
            {**dpo_step.SMOLVLM, **tiles, "checkpointing": on},
            STEP, rounds=5 if name == "1_tile" else 3, seconds=taken[name][on], unit="a step",
        )
        for name, tiles in TILES.items()
        for on in (False, True)
    ]  # fmt: skip


def pocket_step():
    settings = {**dpo_step.POCKET, "checkpointing": False}
    title = "DPO step, pocket model, batch of 32"
    return Case("dpo_pocket", title, dpo_step.build, settings, STEP, 15, 3, "a step")


def ways_to_answer():
    settings = {"items": 1000, "alone": 200, "batch_size": 64}
    return [
        Case(
            kind, f"Pocket model, {what}", generation.build, {**settings, "kind": kind}, ANSWERS,
            rounds=5, seconds=25, unit="an answer",
        )
        for kind, what in (
            ("captions", "captions"),
            ("mixed", "captions and answers to probes"),
            ("probes", "probes"),
        )
    ]  # fmt: skip


def whole_course():
    sources = tuple(sorted(str(p.relative_to(ROOT)) for s in COURSE for p in ROOT.glob(s)))
    title = "`make course`, all lessons on the pocket track"
    return Case("course", title, course.build, {"arguments": []}, sources, 1, 900, "a course")


def in_small(case):
    """The case with sizes that take seconds, for trying every line."""
    changes = {"tiny": True, "pairs": 2, "items": 8, "alone": 2, "batch_size": 4}
    changes |= {"arguments": ["--quick", "--only", "00"], "rows": 40, "slow_rows": 20}
    if case.settings.get("edge") == 2048:
        changes["edge"] = 1024  # 5 tiles
    settings = {**case.settings, **{k: v for k, v in changes.items() if k in case.settings}}
    title = f"{case.title} (in small)"
    return replace(case, title=title, settings=settings, rounds=min(case.rounds, 2), seconds=4)


def command(case, quick):
    """The line that measures this case alone, in as many threads."""
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={threads} " if threads else ""
    small = " --quick" if quick else ""
    return f"{setting}python -m benchmarks.bench{small} --only {case.name} --rounds {case.rounds}"


# --- running -------------------------------------------------------------------------------


def main(arguments=None, cases=None):
    options = parse(arguments)
    chosen = choose(cases or all_cases(), options)
    kept = options.kept / "quick" if options.quick else options.kept
    out = options.out or (kept if options.quick else OUT)
    order = [case.name for case in cases or all_cases()]
    records = [Record(case, kept) for case in chosen]
    try:
        with progress_bar(chosen, records) as bar:
            for case, record in zip(chosen, records, strict=True):
                record.add(command=command(case, options.quick))
                measure(case, record, bar)
                publish([record.found], out, order)
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. The rounds so far are in {kept}: the same command goes on there.")
    print("\n".join(shown(record) for record in records), f"\n{out / 'results.md'}")
    failed = [record.found["name"] for record in records if record.found.get("failed")]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. Their output is in {kept}.")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases")
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--course", action="store_true", help="the whole course too")
    parser.add_argument("--quick", action="store_true", help="in small; publishes nothing")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where rounds are kept")
    parser.add_argument("--out", type=Path, help="the folder of results.md and results/")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least one")
    return options


def choose(cases, options):
    """The cases that the options name, in small if they say so."""
    names = [case.name for case in cases]
    unknown = set(options.only or ()) - set(names)
    if unknown:
        sys.exit(f"No case {', '.join(sorted(unknown))}: choose from {', '.join(names)}.")
    wanted = options.only or [n for n in names if n != "course" or options.course]
    chosen = [case for case in cases if case.name in wanted]
    chosen = [in_small(case) if options.quick else case for case in chosen]
    return [replace(case, rounds=options.rounds or case.rounds) for case in chosen]


def progress_bar(cases, records):
    """Over the expected seconds of the rounds to go, one more for each warm-up."""
    to_go = sum(
        case.seconds * (case.rounds - len(record.rounds) + 1)
        for case, record in zip(cases, records, strict=True)
        if len(record.rounds) < case.rounds
    )
    return tqdm(total=to_go, bar_format="{l_bar}{bar}| {elapsed}, {remaining} left")


def measure(case, record, bar):
    """The rounds of a case that are missing, in a process of its own, kept as they come."""
    have = len(record.rounds)
    if have >= case.rounds:
        return
    bar.set_description(case.name)
    record.add(failed="it was interrupted")
    with TemporaryDirectory(prefix="bench-") as folder:
        log = record.file.with_suffix(".log")
        for found in told_by_a_child(case, have, folder, log):
            record.add(**found)
            bar.update(case.seconds)
    if len(record.rounds) >= case.rounds:
        record.add(failed=None)


def shown(record):
    """The record's lines of the table, for the terminal."""
    cells = lines_of(record.found)
    return "\n".join("  ".join(cell for cell in line if cell) for line in cells)


if __name__ == "__main__":
    main()
