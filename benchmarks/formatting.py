"""How fast do raw pairs become conversations? Decoded rows, undecoded rows, whole Arrow columns.

    OMP_NUM_THREADS=1 python -m benchmarks.formatting      # 5 minutes of CPU time, 8 GB of disk

The usual script maps over rows whose image is a decoded picture and returns the picture, as TRL's
example for RLAIF-V does; `datasets` then encodes it once more. Beside it: the same map over rows
whose images are left as bytes, and `to_conversational`. All of them write to the disk. A stream is
read to its end, row by row or in batches of Arrow. Then, below the table, the memory of a process
that formats, for growing numbers of rows. Runs two cases of `benchmarks.bench`, with its options.

The pairs: 200 bundled photographs, cropped, enlarged and given the grain of a sensor, so that a
file has 120 to 190 KB; they repeat, with texts of their own.
"""

import io
import random
import secrets
import sys
from collections import deque
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from benchmarks.harness import Case, Contest, Side, from_a_child
from benchmarks.rehearsal import PHOTOS
from helpers.pairs.format import conversation, to_conversational

RAW = Features(image=Image(), **dict.fromkeys(("question", "chosen", "rejected"), Value("string")))
SHOTS = ((640, 480, 93), (800, 600, 86), (1024, 768, 77))  # width, height, JPEG quality
GRAIN = 8  # standard deviation, of 255
DISTINCT = 200
DECODED, UNDECODED, OURS = "decoded rows", "undecoded rows", "to_conversational"
SOURCES = ("benchmarks/formatting.py", "helpers/pairs/*.py")


def cases():
    title = "Raw pairs to conversations"
    sizes = {"rows": 5000, "slow_rows": 500}
    on_disk = {**sizes, "memory": [100, 5000, 20000]}
    more = {"rounds": 5, "seconds": 15, "unit": "a pair"}
    return [
        Case("formatting", f"{title}, a dataset on disk", build, on_disk, SOURCES, **more),
        Case("formatting_stream", f"{title}, a stream", build_stream, sizes, SOURCES, **more),
    ]


# --- what is compared ----------------------------------------------------------------------


def build(settings, folder):
    """The Contest on a Dataset of `rows` pairs that is mapped from the disk.

    The maps over rows do `slow_rows` of them: the time for a row does not depend on their number.
    `memory`: for which numbers of rows the memory of formatting is noted.
    """
    pairs, few, slow = given(settings, folder)
    undecoded = slow.cast_column("image", Image(decode=False))
    by_row = {"function": by_hand, "remove_columns": slow.column_names, "writer_batch_size": 128}
    sides = {
        DECODED: Side(lambda: fresh(slow).map(**by_row), few),
        UNDECODED: Side(lambda: fresh(undecoded).map(**by_row), few),
        OURS: Side(lambda: to_conversational(fresh(pairs)), len(pairs)),
    }
    memory = {f"MB for {rows} pairs": memory_of(rows) for rows in settings.get("memory", ())}
    return Contest(sides, notes={"rows": settings["rows"], "mapped": few, **memory})


def build_stream(settings, folder):
    """The Contest on a stream of the same pairs, of which no picture is decoded in the end."""
    pairs, few, slow = given(settings, folder)
    usual = slow.to_iterable_dataset().map(by_hand, remove_columns=slow.column_names)
    ours = to_conversational(pairs.to_iterable_dataset()).decode(False)
    batches = ours.with_format("arrow")
    sides = {
        DECODED: Side(lambda: deque(usual, maxlen=0), few),
        f"{OURS}, row by row": Side(lambda: deque(ours, maxlen=0), len(pairs)),
        f"{OURS}, in batches": Side(lambda: deque(batches.iter(100), maxlen=0), len(pairs)),
    }
    return Contest(sides, notes={"rows": settings["rows"], "mapped": few})


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


# --- memory --------------------------------------------------------------------------------


def memory_of(rows):
    """What formatting so many rows takes in a process that does nothing else, in MB. Linux only."""
    if sys.platform != "linux":
        return "not measured here"
    with TemporaryDirectory() as folder:
        photographs(rows, folder)
        (found,) = from_a_child(send_taken, rows, folder)
    return found


def send_taken(send, rows, folder):
    send(taken(rows, folder))


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
    """What this process has of the memory, in MB, by kind; VmHWM is its peak.

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1e3 for name in ("VmHWM", "RssFile")}


if __name__ == "__main__":
    from benchmarks import bench

    bench.main(["--only", *(case.name for case in cases()), *sys.argv[1:]])
