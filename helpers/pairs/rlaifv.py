"""The pairs of a track from the Hub: one shard, downloaded once, and those of its pairs we need.

    pairs = hub_pairs("openbmb/RLAIF-V-Dataset", "train", 1000)   # downloads a shard, under 1 GB
    pairs = hub_pairs("openbmb/RLAIF-V-Dataset", "train", 1000)   # no request at all

The seed chooses the shard and shuffles its rows. A tenth of the images, the same ones always, is
held for the test split. So the n-th pair depends on the dataset, its revision and the seed, never
on how many were asked for. If a shard is too short, the next one follows.

What is published has one of two forms: RLAIF-V's own columns, or conversations (`images` or
`image`, `prompt`, `chosen`, `rejected`) as HuggingFaceH4/rlaif-v_formatted and trl-lib/rlaif-v have
them. From these the question is the user's text and the image the only one. A row with several
images or turns has no raw form: it is an error, never half a row.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from datasets import Dataset, Features, Image, Value, load_dataset_builder
from huggingface_hub import DatasetCard, HfApi, constants
from tqdm.auto import tqdm

from helpers.pairs.images import RAW_COLUMNS, image_digest, missing_columns, split_position
from helpers.setup.hub import alone, ask, download, undamaged
from helpers.setup.storage import PreferenceDataError, Store, key_of, write_whole

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "data"
TEST_SHARE = 0.1  # of the images
BATCH = 64  # rows in memory at once: some 10 MB of photographs
RAW = Features({column: Value("string") for column in RAW_COLUMNS} | {"image": Image()})
KEPT = Features({**RAW, "rank": Value("int64")})  # rank: the place in the shuffled order


# --- where the pairs of a dataset lie ----------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where pairs come from: a dataset, a commit of it, its licence, its parquet files."""

    name: str
    revision: str
    licence: str | None
    files: list[str]


def find_source(name: str) -> Source:
    """Ask the Hub, or look into a local folder, for the parquet files of the split "train".

    Only that split counts: other splits of the rows share images with it, so ours is made from the
    images. Raises PreferenceDataError if there is no such dataset, or it is not for you.
    """
    if Path(name).is_dir():
        revision, prefix, card = _fingerprint(Path(name)), "", Path(name, "README.md")
        about = {}
        if card.exists():
            text = card.read_text(encoding="utf-8", errors="replace")
            about = DatasetCard(text, ignore_metadata_errors=True).data
        builder = ask(lambda: load_dataset_builder(**named(name)), name)
    else:
        info = ask(lambda: HfApi().dataset_info(name), name)
        revision, about = info.sha, info.card_data or {}
        builder = ask(lambda: load_dataset_builder(name, revision=revision), name)
        prefix = f"hf://datasets/{name}@{revision}/"
    splits = builder.config.data_files or {}
    if "train" not in splits:
        there = ", ".join(map(str, splits)) or "none"
        raise PreferenceDataError(
            f"{name} has no split `train` (there are: {there}): choose another"
        )
    files = [path.removeprefix(prefix) for path in splits["train"]]
    if others := [path for path in files if not path.endswith(".parquet")]:
        raise PreferenceDataError(f"{others[0]} of {name} is no parquet file: convert the dataset")
    licence = about.get("license")
    licence = ", ".join(licence) if isinstance(licence, list) else licence
    return Source(name, revision, licence, files)


def named(name: str) -> dict[str, str]:
    """Arguments of `datasets.load_dataset`, which takes brackets in a folder for a pattern."""
    if Path(name).is_dir() and escape(name) != name:
        return {"path": "parquet", "data_dir": escape(name)}
    return {"path": name}


def _fingerprint(folder: Path) -> str:
    """Changes with any file of a local dataset."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


# --- the pairs, chosen and kept ----------------------------------------------------------------


def hub_pairs(
    name: str, split: str, count: int, seed: int = 0, folder: str | Path | None = None
) -> Dataset:
    """The first `count` pairs of split "train" or "test" in the raw columns, as a Dataset.

    name: a dataset on the Hub, or a folder of one, with parquet files in one of the two forms.
    folder: downloads and the chosen pairs go there, by default to runs/data; the images stay on
    disk, mapped. The revision found first stays, until the dataset's folder there is removed.
    Raises ValueError for another split or a count below 1, PreferenceDataError or StorageError
    with what to do for all else; what has been downloaded stays, and the next call goes on.
    """
    if split not in ("train", "test") or count < 1:
        raise ValueError(f"split={split!r}, count={count}: ask for 1 or more of 'train' or 'test'")
    name = _full(name)
    with alone(store_of(name, folder)):
        store = Store(store_of(name, folder))
        source = _known(store, name) or _new_source(store, name)
        key = key_of(name, source.revision, split, seed)
        there = store.file(key, "").parent.glob(f"{key}-*.arrow")  # whole, or they would not be
        kept = {int(file.stem.split("-")[1]): file for file in there}
        enough = [number for number in kept if number >= count]
        file = kept[min(enough)] if enough else store.file(key, f"-{count}.arrow")
        if not enough:
            _keep(source, store.folder, split, count, seed, file)
    try:
        pairs = Dataset.from_file(str(file))
    except (OSError, ValueError) as error:
        raise PreferenceDataError(f"{file} is damaged ({error}): remove it") from None
    order = np.argsort(pairs.data["rank"].to_numpy())[:count]
    return pairs.select(order).select_columns(list(RAW_COLUMNS))


def store_of(name: str, folder: str | Path | None = None) -> Path:
    """The folder that keeps what is taken of a dataset: one for each name and server."""
    name = _full(name)
    label = name.replace("/", "--")
    if Path(name).is_dir():
        label = f"{Path(name).name}-{_fingerprint(Path(name))[:8]}"
    elif constants.ENDPOINT != "https://huggingface.co":
        label += "@" + constants.ENDPOINT.split("://")[-1].replace(":", "-").replace("/", "-")
    return Path(folder or FOLDER, label)


def _full(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def source_of(name: str, folder: str | Path | None = None) -> Source:
    """Revision and licence of the pairs that `hub_pairs` has kept: what a card should name."""
    source = _known(Store(store_of(name, folder)), _full(name))
    if source is None:
        raise PreferenceDataError(f"no pairs of {name} are kept yet: load some with hub_pairs")
    return source


def _known(store: Store, name: str) -> Source | None:
    key = key_of("source", name)
    return Source(**store[key]) if key in store else None


def _new_source(store: Store, name: str) -> Source:
    source = find_source(name)
    licence = source.licence or "no licence stated"
    print(f"{name}, revision {source.revision[:8]}, {licence}: pairs are kept in {store.folder}")
    store.add({key_of("source", name): asdict(source)})
    return source


def _keep(source: Source, folder: Path, split: str, count: int, seed: int, file: Path) -> None:
    """Write the first `count` pairs of a split to `file`, in an Arrow stream, each with its rank.

    Reads a shard twice, a batch at a time: which rows are whose first, then the chosen ones.
    """
    sink, found = pyarrow.BufferOutputStream(), 0
    with pyarrow.ipc.new_stream(sink, KEPT.arrow_schema) as writer:
        for path in sorted(source.files, key=lambda path: _draw(seed, path).random()):
            if found == count:
                break
            shard, where, local = Path(path), f"{path} of {source.name}", Path(path).is_absolute()
            if not local:
                shard = download(source.name, path, source.revision, folder / "downloads")
            with undamaged(where, None if local else shard):
                tables = tqdm(_raw_tables(shard, where), "choose pairs", leave=False, delay=1)
                images = (image for table in tables for image in table["image"].to_pylist())
                held = [is_held(image) for image in images]
                rows = [row for row in range(len(held)) if held[row] == (split == "test")]
                _draw(seed, path).shuffle(rows)
                rows = rows[: count - found]
                ranks, start = np.full(len(held), -1), 0
                ranks[rows] = np.arange(found, found + len(rows))
                found += len(rows)
                for table in _raw_tables(shard, where):
                    rank = pyarrow.array(ranks[start : start + len(table)])
                    start += len(table)
                    chosen = table.append_column("rank", rank)
                    chosen = chosen.filter(pyarrow.compute.greater_equal(rank, 0))
                    writer.write_table(chosen.cast(KEPT.arrow_schema))
    if not found:
        raise PreferenceDataError(
            f"the split `train` of {source.name} holds no pairs for {split}: choose another"
        )
    if found < count:
        raise PreferenceDataError(
            f"{source.name} has {found} pairs for {split}, not {count}: ask for fewer"
        )
    write_whole(file, sink.getvalue())


def _draw(seed: int, path: str) -> random.Random:
    """The chance of a shard, the same wherever it lies."""
    return random.Random(f"{seed}/{Path(path).name}")


def is_held(image: dict[str, Any] | None) -> bool:
    """True for the tenth of the images that is held for the test split, whoever reads them."""
    digest = image_digest(image)
    return digest is not None and split_position(digest) < TEST_SHARE


# --- from the published forms to the raw columns -----------------------------------------------


def _raw_tables(file: Path, where: str) -> Iterator[pyarrow.Table]:
    """The rows of a parquet file, image bytes as they were; `where` names it in sentences.

    `iter_batches` reads page by page: a shard that pandas wrote is one row group of 1 GB.
    """
    parquet = pyarrow.parquet.ParquetFile(file)
    names = parquet.schema_arrow.names
    if missing := missing_columns(names):
        raise PreferenceDataError(
            f"the column `{'`, `'.join(missing)}` is missing in {where} (there are: "
            f"{', '.join(names)}): choose a dataset in the form of RLAIF-V or of trl-lib/rlaif-v"
        )
    chat = "prompt" in names
    wanted = ("images", "image", "prompt", "chosen", "rejected") if chat else RAW_COLUMNS
    wanted = [column for column in wanted if column in names]
    for batch in parquet.iter_batches(BATCH, columns=wanted):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns = _from_conversations(columns, where) if chat else columns
        nothing = pyarrow.nulls(len(batch))
        yield pyarrow.Table.from_arrays(
            [_cast(columns.get(name, nothing), name, where) for name in RAW_COLUMNS],
            schema=RAW.arrow_schema,
        )


def _cast(column: pyarrow.Array, name: str, where: str) -> pyarrow.Array:
    try:
        return Image().cast_storage(column) if name == "image" else column.cast(pyarrow.string())
    except (pyarrow.ArrowException, TypeError, ValueError):
        wanted = "images" if name == "image" else "text"
        raise PreferenceDataError(
            f"the column `{name}` of {where} holds {column.type}, not {wanted}: choose another "
            "dataset"
        ) from None


def _from_conversations(columns: dict[str, pyarrow.Array], where: str) -> dict[str, pyarrow.Array]:
    raw = {"image": columns.get("image")}
    if "images" in columns:
        lengths = pyarrow.compute.list_value_length(columns["images"]).to_pylist()
        if wrong := [length for length in lengths if length != 1]:
            raise PreferenceDataError(
                f"a row of {where} has {wrong[0] or 'no'} images: raw pairs have one; load such "
                "rows with datasets.load_dataset"
            )
        raw["image"] = columns["images"].flatten()
    for name, column in (("question", "prompt"), ("chosen", "chosen"), ("rejected", "rejected")):
        role = "user" if column == "prompt" else "assistant"
        texts = [_only_text(messages, role) for messages in columns[column].to_pylist()]
        if None in texts:
            raise PreferenceDataError(
                f"`{column}` in {where} is not one message of the {role} with one text "
                f"({texts.index(None) + 1}th row of those read): load such conversations with "
                "datasets.load_dataset; they need no formatting"
            )
        raw[name] = pyarrow.array(texts, pyarrow.string())
    return raw


def _only_text(messages: Any, role: str) -> str | None:
    """The text of the only message, or None. A content is a text, or parts, each maybe as JSON."""
    message = messages[0] if isinstance(messages, list) and len(messages) == 1 else None
    if not isinstance(message, dict) or message.get("role") != role:
        return None
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        content = texts[0] if len(texts) == 1 else None
    return content if isinstance(content, str) else None


def _part(part: Any) -> dict[str, Any]:
    """A part of a content as a dict, which is empty for what is none."""
    if isinstance(part, str):
        try:
            part = json.loads(part)
        except ValueError:
            return {}
    return part if isinstance(part, dict) else {}
