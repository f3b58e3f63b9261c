"""Raw pairs to conversations, column by column: no image is decoded, copied or even read.

    pairs = to_conversational(load_raw(track, "train", 500))
    pairs[0]["prompt"]   # [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}]

A dataset is an Arrow table: an image is a {"bytes", "path"} somewhere in one long buffer. A list of
one image around each of them is a second row of offsets, and the buffer stays where it is: in
memory, or in the mapped file. So only the texts are written, in batches. A `Dataset.map` over
undecoded images writes every image again, which takes 15 times as long.
"""

from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, Image, IterableDataset, Json, List, Value
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable, concat_tables
from PIL import Image as PILImage

from helpers.pairs.images import RAW_NEEDED, as_given, column_names, gives_tables
from helpers.setup.storage import PreferenceDataError

# Parts of a content as Json keep the keys they have. As one Arrow struct, every part would get the
# keys of all of them, filled with None, and an empty `image` makes a text a picture to some models.
_MESSAGES = List({"role": Value("string"), "content": List(Json())})
CONVERSATIONAL = Features(
    images=List(Image()), prompt=_MESSAGES, chosen=_MESSAGES, rejected=_MESSAGES
)
SOURCES = {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}
STREAM_BATCH = 100  # rows of a stream at a time: some 15 MB of photographs


def turns(*texts: str | None) -> list[dict]:
    """Messages about one picture: question, answer, question, answer, ... as far as given."""
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(texts)
    ]
    messages[0]["content"].insert(0, {"type": "image"})
    return messages


def conversation(row: dict) -> dict[str, Any]:
    """`prompt`, `chosen`, `rejected` of a row in TRL's form; a raw row's texts are put into it.

    conversation({"question": "What is it?", "chosen": "A dog.", "rejected": "A cat."})["chosen"]
    is [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}].
    """
    if "prompt" in row:
        return {column: row.get(column) for column in SOURCES}
    prompt, chosen = turns(row.get("question"), row.get("chosen"))
    rejected = turns(row.get("question"), row.get("rejected"))[1]
    return {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}


def to_conversational(
    dataset: Dataset | IterableDataset, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Raw columns in; `images`, `prompt`, `chosen`, `rejected` out, as TRL's DPOTrainer wants them.

    Works on a Dataset and on a stream; image bytes are passed on, never decoded. Rows stay in
    order, and bad ones stay too: `check_pairs` finds them. Other columns are left out. num_proc:
    worker processes for the texts of a Dataset.

    A Dataset that is mapped from disk stays there; its texts go to a cache file beside it, of about
    1 KB a row, as with every `Dataset.map`. Pickled, the result carries its images along: save and
    load it before worker processes that do not fork.
    Raises PreferenceDataError for a missing column, or an `image` that holds something else.
    """
    columns = column_names(dataset)
    if missing := [column for column in RAW_NEEDED if column not in columns]:
        raise PreferenceDataError(
            f"the raw column `{'`, `'.join(missing)}` is missing (there are: "
            f"{', '.join(columns)}): rename the one that holds it"
        )
    if isinstance(dataset, IterableDataset):
        return _format_stream(dataset.with_format(None), columns)
    if dataset.format["type"] == "custom":
        raise PreferenceDataError(
            "the dataset has a transform, which columns know nothing of: write what it makes of "
            "the rows with map, or take it off with with_format(None)"
        )
    if len(dataset) == 0:
        return Dataset.from_dict({c: [] for c in CONVERSATIONAL}, features=CONVERSATIONAL)
    return _format_dataset(dataset, num_proc)


# --- a Dataset -------------------------------------------------------------------------------


def _format_dataset(dataset: Dataset, num_proc: int | None) -> Dataset:
    """Formats the whole table below a selection, and selects again: to gather would be to copy."""
    # The fingerprints are ours: by itself, `datasets` would hash all images for one.
    key = [dataset._fingerprint, conversation({})]
    whole = Dataset(dataset.data, info=dataset.info, fingerprint=Hasher.hash([*key, "whole"]))
    texts = whole.select_columns(list(SOURCES.values())).with_format("arrow")
    texts = texts.map(
        text_columns,
        batched=True,
        remove_columns=texts.column_names,
        features=Features({column: CONVERSATIONAL[column] for column in SOURCES}),
        num_proc=num_proc,
        desc="format",
    )
    images = pyarrow.table({"images": image_lists(whole.data.column("image"))})
    info = dataset.info.copy()
    info.features = CONVERSATIONAL
    return Dataset(
        concat_tables([InMemoryTable(images), texts.data], axis=1),
        info=info,
        split=dataset.split,
        # A selection, a shuffle or a filter; `datasets` has no public name for it.
        indices_table=dataset._indices,
        fingerprint=Hasher.hash([*key, "conversational"]),
    )


def image_lists(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """A list of one image for each row; the bytes are shared, not copied."""
    lists = []
    for chunk in column.chunks:
        try:
            stored = Image().cast_storage(chunk)
        except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's are among these
            raise PreferenceDataError(
                f"the column `image` holds {chunk.type} and not one image a row ({error}): make it "
                "an image's bytes, its path, or a struct of both"
            ) from error
        data, path = stored.field("bytes"), stored.field("path")
        # With a path beside the bytes, `datasets` takes a local file of that name for the image.
        path = pyarrow.compute.if_else(data.is_valid(), None, path)
        nothing = pyarrow.compute.and_(data.is_null(), path.is_null())
        nothing = pyarrow.compute.or_(stored.is_null(), nothing)
        images = pyarrow.StructArray.from_arrays(
            [data, path], fields=list(Image.pa_type), mask=nothing
        )
        lists.append(_lists(images, 1))
    return pyarrow.chunked_array(lists, pyarrow.list_(Image.pa_type))


def text_columns(table: pyarrow.Table) -> pyarrow.Table:
    """`question`, `chosen`, `rejected` of a table as conversations `prompt`, `chosen`, `rejected`.

    Each is a column of messages of one turn, the one of `conversation` with the row's text in it,
    written as `datasets` itself would store it, in a third of the time.
    """
    template, write, made = conversation({}), Json().encode_example, {}
    for column, source in SOURCES.items():
        (turn,), texts = template[column], table[source].to_pylist()
        try:
            parts = [
                [write({**part, "text": text}) for text in texts]
                if part["type"] == "text"
                else [write(part)] * len(texts)
                for part in turn["content"]
            ]
        except (TypeError, ValueError, OverflowError) as error:
            raise PreferenceDataError(
                f"the raw column `{source}` holds {table[source].type}, and a value that cannot be "
                f"written as JSON ({error}): make it a text"
            ) from error
        parts = pyarrow.array([part for row in zip(*parts, strict=True) for part in row], "string")
        content = _lists(Json.pa_type.wrap_array(parts), len(turn["content"]))
        roles = pyarrow.array([turn["role"]] * len(texts), "string")
        messages = pyarrow.StructArray.from_arrays([roles, content], names=["role", "content"])
        made[column] = _lists(messages, 1)
    return pyarrow.table(made)


def _lists(values: pyarrow.Array, size: int) -> pyarrow.ListArray:
    """`values` (rows * size) as lists of `size`."""
    return pyarrow.ListArray.from_arrays(np.arange(0, len(values) + 1, size, np.int32), values)


# --- a stream --------------------------------------------------------------------------------


def _format_stream(stream: IterableDataset, columns: list[str]) -> IterableDataset:
    # Undoes the decoding ahead that load_dataset sets up for remote streams.
    stream = stream.decode(False) if stream.features else stream
    if gives_tables(stream):
        stream = stream.with_format("arrow")
        stream = stream.map(_format_table, batched=True, batch_size=STREAM_BATCH)
        stream = stream.with_format(None)
    else:
        stream = as_given(stream).map(_format_row, remove_columns=columns)
    # A stream decodes what a cast declares; what `map` declares it takes for decoded already.
    return stream.cast(CONVERSATIONAL)


def _format_table(table: pyarrow.Table) -> pyarrow.Table:
    return text_columns(table).add_column(0, "images", image_lists(table["image"]))


def _format_row(row: dict) -> dict:
    """As `_format_table`, for a row that some Python function gave and that may be decoded."""
    image = row["image"]
    if isinstance(image, dict):
        data, path = image.get("bytes"), image.get("path")
        image = {"bytes": data, "path": path if data is None else None}
        image = None if data is None and path is None else image
    elif isinstance(image, PILImage.Image) and image.format:
        raise PreferenceDataError(
            "this stream decodes its images before they get here, which would change their bytes: "
            "call .decode(False) on it right after load_dataset"
        )
    return {"images": [image], **conversation({c: row.get(c) for c in SOURCES.values()})}
