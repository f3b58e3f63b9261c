"""Call a stage on its items, batch by batch: nothing twice, nothing lost, every fault named.

    records = call_stage(Task("answers", stage, items, read_text), work)

A batch has the same items however often a run is interrupted. A call that fails as a whole is
repeated item by item, so that the item at fault is found and the others are done.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from helpers.feedback.items import (
    RESERVED,
    Drawn,
    Item,
    Score,
    SynthesisError,
    as_json,
    name_of,
    release,
)
from helpers.feedback.store import (
    encoded,
    read_errors,
    read_parts,
    write_error,
    write_image,
    write_part,
)
from helpers.vlm.load import ModelError

ROLES = {
    "pictures": "image generator",
    "image_scores": "image reward",
    "answers": "answerer",
    "answer_scores": "answer reward",
}


@dataclass(frozen=True)
class Task:
    """All that one stage has to do in a run."""

    kind: str  # of helpers.feedback.store.STAGES
    stage: Callable
    items: list[Item]  # without pictures
    read: Callable  # (result, item, known) -> record; raises Fault for what is none
    ready: Callable = lambda item: item  # the item as the stage sees it, with its picture
    part: str = ""  # begins the names of its parts

    def __str__(self):
        return f"the {ROLES[self.kind]} {name_of(self.stage)!r}"


@dataclass(frozen=True)
class Work:
    """Where results are kept, and how it goes on after an error."""

    folder: Path
    batch_size: int
    on_error: str  # "stop" or "skip"
    bar: tqdm


class Fault(ValueError):
    """What a stage gave for an item is no result; the message says what it is instead."""


def call_stage(task, work):
    """{key: record} of the items that are done; those with an error are not in it.

    Raises SynthesisError at the first error if work.on_error is "stop", and always when a stage
    cannot read its model (ModelError). Of what is done nothing is called again, and a stage with
    nothing left to do is not called at all.
    """
    known = read_parts(work.folder, task.kind)
    skipped = {key for kind, key in read_errors(work.folder) if kind == task.kind}
    done = {*known, *(skipped if work.on_error == "skip" else ())}
    _pass_over(work.bar, sum(item.key in done for item in task.items))
    work.bar.set_description(task.kind.replace("_", " "))
    try:
        for start in range(0, len(task.items), work.batch_size):
            batch = task.items[start : start + work.batch_size]
            name = f"{task.part}{start // work.batch_size:05d}"
            if not any(item.key in done for item in batch):
                _call(task, work, batch, name, known)
                continue
            for i, item in enumerate(batch):  # interrupted while its items were done one by one
                if item.key not in done:
                    _call(task, work, [item], f"{name}-{i:05d}", known)
    finally:
        release(task.stage)
    return {item.key: known[item.key] for item in task.items if item.key in known}


def _call(task, work, items, name, known):
    """One call of the stage; if it fails as a whole, one for each item that it left undone."""
    ready, i = [task.ready(item) for item in items], 0
    try:
        for results in _results(task.stage, ready):
            part = name if len(results) == len(items) else f"{name}-{i:05d}"
            _keep(task, work, items[i : i + len(results)], results, part, known)
            i += len(results)
    except ModelError as error:  # no item is at fault, so that none can be skipped
        kept = f"What was made before is kept in {work.folder}"
        raise SynthesisError(f"{task}: {str(error).removesuffix('.')}. {kept}") from error
    except _Failed as failure:
        if len(items) == 1:
            _fail(task, work, items[0], str(failure))
            return
        warnings.warn(
            f"{task} failed on the {len(items)} items {items[0].key} to {items[-1].key} at once "
            f"({failure}): those it left undone are done one by one",
            stacklevel=3,
        )
        for place in range(i, len(items)):
            _call(task, work, [items[place]], f"{name}-{place:05d}", known)


class _Failed(Exception):
    """A call failed as a whole; the message tells how."""


def _results(stage, items):
    """Yields lists of results: all at once, or one by one from a stage that yields."""
    try:
        results, count = stage(items), 0
        if hasattr(results, "__next__") and len(items) > 1:
            for count, result in enumerate(results, 1):
                if count <= len(items):
                    yield [result]
        elif results is None or isinstance(results, (str, bytes, dict, set, frozenset)):
            raise TypeError(f"it returned {results!r:.80}, not a list of results")
        else:
            results = list(results)
            count = len(results)
            if count == len(items):
                yield results
        if count != len(items):
            raise ValueError(f"it returned {count} results for {len(items)} items")
    except ModelError:
        raise
    except Exception as error:  # a stage may raise anything
        raise _Failed(f"{type(error).__name__}: {error}"[:300]) from error


def _keep(task, work, items, results, part, known):
    """Write those results that are sound, then tell of the others."""
    records, faults = [], []
    for item, result in zip(items, results, strict=True):
        try:
            known[item.key] = task.read(result, item, known)
            records.append(known[item.key])
        except Fault as fault:
            faults.append((item, str(fault)))
    if records:
        write_part(work.folder, task.kind, part, records)
        work.bar.update(len(records))
    for item, fault in faults:
        _fail(task, work, item, fault)


def _fail(task, work, item, fault):
    sentence = f"{task} on item {item.key} (prompt {item.prompt!r:.80}): {fault}"
    if work.on_error == "stop":
        raise SynthesisError(
            f"{sentence}. What was made before is kept in {work.folder}: mend it and run again, or "
            'set on_error="skip" to go on without such items'
        )
    write_error(work.folder, task.kind, item.key, sentence)
    work.bar.update(1)


def _pass_over(bar, count):
    """Items done in an earlier session count, but not for the speed."""
    bar.n, bar.initial, bar.last_print_n = (
        value + count for value in (bar.n, bar.initial, bar.last_print_n)
    )


# --- what is a result ------------------------------------------------------------------------


def read_picture(folder, kind, size):
    """A reader of a generator's results, which writes the image files.

    `size`: (width, height); None: that of the first picture of the run.
    """

    def read(result, item, known):
        drawn = result if isinstance(result, Drawn) else Drawn(result)
        image = drawn.image
        if not isinstance(image, Image.Image):
            raise Fault(f"it gave {_shown(image)}, not a PIL image")
        if image.mode != "RGB":
            raise Fault(f"its picture has mode {image.mode}, not RGB: convert it")
        first = next(iter(known.values()), None)
        wanted = size or (first and (first["width"], first["height"])) or image.size
        if image.size != tuple(wanted) or 0 in image.size:
            sizes = "{} x {} pixels, not {} x {}".format(*image.size, *wanted)
            whose = "" if size else " as the run's first picture (which is right, say in `size`)"
            raise Fault(f"its picture has {sizes}{whose}")
        about = _about(drawn.about)
        if taken := RESERVED & set(drawn.about):
            raise Fault(f"its `about` has {min(taken)!r}, which has a meaning: choose another name")
        try:
            data = encoded(image, kind)
        except Exception as error:  # a file that is cut off shows only here
            raise Fault(f"its picture cannot be saved ({error})") from None
        file = write_image(folder, item.key, kind, data)
        width, height = image.size
        return {"key": item.key, **file, "width": width, "height": height, "about": about}

    return read


def read_text(result, item, known):
    if not isinstance(result, str):
        raise Fault(f"it gave {_shown(result)}, not a text")
    try:
        result.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"its text cannot be written ({error.reason})") from None
    return {"key": item.key, "answer": str(result)}


def read_score(result, item, known):
    if isinstance(result, Score) and result.nothing:
        return {"key": item.key, "score": None, "about": _about(result.about)}
    try:
        if isinstance(result, (str, bytes)):
            raise TypeError
        value = float(result)
    except Exception:  # arrays and tensors of several numbers raise kinds of their own
        raise Fault(f"it gave {_shown(result)}, not a number") from None
    if not math.isfinite(value):
        raise Fault(f"it gave {value}, not a finite number")
    about = _about(result.about if isinstance(result, Score) else {})
    return {"key": item.key, "score": value, "about": about}


def _about(about):
    if not isinstance(about, dict):
        raise Fault(f"its `about` is {_shown(about)}, not a dict")
    try:
        return as_json(about, "its `about`")
    except SynthesisError as error:
        raise Fault(str(error)) from None


def _shown(value):
    """In one line, and short."""
    return (
        "None"
        if value is None
        else f"a {type(value).__name__} ({' '.join(repr(value).split())[:60]})"
    )
