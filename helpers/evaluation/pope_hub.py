"""POPE's questions about COCO's photographs, from the Hub, and kept on disk.

    rows = pope_rows(300)    # 300 questions of each kind, about 50 pictures
    rows = pope_rows(300)    # no request at all

lmms-lab/POPE holds 3 files of 3,000 questions: random, popular and adversarial. All three ask about
the same 500 photographs in the same order, six questions each, and repeat the picture in every row.
Each file is downloaded whole, once; of its first rows each picture is kept once, its bytes as they
were. A download that was cut short goes on where it was.
"""

import json
from itertools import chain, islice

import pyarrow.parquet
from huggingface_hub import HfApi

from helpers.pairs.images import image_digest
from helpers.pairs.rlaifv import store_of
from helpers.setup.hub import alone, ask, download, undamaged
from helpers.setup.storage import PreferenceDataError, write_whole
from helpers.world.scenes import NEGATIVES as KINDS

NAME = "lmms-lab/POPE"
# Its card names the source of the questions and no licence.
LICENCES = "questions: RUCAIBox/POPE, MIT; photographs: COCO val2014, Flickr's terms of use"
COLUMNS = ("question", "answer", "image_source", "image")
BATCH = 60  # rows: ten pictures


def pope_rows(count, name=NAME, folder=None):
    """The first `count` questions of each kind: dicts of image, question, label, kind and group.

    image: {"bytes": None, "path": the kept file}; group: the name of the photograph, the same in
    all kinds. name: a dataset in the form of lmms-lab/POPE. folder: as in `hub_pairs`. The first
    call prints where the data come from; what it read is kept even if it fails, and the next call
    goes on. Raises PreferenceDataError when there are too few, or they cannot be had.
    """
    store = store_of(name, folder=folder)
    kept = {kind: _kept(store, kind) for kind in KINDS}
    if any(len(rows) < count for rows in kept.values()):
        with alone(store):
            source = _source(store, name)
            for kind in KINDS:
                if len(kept[kind]) < count:
                    kept[kind] = _read(source, kind, count, store)
        print(f"{len(_pictures(kept))} pictures kept in {store}")
    rows = [row for kind in KINDS for row in kept[kind][:count]]
    return [row | {"image": {"bytes": None, "path": str(store / row["image"])}} for row in rows]


def _pictures(kept):
    return {row["image"] for rows in kept.values() for row in rows}


def _kept(store, kind):
    """The rows of a kind that are on disk with their pictures; none where something is missing."""
    rows = _loaded(store / f"{kind}.json") or []
    return rows if all((store / row["image"]).exists() for row in rows) else []


def _loaded(path):
    """What a JSON file of the store holds, None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise PreferenceDataError(
            f"{path} cannot be read ({error}): remove {path.parent}"
        ) from None


def _source(store, name):
    """{"name", "revision", "files": {kind: [path]}}; the revision found first stays."""
    if source := _loaded(store / "pope.json"):
        return source
    info = ask(lambda: HfApi().dataset_info(name), name)
    found = [file.rfilename for file in info.siblings]
    files = {kind: sorted(f for f in found if f.startswith(f"Full/{kind}-")) for kind in KINDS}
    if missing := [kind for kind in KINDS if not files[kind]]:
        raise PreferenceDataError(
            f"{name} has no file Full/{missing[0]}-*.parquet: choose one in the form of {NAME}"
        )
    source = {"name": name, "revision": info.sha, "files": files}
    print(f"{name}, revision {info.sha[:8]} ({LICENCES})")
    write_whole(store / "pope.json", json.dumps(source, indent=1).encode())
    return source


def _read(source, kind, count, store):
    """Read and keep the first `count` rows of a kind."""
    stream = chain.from_iterable(_rows_of(source, path, store) for path in source["files"][kind])
    rows = [_row(raw, kind, where, store) for where, raw in islice(stream, count)]
    if len(rows) < count:
        raise PreferenceDataError(
            f"{source['name']} has {len(rows)} {kind} questions, not {count}: ask for fewer"
        )
    write_whole(store / f"{kind}.json", json.dumps(rows, indent=1).encode())
    return rows


def _rows_of(source, path, store):
    """("row 7 of Full/..., lmms-lab/POPE", {column: value}) of one file."""
    where = f"{path} of {source['name']}"
    file = download(source["name"], path, source["revision"], store / "downloads")
    with undamaged(where, file):
        parquet = pyarrow.parquet.ParquetFile(file)
        there = parquet.schema_arrow.names
        if missing := [column for column in COLUMNS if column not in there]:
            raise PreferenceDataError(
                f"the column `{missing[0]}` is missing in {where} (there are: {', '.join(there)}): "
                f"choose one in the form of {NAME}"
            )
        batches = parquet.iter_batches(BATCH, columns=list(COLUMNS), use_threads=False)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((f"row {i} of {where}", row) for i, row in enumerate(rows))


def _row(raw, kind, where, store):
    """A row as it is kept, its picture written to the store."""
    label = str(raw["answer"]).strip().lower()
    if label not in ("yes", "no"):
        raise PreferenceDataError(
            f"{where}: the answer is {raw['answer']!r}, not yes or no: choose another dataset"
        )
    data = raw["image"].get("bytes") if isinstance(raw["image"], dict) else None
    if not (data and raw["question"] and raw["image_source"]):
        raise PreferenceDataError(
            f"{where} has no picture, no question or no image_source: choose another dataset"
        )
    image = f"images/{image_digest(data)[:16]}.jpg"
    if not (store / image).exists():
        write_whole(store / image, data)
    row = {"image": image, "question": raw["question"], "label": label, "kind": kind}
    return row | {"group": raw["image_source"]}
