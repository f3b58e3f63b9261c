"""How fast do raw pairs become conversations? Decoded rows, undecoded rows, whole Arrow columns.

    OMP_NUM_THREADS=1 python -m benchmarks.formatting      # 5 minutes of CPU time, 8 GB of disk

The usual script maps over rows whose image is a decoded picture and returns the picture, as TRL's
example for RLAIF-V does; `datasets` then encodes it once more. Beside it: the same map over rows
whose images are left as bytes, and `to_conversational`. All of them write to the disk. A stream is
read to its end, row by row or in batches of Arrow. Every side has its turn in each round; reported
are medians over the rounds and [lowest, highest]. Then the memory of a process that formats, for
growing numbers of rows. Writes benchmarks/results/formatting.json.

The pairs: 200 bundled photographs, cropped, enlarged and given the grain of a sensor, so that a
file has 120 to 190 KB; they repeat, with texts of their own.
"""

import argparse
import io
import json
import multiprocessing
import random
import secrets
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow
from datasets import Dataset, Features, Image, Value, disable_progress_bars
from PIL import Image as PILImage
from tqdm.auto import tqdm

from benchmarks import side_by_side
from benchmarks.side_by_side import Contest, Side, one_round, spread, times_as_fast, warm_up
from helpers.pairs.format import conversation, to_conversational
from helpers.pairs.load import DATA

PHOTOS = DATA / "photos" / "images"
RESULTS = Path(__file__).parent / "results" / "formatting.json"
RAW = Features(image=Image(), **dict.fromkeys(("question", "chosen", "rejected"), Value("string")))
SHOTS = ((640, 480, 93), (800, 600, 86), (1024, 768, 77))  # width, height, JPEG quality
GRAIN = 8  # standard deviation, of 255
DISTINCT = 200
DECODED, UNDECODED, OURS = "decoded rows", "undecoded rows", "to_conversational"
ROW_BY_ROW, IN_BATCHES = "to_conversational, row by row", "to_conversational, in batches"
COMPARED = {
    "dataset": ((DECODED, OURS), (UNDECODED, OURS)),
    "stream": ((DECODED, ROW_BY_ROW), (DECODED, IN_BATCHES)),
}  # contest: what is beaten, and by what


def main(arguments=None):
    options = parse(arguments)
    disable_progress_bars()
    with TemporaryDirectory() as folder:
        measured = contests(options.rows, options.slow_rows, folder)
        rounds = {name: rounds_of(contest, options.rounds) for name, contest in measured.items()}
    report = {
        "command": "OMP_NUM_THREADS=1 python -m benchmarks.formatting "
        f"--rows {options.rows} --slow-rows {options.slow_rows} --rounds {options.rounds} "
        f"--memory {' '.join(map(str, options.memory))}",
        "machine": side_by_side.hardware(),
        "versions": side_by_side.versions(),
        "rows": {n: {w: s.items for w, s in c.sides.items()} for n, c in measured.items()},
        **summary(rounds),
        "memory_mb": {f"{rows} rows": memory(rows) for rows in options.memory},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--slow-rows", type=int, default=5000, help="for what maps over rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[100, 5000, 20000], metavar="ROWS")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def measure(rows=5000, rounds=3, slow_rows=500):
    """[{"name", "baseline", "ours"}]: wall seconds a row of each round, for each thing we beat."""
    with TemporaryDirectory() as folder:
        return [
            {
                "name": f"{name}: {base} / {side}",
                "baseline": [found[base]["wall"] for found in turns],
                "ours": [found[side]["wall"] for found in turns],
            }
            for name, contest in contests(rows, slow_rows, folder).items()
            for turns in [rounds_of(contest, rounds)]
            for base, side in COMPARED[name]
        ]


# --- what is compared ----------------------------------------------------------------------


def contests(rows, slow_rows, folder):
    settings = {"rows": rows, "slow_rows": slow_rows}
    return {"dataset": build(settings, folder), "stream": build_stream(settings, folder)}


def build(settings, folder):
    """The Contest on a Dataset of `rows` pairs that is mapped from the disk.

    The maps over rows do `slow_rows` of them: their time for a row does not hang on the number.
    """
    pairs, few, slow = given(settings, folder)
    undecoded = slow.cast_column("image", Image(decode=False))
    by_row = {"function": by_hand, "remove_columns": slow.column_names, "writer_batch_size": 128}
    sides = {
        DECODED: Side(lambda: fresh(slow).map(**by_row), few),
        UNDECODED: Side(lambda: fresh(undecoded).map(**by_row), few),
        OURS: Side(lambda: to_conversational(fresh(pairs)), len(pairs)),
    }
    return Contest(sides, notes=settings)


def build_stream(settings, folder):
    """The Contest on a stream of the same pairs, of which no picture is decoded in the end."""
    pairs, few, slow = given(settings, folder)
    usual = slow.to_iterable_dataset().map(by_hand, remove_columns=slow.column_names)
    ours = to_conversational(pairs.to_iterable_dataset()).decode(False)
    sides = {
        DECODED: Side(lambda: deque(usual, maxlen=0), few),
        ROW_BY_ROW: Side(lambda: deque(ours, maxlen=0), len(pairs)),
        IN_BATCHES: Side(lambda: deque(ours.with_format("arrow").iter(100), maxlen=0), len(pairs)),
    }
    return Contest(sides, notes=settings)


def given(settings, folder):
    pairs = photographs(settings["rows"], folder)
    few = min(settings["slow_rows"], len(pairs))
    return pairs, few, pairs.select(range(few))


def by_hand(row):
    """A row as the usual script writes it, with whatever the row has for its image."""
    return {"images": [row["image"]], **conversation(row)}


def fresh(dataset):
    """The same rows under a name that no cache knows, so that every round does its work."""
    return Dataset(dataset.data, info=dataset.info, fingerprint=secrets.token_hex(8))


# --- pairs ---------------------------------------------------------------------------------


def photographs(rows, folder):
    """`rows` raw pairs in a file in `folder`, mapped; the same ones if they are there already."""
    folder = Path(folder) / f"photographs-{rows}"
    if not folder.exists():
        shots = [shot(i) for i in range(min(rows, DISTINCT))]
        with TemporaryDirectory() as cache:
            make = partial(raw_pairs, rows, shots)
            Dataset.from_generator(make, features=RAW, cache_dir=cache).save_to_disk(folder)
    return Dataset.load_from_disk(folder)


def raw_pairs(rows, shots):
    wall, sits = 'A "{}" is written on the wall/door.\nIn front of it ', "a {} sits. "
    for i in range(rows):
        yield {
            "image": {"bytes": shots[i % len(shots)], "path": None},
            "question": f"What do you see in photograph {i}?",
            "chosen": wall.format(i) + 20 * sits.format("dog"),
            "rejected": wall.format(i) + 20 * sits.format("cat"),
        }


def shot(number):
    """The bytes of a JPEG as a camera would write it, made from a bundled photograph."""
    files, rng = sorted(PHOTOS.glob("*.jpg")), random.Random(number)
    width, height, quality = SHOTS[number % len(SHOTS)]
    with PILImage.open(files[number % len(files)]) as photograph:
        share = rng.uniform(0.7, 1)
        crop = [round(edge * share) for edge in photograph.size]
        left, top = (rng.randint(0, a - b) for a, b in zip(photograph.size, crop, strict=True))
        picture = photograph.convert("RGB").crop((left, top, left + crop[0], top + crop[1]))
    grain = np.random.default_rng(number).normal(0, GRAIN, (height, width, 1))
    pixels = np.asarray(picture.resize((width, height), PILImage.LANCZOS)) + grain
    file = io.BytesIO()
    PILImage.fromarray(pixels.clip(0, 255).astype("uint8")).save(file, "JPEG", quality=quality)
    return file.getvalue()


# --- measuring -----------------------------------------------------------------------------


def rounds_of(contest, number):
    warm_up(contest)
    return [one_round(contest, index) for index in tqdm(range(number), "rounds")]


def summary(rounds):
    rates, ratios = {}, {}
    for name, turns in rounds.items():
        for pair in COMPARED[name]:
            for way in pair:
                rates[f"{name}: {way}"] = by_clock(partial(microseconds, turns, way), 1)
            ratios[f"{name}: {pair[1]} / {pair[0]}"] = by_clock(
                partial(times_as_fast, turns, *reversed(pair))
            )
    return {"microseconds_a_row": rates, "times_as_fast": ratios}


def microseconds(turns, way, clock):
    return [found[way][clock] * 1e6 for found in turns]


def by_clock(values, digits=2):
    return {clock: spread(values(clock), digits) for clock in side_by_side.CLOCKS}


def memory(rows):
    """What formatting so many rows takes in a process that does nothing else, in MB."""
    with TemporaryDirectory() as folder:
        photographs(rows, folder)
        alone = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=alone) as process:
            return process.submit(taken, rows, folder).result()


def taken(rows, folder):
    pairs, before, arrow = photographs(rows, folder), resident(), pyarrow.total_allocated_bytes()
    images = to_conversational(pairs).data["images"]
    after = resident()
    return {
        "images": round(images.nbytes / 1e6, 2),
        "more at the peak": round(after["VmHWM"] - before["VmHWM"], 2),
        "of it pages of mapped files": round(after["RssFile"] - before["RssFile"], 2),
        "held by Arrow": round((pyarrow.total_allocated_bytes() - arrow) / 1e6, 2),
    }


def resident():
    """What this process has of the memory, in MB, by kind; VmHWM is its peak. Linux only.

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1e3 for name in ("VmHWM", "RssFile")}


if __name__ == "__main__":
    main()
