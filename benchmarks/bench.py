"""Each thing beside what it beats: `make bench`. Writes benchmarks/results.md.

    python -m benchmarks.bench                           # all but the course
    python -m benchmarks.bench --only course             # the whole course, 1 round
    python -m benchmarks.bench --only dpo_17_tiles --rounds 5
    python -m benchmarks.bench --quick                   # every line in small; publishes nothing

Every case has a process of its own, so that one that fails or finds no memory does not end the
others. Its rounds are kept in runs/bench as they come: an interrupted benchmark goes on where it
was, and more --rounds are added to those that are there. benchmarks.harness says when they are
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
from benchmarks.harness import ROOT, Case, Record, from_a_child, rounds_of
from benchmarks.report import lines_of, publish
from helpers.setup.storage import Store

OUT, KEPT = ROOT / "benchmarks", ROOT / "runs" / "bench"
# What --quick changes, of the settings that a case has: sizes that take seconds.
SMALL = {"tiny": True, "pairs": 2, "items": 8, "alone": 2, "batch_size": 4, "memory": []}
SMALL |= {"arguments": ["--quick", "--only", "00"], "rows": 40, "slow_rows": 20}


def all_cases() -> list[Case]:
    """In the order of the table."""
    modules = (formatting, collator, dpo_step, generation, course)
    return [case for module in modules for case in module.cases()]


def in_small(case):
    """The case with sizes that take seconds, for trying every line."""
    changes = SMALL | ({"edge": 1024} if case.settings.get("edge") == 2048 else {})  # 5 tiles
    settings = {**case.settings, **{k: v for k, v in changes.items() if k in case.settings}}
    title = f"{case.title} (in small)"
    return replace(case, title=title, settings=settings, rounds=min(case.rounds, 2), seconds=4)


def command(case, quick):
    """The line that measures this case alone, in as many threads."""
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={threads} " if threads else ""
    small = " --quick" if quick else ""
    return f"{setting}python -m benchmarks.bench{small} --only {case.name} --rounds {case.rounds}"


def main(arguments: list[str] | None = None, cases: list[Case] | None = None) -> None:
    """Measure what `arguments` name of `cases` (default: all) and publish it."""
    options, cases = parse(arguments), cases or all_cases()
    kept = options.kept / "quick" if options.quick else options.kept
    out = options.out or (kept if options.quick else OUT)
    chosen, store = choose(cases, options), Store(kept)
    records = [Record(case, store) for case in chosen]
    both = list(zip(chosen, records, strict=True))
    missing = [(case, case.rounds - len(record.rounds)) for case, record in both]
    to_go = sum(case.seconds * (rounds + 1) for case, rounds in missing if rounds > 0)  # a warm-up
    try:
        with tqdm(total=to_go, bar_format="{l_bar}{bar}| {elapsed}, {remaining} left") as bar:
            for case, record in both:
                record.add(command=command(case, options.quick))
                measure(case, record, kept / f"{case.name}.log", bar)
                publish([record.found], out, [case.name for case in cases])
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. The rounds so far are in {kept}: the same command goes on there.")
    for record in records:
        for cells in lines_of(record.found):
            print("  ".join(cell for cell in cells if cell))
    print(f"\n{out / 'results.md'}")
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


def measure(case, record, log, bar):
    """The rounds of a case that are missing, in a process of its own, kept as they come."""
    have = len(record.rounds)
    if have >= case.rounds:
        return
    bar.set_description(case.name)
    record.add(failed="it was interrupted")
    with TemporaryDirectory(prefix="bench-") as folder:
        for found in from_a_child(rounds_of, case, have, folder, log=log):
            record.add(**found)
            bar.update(case.seconds)
    if len(record.rounds) >= case.rounds:
        record.add(failed=None)


if __name__ == "__main__":
    main()
