"""The raw columns from whatever form a dataset was published in.

    columns = to_read(parquet.schema_arrow.names, "data/train-00000.parquet of trl-lib/rlaif-v")
    table = raw_table(batch, where)      # RAW_COLUMNS, the image bytes as they were

Two forms are known: RLAIF-V's own columns, and conversations (`images` or `image`, `prompt`,
`chosen`, `rejected`) as HuggingFaceH4/rlaif-v_formatted and trl-lib/rlaif-v have them. From these
the question is the user's text and the image the only one. A row with several images or turns has
no raw form: it is an error, never half a row.
"""

import json

import pyarrow
import pyarrow.compute
from datasets import Features, Image, Value

from helpers.pairs.images import RAW_COLUMNS, PreferenceDataError, missing_columns

TEXT = Value("string")
RAW = Features({column: TEXT for column in RAW_COLUMNS} | {"image": Image()})
SIDES = {"question": ("prompt", "user"), "chosen": ("chosen", "assistant"),
         "rejected": ("rejected", "assistant")}  # fmt: skip


def to_read(columns, where):
    """Those of the columns that the raw ones are made of; `where` names the file in sentences."""
    if missing := missing_columns(columns):
        raise PreferenceDataError(
            f"the column `{'`, `'.join(missing)}` is missing in {where} (there are: "
            f"{', '.join(columns)}): choose a dataset in the form of RLAIF-V or of trl-lib/rlaif-v"
        )
    wanted = ("images", "image", "prompt", "chosen", "rejected")
    if "prompt" not in columns:
        wanted = RAW_COLUMNS
    return [column for column in wanted if column in columns]


def raw_table(batch, where):
    """A record batch of `to_read`'s columns as a table of RAW; what it lacks becomes None."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if "prompt" in columns:
        columns = _from_conversations(columns, where)
    arrays = [
        _image(columns["image"], where)
        if column == "image"
        else _text(columns.get(column, pyarrow.nulls(len(batch))), column, where)
        for column in RAW_COLUMNS
    ]
    return pyarrow.Table.from_arrays(arrays, schema=RAW.arrow_schema)


def _image(column, where):
    try:
        return Image().cast_storage(column)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise PreferenceDataError(
            f"the column `image` of {where} holds no images ({error}): choose another dataset"
        ) from None


def _text(column, name, where):
    try:
        return column.cast(pyarrow.string())
    except pyarrow.ArrowException:
        raise PreferenceDataError(
            f"the column `{name}` of {where} holds {column.type}, not text: choose another dataset"
        ) from None


def _from_conversations(columns, where):
    raw = {"image": columns.get("image")}
    if "images" in columns:
        raw["image"] = _only_images(columns["images"], where)
    for name, (column, role) in SIDES.items():
        texts = [_said(messages, role) for messages in columns[column].to_pylist()]
        if None in texts:
            raise PreferenceDataError(
                f"`{column}` in {where} is not one message of the {role} with one text "
                f"({texts.index(None) + 1}th row of those read): load such conversations with "
                "datasets.load_dataset; they need no formatting"
            )
        raw[name] = pyarrow.array(texts, pyarrow.string())
    return raw


def _only_images(column, where):
    lengths = pyarrow.compute.list_value_length(column).to_pylist()
    if wrong := [length for length in lengths if length != 1]:
        raise PreferenceDataError(
            f"a row of {where} has {wrong[0] or 'no'} images: raw pairs have one; load such rows "
            "with datasets.load_dataset"
        )
    return column.flatten()


def _said(messages, role):
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


def _part(part):
    """A part of a content as a dict, which is empty for what is none."""
    if isinstance(part, str):
        try:
            part = json.loads(part)
        except ValueError:
            return {}
    return part if isinstance(part, dict) else {}
