"""A run's folder: parquet parts and images that are whole or not there, whenever it is killed.

    runs/07/
        run.json                  what it is a run of; another one is refused
        images/7-2.png            picture 2 of prompt 7, as every later stage sees it
        pictures/00003.parquet    what one call of a stage gave; image_scores, answers, ... alike
        errors.jsonl              items that were skipped; remove it, and they are tried again
        pairs.parquet             RLAIF-V's columns; made from the parts whenever the run is opened
        README.md, funnel.json    the card, and what was dropped where

Every file is written beside its place and then put there, images before the part that names them.
"""

import hashlib
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from helpers.feedback.items import SynthesisError
from helpers.setup.storage import StorageError, check_writable

STAGES = ("pictures", "image_scores", "answers", "answer_scores")  # in the order of a run
RECORD, ERRORS, ROOM = "run.json", "errors.jsonl", 10_000_000
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg"}

_SCORES = pa.schema({"key": pa.string(), "score": pa.float64(), "about": pa.string()})
SCHEMAS = {
    "pictures": pa.schema(
        {"key": pa.string(), "file": pa.string(), "sha256": pa.string(), "width": pa.int32(),
         "height": pa.int32(), "about": pa.string()}
    ),
    "image_scores": _SCORES,
    "answers": pa.schema({"key": pa.string(), "answer": pa.string()}),
    "answer_scores": _SCORES,
}  # fmt: skip


def open_run(folder, identity):
    """Make the folder, or go on in it. `identity`: {stage: {setting: value}}, JSON throughout.

    Raises SynthesisError if it cannot be written, holds other things, or is a run of other
    settings, which are named then.
    """
    folder = Path(folder)
    try:
        check_writable(folder, ROOM)
    except StorageError as error:
        raise SynthesisError(str(error)) from error
    if (folder / RECORD).exists():
        if differ := differences(_record(folder), identity):
            raise SynthesisError(
                f"{folder} holds a run of other settings ({'; '.join(differ)}): choose another "
                "folder, or remove this one to give that run up"
            )
    else:
        _require_empty(folder)
        write(folder / RECORD, json.dumps(identity, indent=1).encode())
    return folder


def take_over(reuse, folder, identity):
    """Copy from the run in `reuse` what the run in `folder` would make in the same way.

    Stages are compared in their order, up to the first that differs in a setting, or of which this
    run has made something itself. Raises SynthesisError naming the settings if not even the
    pictures are those that this run needs, and the file if one in `reuse` is damaged.
    """
    reuse, there = Path(reuse), _record(Path(reuse))
    same = []
    for stage in STAGES:
        differ = differences({stage: there.get(stage)}, {stage: identity[stage]})
        if differ:
            break
        same.append(stage)
    if not same:
        raise SynthesisError(f"nothing in {reuse} can be used again ({'; '.join(differ)})")
    for stage in same:
        read_parts(reuse, stage)  # or a damaged part would be copied
        if not _all_in(folder / stage, reuse / stage):
            break
        for name in ["images"] * (stage == "pictures") + [stage]:
            for path in sorted((reuse / name).glob("*.*")):
                if path.suffix != ".new" and not (folder / name / path.name).exists():
                    write(folder / name / path.name, path.read_bytes())


def _all_in(mine, theirs):
    """Whether all parts of a stage here are copies of parts there."""
    return all(
        (theirs / path.name).exists() and (theirs / path.name).read_bytes() == path.read_bytes()
        for path in mine.glob("*.parquet")
    )


def differences(there, now):
    """["generator.missing: 0.1 there, 0.5 now", ...] between two identities."""
    there, now = _flat(there), _flat(now)
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    return [f"{name}: {there.get(name)} there, {now.get(name)} now" for name in names]


def _flat(identity):
    """{"generator.missing": 0.1}; the stage that a setting stands under is left out."""
    found = {}
    for settings in identity.values():
        for name, value in (settings or {}).items():
            inner = value.items() if isinstance(value, dict) else ()
            found |= {f"{name}.{key}": json.dumps(v) for key, v in inner}
            if not isinstance(value, dict):
                found[name] = json.dumps(value)
    return found


def _record(folder):
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {stage: dict(settings) for stage, settings in record.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise SynthesisError(
            f"{folder / RECORD} cannot be read, so nobody knows what it is a run of: choose "
            "another folder"
        ) from None


def _require_empty(folder):
    others = sorted(p.name for p in folder.iterdir() if p.name[0] != "." and p.suffix != ".new")
    if others:
        raise SynthesisError(
            f"{folder} holds {others[0]} and is no run: choose a folder that is empty or new"
        )


# --- parts -----------------------------------------------------------------------------------


def read_parts(folder, stage):
    """{key: record} of all parts of a stage, in the order in which they were asked for."""
    known = {}
    for path in sorted((folder / stage).glob("*.parquet")):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
            if table.schema != SCHEMAS[stage]:
                raise ValueError(f"its columns are {', '.join(table.column_names)}")
            known |= {record["key"]: record for record in table.to_pylist()}
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise SynthesisError(
                f"{path} is damaged ({error}): remove it, and what was in it is made again"
            ) from None
    return known


def write_part(folder, stage, name, records):
    """A new file. When errors are tried again the batches change, and no part may be replaced."""
    while (folder / stage / f"{name}.parquet").exists():
        name += "+"
    buffer = pa.BufferOutputStream()
    table = pa.Table.from_pylist(records, schema=SCHEMAS[stage])
    pq.write_table(table, buffer, write_page_checksum=True)
    write(folder / stage / f"{name}.parquet", buffer.getvalue().to_pybytes())


# --- images ----------------------------------------------------------------------------------


def encoded(image, kind):
    """The bytes of an image file, PNG or JPEG, always the same for the same pixels."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(  # without what its file said
        buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


def write_image(folder, key, kind, data):
    """{"file", "sha256"} of the image that is then in the folder."""
    name = f"images/{key.replace('/', '-')}{SUFFIXES[kind]}"
    write(folder / name, data)
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


def image_data(folder, picture):
    """The bytes of a picture's file. Raises SynthesisError if they are not those that were kept."""
    try:
        data = (folder / picture["file"]).read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != picture["sha256"]:
        raise SynthesisError(
            f"{folder / picture['file']} is gone or was changed: restore it, or start again in "
            "another folder"
        )
    return data


# --- errors ----------------------------------------------------------------------------------


def read_errors(folder):
    """{(stage, key): sentence} of the items that were skipped."""
    file, found = folder / ERRORS, {}
    for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
        try:
            error = json.loads(line)
            found[error["stage"], error["key"]] = error["error"]
        except (ValueError, TypeError, KeyError):
            continue  # cut off in the middle, or empty: its item is tried again
    return found


def write_error(folder, stage, key, sentence):
    """Begun on a new line, as the last one may have been cut off."""
    sentence = sentence.encode(errors="replace").decode()  # it may quote half a character
    record = json.dumps({"stage": stage, "key": key, "error": sentence})
    try:
        with open(folder / ERRORS, "a", encoding="utf-8") as lines:
            lines.write(f"\n{record}\n")
    except OSError as error:
        raise _unwritable(folder / ERRORS, error) from error


def write(path, data):
    """Bytes into a file, whole or not at all, also when the process is killed."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(exist_ok=True)
        new.write_bytes(data)
        os.replace(new, path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path, error):
    return SynthesisError(
        f"cannot write {path} ({error.strerror or error}): make room or mend it, and run again; "
        "what was made before is kept"
    )
