"""What a label is, which pair it is about, and how a file of labels is read.

    read_labels("runs/labels/ada.jsonl").labels          # {pair: Label}, undone ones are gone

A file has a JSON object a line: first whose labels these are and of which pairs, then the choices
as they came, an `undo` where one was taken back, an `opened` where a session began. A line that was
cut off when the process was killed was never confirmed to anybody: like any line that cannot be
read it is passed over and named.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from helpers.pairs.images import digests_of, rows

ANSWERS = ("chosen", "rejected")  # as the source dataset has them; nobody who labels sees these
PICKS = (*ANSWERS, "tie", "skip")


class LabelError(ValueError):
    """A label or a file of labels that cannot be used; the message names it and what to do."""


@dataclass(frozen=True)
class Label:
    """What one annotator said about one pair.

    `left`: which of the dataset's answers was shown on the left, as A. `seconds` since the pair
    was shown. `reason`: why a pair was skipped.
    """

    pair: str
    pick: str
    left: str
    seconds: float = 0.0
    reason: str = ""
    at: str = ""

    def __post_init__(self):
        if not isinstance(self.pair, str):
            raise LabelError(f"a label has pair={self.pair!r}: it is a text")
        if self.pick not in PICKS or self.left not in ANSWERS:
            raise LabelError(
                f"a label has pick={self.pick!r} and left={self.left!r}: pick is one of "
                f"{', '.join(PICKS)}, left one of {', '.join(ANSWERS)}"
            )
        if not isinstance(self.seconds, (int, float)):
            raise LabelError(f"a label has seconds={self.seconds!r}: they are a number")
        if self.pick == "skip" and not self.reason.strip():
            raise LabelError("a pair is skipped for a reason: say why, in a word or two")

    @property
    def side(self):
        """A (the left one), B, or None for a tie or a skipped pair."""
        return None if self.pick not in ANSWERS else "A" if self.pick == self.left else "B"

    def record(self):
        return {**asdict(self), "at": now()}


def now():
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- which pair ----------------------------------------------------------------------------


def pair_keys(dataset):
    """A name for each pair of a raw dataset, from its picture's stored bytes and its texts.

    The half before the dash is the picture's, so that pairs about one picture are known as such.
    Raises LabelError where two rows are the same pair.
    """
    seen = {}
    for i, row in enumerate(rows(dataset)):
        texts = json.dumps([row["question"], row["chosen"], row["rejected"]])
        key = f"{(digests_of(row)[0] or 'none')[:12]}-{digest_of([texts])[:12]}"
        if key in seen:
            raise LabelError(f"row {i} repeats row {seen[key]}: keep one of them")
        seen[key] = i
    return list(seen)


def picture_of(key):
    return key.partition("-")[0]


def digest_of(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:24]


# --- reading -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelsRead:
    """What a file holds: whose, of which pairs, the last to open it, {pair: Label} in order.

    `torn`: numbers of the lines that cannot be read. `size`: bytes.
    """

    path: Path
    annotator: str | None  # None: the file is empty, or was cut off in its first line
    pairs: str | None
    owner: str | None
    labels: dict
    torn: tuple
    size: int


def read_labels(path):
    """The labels in a file. Raises LabelError if it cannot be read or is no file of labels."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabelError(f"cannot read {path} ({error.strerror}): restore it") from error
    _require_text(path, data)
    head, labels, torn, owner = {}, {}, [], None
    for number, line in enumerate(data.split(b"\n"), 1):
        record = _record(line)
        if record is None:
            torn += [number] if line.strip() else []
        elif "annotator" in record:
            head = _same_head(path, head, _texts(path, number, record, "annotator", "pairs"))
        elif "opened" in record:
            owner = _texts(path, number, record, "opened")["opened"]
        elif "undo" in record:
            labels.pop(_texts(path, number, record, "undo")["undo"], None)
        else:
            label = _label(path, number, record)
            labels[label.pair] = label
    if not head and (labels or len(torn) > 1):
        raise LabelError(f"{path} is not a file of labels: move it out of this folder")
    name, pairs = head.get("annotator"), head.get("pairs")
    return LabelsRead(path, name, pairs, owner, labels, tuple(torn), len(data))


def _record(line):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # cut off; also in the middle of a character
        return None
    return record if isinstance(record, dict) else None


def _require_text(path, data):
    """A crash can leave zeros at the end; an editor, all of it in another encoding."""
    first = data.partition(b"\n")[0].rstrip(b"\0")
    if b"\0" in first or b"\r" in data.replace(b"\r\n", b""):
        raise LabelError(
            f"{path} was saved by another program, in another encoding or with other line ends: "
            "save it as UTF-8 with Unix line ends, or restore it"
        )


def _texts(path, number, record, *names):
    """The record, in which each of these is a text."""
    for name in names:
        if not isinstance(record.get(name), str):
            raise LabelError(
                f"line {number} of {path} has {name}={record.get(name)!r:.80}, not a text: restore "
                "that line"
            )
    return record


def _same_head(path, head, record):
    """A second head is the first one again, after it was cut off; else two files were joined."""
    if head and any(head.get(key) != record.get(key) for key in ("annotator", "pairs")):
        raise LabelError(
            f"{path} holds labels by {head['annotator']!r} and by {record['annotator']!r}, or of "
            "two sets of pairs: take it apart, one file for each"
        )
    return record


def _label(path, number, record):
    try:
        return Label(**record)
    except (TypeError, AttributeError, LabelError) as error:
        raise LabelError(
            f"line {number} of {path} is not a label ({error}): remove that line"
        ) from None
