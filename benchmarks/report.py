"""benchmarks/results.md from the records of benchmarks.bench: one table for each machine.

    publish(records, "benchmarks")      # results/bench.json, and results.md from all of them
    print(page([rows]))

Everything in the page is computed from the rounds in the JSON files, each time anew.
"""

import re
from pathlib import Path
from statistics import median

import torch

from benchmarks.harness import (
    CLOCKS,
    read_rows,
    seconds,
    spread,
    steady_clock,
    times_as_fast,
    write_rows,
)

INTRODUCTION = """\
# Side by side

Written by `make bench`; every figure is computed from the rounds in
`benchmarks/results/bench*.json`. In each round all sides of a row run in turn, in one process and
every other time in reverse order, and a ratio compares times of the same round. Shown are medians
and [lowest, highest] over the rounds. *Times as fast* is against the first side, by the clock on
the wall and by CPU time, which leaves out what other programs had of the core (on a GPU only the
wall counts).

*Peak* is the memory of a whole training step, its optimizer included: weights, batch, and the most
that torch's allocator had handed out at a time. *Least work* is the floating-point work that cannot
be avoided, by the formulas in `benchmarks/flops.py`, which say what is counted; *reached* is the
share of the machine's peak that it would make of the time taken. The peak is the best product of
two large matrices that was seen in the rounds, and stands below the table. Formatting moves bytes:
it has no floating-point work, and neither that of the whole course nor memory was counted where a
cell is empty.
"""
COLUMNS = (
    "", "side", "seconds", "times as fast", "by CPU time", "peak, GB", "least work, GFLOP",
    "reached",
)  # fmt: skip


def publish(records: list[dict], folder: Path | str, order: list[str]) -> None:
    """Merge records (dictionaries) into the file of this machine's kind, and write results.md.

    A row of the same name is replaced, unless the new one failed. `order`: names, as in the table.
    """
    results = Path(folder) / "results"
    file = results / file_name()
    rows = {row["name"]: row for row in read_rows(file)}
    for record in records:
        if record["rounds"] or record["name"] not in rows:
            rows[record["name"]] = record
    known = [name for name in order if name in rows]
    known += [name for name in rows if name not in order]
    write_rows(file, [rows[name] for name in known])
    text = page([read_rows(found) for found in sorted(results.glob("bench*.json"))])
    (Path(folder) / "results.md").write_text(text, encoding="utf-8")


def file_name() -> str:
    """bench.json for a CPU; a GPU has its name in that of its file."""
    if not torch.cuda.is_available():
        return "bench.json"
    return f"bench_{re.sub('[^a-z0-9]+', '_', torch.cuda.get_device_name().lower())}.json"


def page(files: list[list[dict]]) -> str:
    """The text of results.md for lists of rows, one list a file."""
    parts = [INTRODUCTION]
    for rows in files:
        for about in dict.fromkeys(heading(row) for row in rows):
            same = [row for row in rows if heading(row) == about]
            parts += [about, table(same), "\n".join(f"- {footnote(row)}" for row in same) + "\n"]
    return "\n".join(parts)


def heading(row):
    found = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"## {row['machine']}\n\n{found}\n"


def table(rows):
    lines = [COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)]
    lines += [cells for row in rows for cells in lines_of(row)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def lines_of(row):
    """The cells of a row's sides; of each once more with its batch, where that was timed."""
    if not row["rounds"]:
        return [[row["title"], f"**failed**: {row['failed']}", *[""] * (len(COLUMNS) - 2)]]
    sides = row["sides"]
    found = [cells_of(row, side, prepared=False) for side in sides]
    if "prepare" in row["rounds"][0][sides[0]]:
        found += [cells_of(row, side, prepared=True) for side in sides]
    found[0] = [f"{row['title']}, {row['unit']}", *found[0][1:]]
    return found


def cells_of(row, side, prepared):
    rounds, base = row["rounds"], row["sides"][0]
    ratios = ["", ""]
    if side != base:
        ratios = [spread(times_as_fast(rounds, side, base, clock, prepared)) for clock in CLOCKS]
    taken = f"{median(seconds(rounds, side, 'wall', prepared)):.3g}"
    if prepared:
        return ["", f"{side}, and making the batch", taken, *ratios, "", "", ""]
    memory, flop = row["memory_gb"].get(side), row["flop"].get(side)
    return [
        "", side, taken, *ratios,
        "" if memory is None else f"{memory:.2f}",
        "" if flop is None else f"{flop / 1e9:.3g}",
        "" if flop is None else f"{share(row, side):.2g}%",
    ]  # fmt: skip


def share(row, side):
    """Percent of the machine's peak that the least work would make of the time taken."""
    taken = median(seconds(row["rounds"], side, steady_clock(row["device"])))
    return 100 * row["flop"][side] / (peak(row) * taken)


def peak(row):
    return max(found["peak"] for found in row["rounds"])


def footnote(row):
    """How a row came to be, in words."""
    count = len(row["rounds"])
    found = [f"{row['title']}: {count} round{'s' * (count != 1)} of `{row['command']}`"]
    found += [f"{name}: {in_words(value)}" for name, value in row.get("notes", {}).items()]
    if count:
        found.append(f"peak: {peak(row) / 1e9:.0f} GFLOP/s")
        values = {side: row["rounds"][0][side].get("value") for side in row["sides"]}
        if None not in values.values():
            found.append(f"{row.get('value', 'losses')}: {in_words(values)}")
    return "; ".join([*found, f"code: {row['code']}"])


def in_words(value):
    """A number or text, or several with their names."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{one} ({name})" for name, one in value.items())
