"""Rows and images as the file holds them: bytes, never decoded, never encoded again.

Decoding a JPEG and saving it again changes its pixels, its size and its fingerprint. So whoever
formats, splits or checks pairs reads them through here.

    for row in rows(dataset):
        print([image_digest(image) for image in images_of(row)])
"""

import hashlib
from itertools import repeat

from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as PILImage

# RLAIF-V's own columns, in its order.
RAW_COLUMNS = (
    "ds_name", "image", "question", "chosen", "rejected",
    "origin_dataset", "origin_split", "idx", "image_path",
)  # fmt: skip
RAW_NEEDED = ("image", "question", "chosen", "rejected")
NEEDED = ("images", "prompt", "chosen", "rejected")


class PreferenceDataError(ValueError):
    """Preference data that cannot be used; `problems` lists what `check_pairs` found."""

    def __init__(self, message, problems=()):
        super().__init__(message)
        self.problems = list(problems)


def column_names(dataset):
    """The columns of a dataset, of a stream (its first row may have to be read) or of dicts."""
    if isinstance(dataset, dict):  # a DatasetDict is one
        parts = ", ".join(map(str, dataset))
        raise PreferenceDataError(
            f"this holds several parts ({parts}): choose one, as in dataset['train']"
        )
    if isinstance(dataset, (Dataset, IterableDataset)):
        return list(dataset.column_names or next(iter(dataset), {}))
    return list({column: None for row in dataset if isinstance(row, dict) for column in row})


def missing_columns(columns):
    """The columns that neither form can do without: raw, or conversational."""
    if "prompt" in columns or ("images" in columns and "question" not in columns):
        # TRL takes a single `image` as well as `images`.
        wanted = ("image" if "image" in columns else "images", *NEEDED[1:])
    else:
        wanted = RAW_NEEDED
    return [column for column in wanted if column not in columns]


def rows(dataset):
    """Each row as a dict, an image in it as {"bytes", "path"}; a list of dicts is passed on."""
    if isinstance(dataset, IterableDataset):
        yield from _stored_stream(dataset) if dataset.features else dataset
    elif isinstance(dataset, Dataset):
        yield from _stored_rows(dataset)
    else:
        yield from dataset


def _stored_rows(dataset):
    wanted = [c for c in dataset.column_names if c in {*RAW_NEEDED, *NEEDED}]
    pictures = [c for c in wanted if c in ("image", "images")]
    words = [c for c in wanted if c not in pictures]
    texts = dataset.select_columns(words).with_format(None) if words else repeat({})
    # Arrow tables give the stored bytes.
    tables = dataset.select_columns(wanted).with_format("arrow")
    for text, table in zip(texts, tables, strict=False):
        yield {**text, **{column: table[column][0].as_py() for column in pictures}}


def _stored_stream(stream):
    features = stream.features.copy()
    if features.get("image") == Image():
        features["image"] = Image(decode=False)
    if features.get("images") == List(Image()):
        features["images"] = List(Image(decode=False))
    # decode(False) undoes the decoding ahead that load_dataset sets up for remote streams; it also
    # turns off Json, which the cast turns on again.
    return stream.decode(False).cast(features)


def images_of(row):
    """The images of a raw or a conversational row, as stored: a list if the row is sound."""
    return row["images"] if "images" in row else [row.get("image")]


def image_bytes(image):
    """The stored bytes of {"bytes", "path"}, of bytes or of a path; None if there are none.

    A PIL image has no file: its pixels stand for it. Raises OSError if a file cannot be read,
    TypeError for what is not an image.
    """
    if isinstance(image, PILImage.Image):
        return f"{image.mode} {image.size} ".encode() + image.tobytes()
    data, path = _bytes_and_path(image)
    if data is None and path:
        with open(path, "rb") as file:
            return file.read()
    return data


def image_digest(image):
    """A fingerprint of the stored bytes, or None if there are none to read."""
    try:
        data = image_bytes(image)
    except (OSError, TypeError, ValueError):
        return None
    return hashlib.sha256(data).hexdigest() if data else None


def digests_of(row):
    """The digest of each image of a row, whatever is in the row."""
    images = images_of(row) if isinstance(row, dict) else None
    return [image_digest(image) for image in images] if isinstance(images, list) else []


def image_groups(dataset):
    """{name: rows}: the rows that are connected by images they share, directly or through others.

    The name is the smallest digest in the group, so it does not hang on the order of the rows. A
    row without an image is a group of its own.
    """
    parent, firsts = {}, []

    def root(digest):
        while parent.setdefault(digest, digest) != digest:
            digest = parent[digest]
        return digest

    for i, row in enumerate(rows(dataset)):
        digests = [digest for digest in digests_of(row) if digest] or [f"row {i}"]
        for digest in digests:
            smaller, larger = sorted((root(digests[0]), root(digest)))
            parent[larger] = smaller
        firsts.append(digests[0])
    groups = {}
    for i, digest in enumerate(firsts):
        groups.setdefault(root(digest), []).append(i)
    return groups


def _bytes_and_path(image):
    if isinstance(image, (bytes, bytearray)):
        return bytes(image), None
    if isinstance(image, str):
        return None, image
    if isinstance(image, dict):
        data, path = image.get("bytes"), image.get("path")
        if isinstance(data, (bytes, type(None))) and isinstance(path, (str, type(None))):
            return data, path
    raise TypeError(f"a {type(image).__name__} is not an image")
