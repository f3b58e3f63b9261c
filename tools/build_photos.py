"""Build the two parquet files of the bundled photographs.

    python -m tools.build_photos

Reads data/photos/annotations.json and data/photos/images, and writes beside them
preferences.parquet, with the raw columns of openbmb/RLAIF-V-Dataset, and probes.parquet, the
yes/no questions. Edit the annotations, never the parquet files, and run this again.
"""

import json
from pathlib import Path

from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"
KINDS = ("existence", "attribute", "count", "relation")
TEXT = Value("string")
# Names and order are RLAIF-V's, so that one loader reads these rows and the real data alike.
PREFERENCES = Features(
    ds_name=TEXT,
    image=Image(),
    question=TEXT,
    chosen=TEXT,
    rejected=TEXT,
    origin_dataset=TEXT,
    origin_split=TEXT,
    idx=Value("int64"),
    image_path=TEXT,
)
PROBES = Features(image_path=TEXT, question=TEXT, answer=TEXT, kind=TEXT)


def check(record, folder):
    """Raise ValueError naming the file and the field if a record is not fit to ship."""
    name = record.get("file") or "a record without a name"
    require_text(record, ("file", "author", "license", "source"), name)
    try:
        with PILImage.open(folder / "images" / name) as image:
            image.load()  # open() reads only the header; a cut-off file fails here
    except OSError as error:
        put = f"put a JPEG at images/{name}"
        raise ValueError(f"{name}: file does not open as an image; {put}") from error
    for field in ("pairs", "probes"):
        if not record.get(field):
            raise ValueError(f"{name}: {field} is missing or empty; write at least one")
    for i, pair in enumerate(record["pairs"]):
        where = f"{name}: pairs[{i}]"
        require_text(pair, ("question", "chosen", "rejected", "hallucination"), where)
        if pair["chosen"] == pair["rejected"]:
            raise ValueError(f"{where}: chosen and rejected are the same; change one of them")
    for i, probe in enumerate(record["probes"]):
        where = f"{name}: probes[{i}]"
        require_text(probe, ("question",), where)
        for field, allowed in (("answer", ("yes", "no")), ("kind", KINDS)):
            if probe.get(field) not in allowed:
                use = f"use one of {', '.join(allowed)}"
                raise ValueError(f"{where}: {field} is {probe.get(field)!r}; {use}")


def require_text(item, fields, where):
    for field in fields:
        value = item.get(field)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {field} is missing or empty; write a text there")


def preference_row(idx, record, pair, folder):
    name = record["file"]
    return {
        "ds_name": "bundled_photos",
        # Bytes, not a decoded picture: encoding again would change every pixel.
        "image": {"bytes": (folder / "images" / name).read_bytes(), "path": name},
        **{field: pair[field] for field in ("question", "chosen", "rejected")},
        "origin_dataset": "wikimedia",
        "origin_split": json.dumps({"hallucination": pair["hallucination"]}, ensure_ascii=False),
        "idx": idx,
        "image_path": name,
    }


def build(folder):
    """Write both parquet files into `folder`."""
    records = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    for record in records:
        check(record, folder)
    pairs = [(record, pair) for record in records for pair in record["pairs"]]
    rows = [preference_row(idx, *pair, folder) for idx, pair in enumerate(pairs)]
    probes = [{"image_path": r["file"], **probe} for r in records for probe in r["probes"]]
    Dataset.from_list(rows, features=PREFERENCES).to_parquet(folder / "preferences.parquet")
    Dataset.from_list(probes, features=PROBES).to_parquet(folder / "probes.parquet")


if __name__ == "__main__":
    build(PHOTOS)
