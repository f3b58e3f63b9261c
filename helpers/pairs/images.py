"""Rows and images as the file holds them: bytes, never decoded, never encoded again.

Decoding a JPEG and saving it again changes its pixels, its size and its fingerprint. So whoever
formats, splits or checks pairs reads them through here.

    for row in rows(dataset):
        print([image_digest(image) for image in images_of(row)])
"""

import copy
import hashlib
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from datasets import Dataset, Features, Image, IterableDataset, List
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage

from helpers.setup.storage import PreferenceDataError

# RLAIF-V's own columns, in its order.
RAW_COLUMNS = (
    "ds_name", "image", "question", "chosen", "rejected",
    "origin_dataset", "origin_split", "idx", "image_path",
)  # fmt: skip
RAW_NEEDED = ("image", "question", "chosen", "rejected")
NEEDED = ("images", "prompt", "chosen", "rejected")


def column_names(dataset: Dataset | IterableDataset | list[dict]) -> list[str]:
    """The columns of a dataset, of a stream (its first row may have to be read) or of dicts.

    Raises PreferenceDataError for a DatasetDict.
    """
    if isinstance(dataset, dict):
        splits = ", ".join(map(str, dataset))
        raise PreferenceDataError(
            f"this holds several splits ({splits}): choose one, as in dataset['train']"
        )
    if isinstance(dataset, (Dataset, IterableDataset)):
        return list(dataset.column_names or next(iter(dataset), {}))
    return list({column: None for row in dataset if isinstance(row, dict) for column in row})


def missing_columns(columns: list[str]) -> list[str]:
    """The columns that neither form can do without: raw, or conversational."""
    if "prompt" in columns or ("images" in columns and "question" not in columns):
        # TRL takes a single `image` as well as `images`.
        wanted = ("image" if "image" in columns else "images", *NEEDED[1:])
    else:
        wanted = RAW_NEEDED
    return [column for column in wanted if column not in columns]


def rows(dataset: Dataset | IterableDataset | list[dict]) -> Iterator[dict]:
    """Each row as a dict, an image in it as {"bytes", "path"}; a list of dicts is passed on."""
    if isinstance(dataset, IterableDataset):
        dataset = _undecoded(dataset)
    if not isinstance(dataset, Dataset):
        yield from dataset
        return
    wanted = [c for c in dataset.column_names if c in {*RAW_NEEDED, *NEEDED}]
    pictures = [c for c in wanted if c in ("image", "images")]
    others = [c for c in wanted if c not in pictures]
    texts = dataset.select_columns(others).with_format(None) if others else repeat({})
    # Arrow tables give the stored bytes.
    tables = dataset.select_columns(wanted).with_format("arrow")
    for text, table in zip(texts, tables, strict=False):
        yield {**text, **{column: table[column][0].as_py() for column in pictures}}


def _undecoded(stream: IterableDataset) -> IterableDataset:
    if not stream.features:
        return stream
    stored = {"image": Image(decode=False), "images": List(Image(decode=False))}
    decoded = {"image": Image(), "images": List(Image())}
    changes = {c: stored[c] for c in stored if stream.features.get(c) == decoded[c]}
    # What decode(False) does not undo was decoded by a function.
    if changes and not gives_tables(undecoded := stream.decode(False)):
        return as_given(undecoded)
    features = Features({**stream.features, **changes})
    # decode(False) undoes the decoding ahead that load_dataset sets up for remote streams; it also
    # turns off Json, which the cast turns on again.
    return stream.decode(False).cast(features)


def gives_tables(stream: IterableDataset) -> bool:
    """Whether a stream is made of Arrow tables, and not of rows that some function gave.

    It has no public name for this. Should the private one go, streams are taken row by row.
    """
    return bool(getattr(getattr(stream, "_ex_iterable", None), "iter_arrow", None))


def as_given(stream: IterableDataset) -> IterableDataset:
    """A stream of rows without its features, for which `datasets` would encode pictures again."""
    stream = copy.copy(stream)
    stream._info = stream._info.copy()
    stream._info.features = None
    return stream


def images_of(row: dict) -> Any:
    """The images of a raw or a conversational row, as stored: a list if the row is sound."""
    return row["images"] if "images" in row else [row.get("image")]


def image_bytes(image: Any) -> bytes | None:
    """The stored bytes of {"bytes", "path"}, of bytes or of a path; None if there are none.

    A PIL image has no file: its pixels stand for it. Raises TypeError for what is not an image, and
    OSError, or an error of its protocol, if a file cannot be read.
    """
    if isinstance(image, PILImage.Image):
        return f"{image.mode} {image.size} ".encode() + image.tobytes()
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, str):
        image = {"path": image}
    data, path = image, None
    if isinstance(image, dict):
        data, path = image.get("bytes"), image.get("path")
    if not isinstance(data, (bytes, type(None))) or not isinstance(path, (str, type(None))):
        raise TypeError(f"a {type(image).__name__} is not an image")
    if data is None and path:
        with xopen(path, "rb") as file:  # `datasets` also takes "zip://1.png::a.zip", "hf://..."
            return file.read()
    return data


def image_digest(image: Any) -> str | None:
    """SHA-256 of the stored bytes as hex digits, or None if there are none to read."""
    try:
        data = image_bytes(image)
    except Exception:  # protocols have errors of their own
        return None
    return hashlib.sha256(data).hexdigest() if data else None


def digests_of(row: Any) -> list[str | None]:
    """The digest of each image of a row, whatever is in the row."""
    images = images_of(row) if isinstance(row, dict) else None
    return [image_digest(image) for image in images] if isinstance(images, list) else []


def split_position(digest: str, seed: int = 0) -> float:
    """Where an image stands in the line for the test split, in [0, 1): the first are held out.

    The one rule by which images are split: by their bytes, whatever else is in the dataset.
    """
    number = hashlib.sha256(f"{seed}/{digest}".encode()).digest()[:8]
    return int.from_bytes(number) / 2**64
