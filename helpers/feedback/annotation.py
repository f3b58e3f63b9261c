"""People label pairs: each pair is shown blind, and every choice is on disk before the next one.

    session = Session(pairs, "Ada", "runs/labels")        # goes on where Ada stopped
    while (card := session.card) is not None:             # or the buttons of `widget.annotate`
        session.label("A" if len(card.left) < len(card.right) else "B")
    read_labels("runs/labels/ada.jsonl").labels           # {key: Label}

A simulated annotator, too, sees nothing of a pair but its card. `helpers.feedback.agreement`
compares and merges the files of several annotators.
"""

import hashlib
import json
import statistics
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from datasets import Dataset
from filelock import FileLock, Timeout

from helpers.pairs.check import require_sound
from helpers.pairs.images import RAW_NEEDED, digests_of, rows
from helpers.setup.storage import PreferenceDataError, StorageError, check_writable, write_whole

ANSWERS = ("chosen", "rejected")  # as the source dataset has them; annotators never see these
OTHER = {"chosen": "rejected", "rejected": "chosen"}
PICKS = (*ANSWERS, "tie", "skip")
FORBIDDEN = '"*/:<>?\\|'  # in the file names of one system or another
LONGEST_NAME, LONGEST_FILE_NAME = 60, 200  # characters; bytes, of the 255 that systems take
LONGEST_REASON = 300  # characters
OWNER_FILE = Path(__file__).resolve().parents[2] / "runs" / ".annotator"


class LabelError(ValueError):
    """A label or a file of labels that cannot be used; the message names it and what to do."""


@dataclass(frozen=True)
class Label:
    """What one annotator said about one pair.

    `pair`: its key. `pick`: "chosen", "rejected", "tie" or "skip". `left`: which of the dataset's
    answers was shown on the left, as A. `seconds` since the pair was shown. `reason`: why a pair
    was skipped. `at`: when, in UTC. Raises LabelError for any other values.
    """

    pair: str
    pick: str
    left: str
    seconds: float = 0.0
    reason: str = ""
    at: str = ""

    def __post_init__(self):
        sound = isinstance(self.pair, str) and isinstance(self.seconds, (int, float))
        if not sound or self.pick not in PICKS or self.left not in ANSWERS:
            raise LabelError(
                f"{self}: pair is a text, pick one of {', '.join(PICKS)}, left one of "
                f"{', '.join(ANSWERS)}, seconds a number"
            )
        if self.pick == "skip" and not self.reason.strip():
            raise LabelError("a pair is skipped for a reason: say why, in a word or two")

    @property
    def side(self) -> str | None:
        """A (the left answer), B, or None for a tie or a skipped pair."""
        return {self.left: "A", OTHER[self.left]: "B"}.get(self.pick)


@dataclass(frozen=True)
class Card:
    """A pair as its annotator sees it: `left` is answer A, `right` answer B; `number` from 1."""

    key: str
    number: int
    total: int
    image: dict  # {"bytes", "path"}, as stored
    question: str
    left: str
    right: str


@dataclass(frozen=True)
class Progress:
    """How many pairs are done (of them skipped), and the seconds left at the pace so far."""

    done: int
    skipped: int
    total: int
    seconds_left: float | None  # None before the first label


def pair_keys(dataset: Dataset | Iterable[dict]) -> list[str]:
    """A key for each pair of a raw dataset, from its image's stored bytes and its texts.

    The half before the dash is the image's (`image_key`), so that pairs about one image are known
    as such. Raises LabelError where two rows are the same pair.
    """
    seen = {}
    for i, row in enumerate(rows(dataset)):
        texts = json.dumps([row["question"], row["chosen"], row["rejected"]])
        key = f"{(digests_of(row)[0] or 'none')[:12]}-{_digest(texts)[:12]}"
        if key in seen:
            raise LabelError(f"row {i} repeats row {seen[key]}: keep one of them")
        seen[key] = i
    return list(seen)


def image_key(pair: str) -> str:
    """The image's part of a pair's key."""
    return pair.partition("-")[0]


def left_answers(keys: Iterable[str], annotator: str) -> dict[str, str]:
    """{key: the answer shown on the left}, shuffled by the annotator's name.

    Half of the pairs each way rather than a coin for each: who always picks the better answer
    then chooses A as often as B, and position bias shows as a distance from one half.
    """
    name = annotator.casefold()
    order = sorted(keys, key=lambda key: hashlib.sha256(f"{name}/{key}".encode()).digest())
    return {key: ANSWERS[i % 2] for i, key in enumerate(order)}


# --- one annotator's session -----------------------------------------------------------------


class Session:
    """Pairs in the raw columns, labelled by one annotator into `folder`; goes on where it stopped.

    Two people with one name are kept apart by a lock (both at once on one machine), by the owner
    in the file (one later, or elsewhere; `mine=True` takes such a file over), and by the file's
    length, which nobody else may change between two choices of a session.

    Raises LabelError for a name that cannot be a file's, or a file that is open elsewhere, belongs
    to somebody else or is about other pairs; PreferenceDataError for pairs that cannot be labelled;
    StorageError where the folder cannot be written.
    """

    def __init__(
        self, pairs: Dataset, annotator: str, folder: str | Path = "runs/labels", *, mine=False
    ):
        self.annotator, stem = _name_and_stem(annotator)
        self._rows = _rows_to_label(pairs)
        self._keys = pair_keys(self._rows)
        self._left = left_answers(self._keys, self.annotator)
        check_writable(folder, 1_000_000)
        self.path = Path(folder, f"{stem}.jsonl")
        self._lock = self._locked()
        try:
            self._open(mine)
        except BaseException:
            self.close()
            raise
        self._shown = time.monotonic()
        if self.labels:
            told = f"{len(self.labels)} of {len(self._keys)} pairs"
            print(f"{self.annotator}: {told} are in {self.path}")

    def _locked(self):
        """A lock held until the process ends, however it ends; once more in one kernel is fine."""
        file = self.path.with_name(f".{self.path.stem}.lock")
        lock = FileLock(file, timeout=0, thread_local=False, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            raise LabelError(
                f"{self.path} is open in another kernel under the name {self.annotator!r}: shut "
                "that kernel down; if it is another person's, choose another name"
            ) from None
        except OSError:
            return None  # some network drives have no locks; owner and length are still compared
        return lock

    def _open(self, mine):
        owner, about = owner_token(), _digest("\n".join(sorted(self._keys)))
        there = read_labels(self.path) if self.path.exists() else LabelsRead()
        self.labels, self._data = there.labels, there.data
        if there.annotator is None:
            return self._append(
                {"annotator": self.annotator, "pairs": about, "at": _now()},
                {"opened": owner, "at": _now()},
            )
        if there.annotator.casefold() != self.annotator.casefold():
            raise LabelError(
                f"{self.path} holds labels by {there.annotator!r}, whose name gives the same file "
                f"as {self.annotator!r}: choose another name"
            )
        if there.pairs != about:
            raise LabelError(
                f"{self.path} holds {len(there.labels)} labels of other pairs than these: load "
                "those, or choose another folder"
            )
        if there.owner not in (None, owner) and not mine:
            raise LabelError(
                f"{self.path} was begun by somebody named {there.annotator!r} on another machine "
                "or in another copy of the course: choose another name; if it was you, open it "
                "once with mine=True"
            )
        self._append({"opened": owner, "at": _now()})

    def _append(self, *records):
        """Lines at the end, on disk when this returns; else LabelError, and the file is as before.

        The file is written whole each time: it is small, and no kill can tear a line.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != len(self._data):
            raise LabelError(
                f"not saved: {self.path} was changed or removed since this session opened it, by "
                "another session or another person under this name: restore it, run the cell that "
                "opens it again, or choose another name"
            )
        # After a line that was cut off, by a copy that broke say, the next one begins anew.
        newline = "" if self._data[-1:] in (b"", b"\n") else "\n"
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        data = self._data + (newline + lines).encode()
        try:
            write_whole(self.path, data)
        except (PreferenceDataError, StorageError) as error:
            raise LabelError(
                f"not saved: {self.path} is as it was, so choose again after this: {error}"
            ) from error
        self._data = data

    @property
    def card(self) -> Card | None:
        """The pair to label now: the first without a label; None when all have one."""
        for i, key in enumerate(self._keys):
            if key not in self.labels:
                row, left = self._rows[i], self._left[key]
                shown = row["image"], row["question"], row[left], row[OTHER[left]]
                return Card(key, i + 1, len(self._keys), *shown)
        return None

    def label(self, side: str) -> None:
        """Save "A" (the left answer), "B" or "tie". Raises LabelError if it could not be saved."""
        if side not in ("A", "B", "tie"):
            raise LabelError(f"side={side!r}: choose 'A', 'B' or 'tie'")
        self._save(side)

    def skip(self, reason: str) -> None:
        """Save why this pair gets no label, in at most 300 characters."""
        reason = " ".join(str(reason or "").split())[:LONGEST_REASON]
        # Half of a surrogate pair, as a cut emoji leaves it, cannot be encoded.
        self._save("skip", reason.encode(errors="replace").decode())

    def _save(self, side, reason=""):
        if (card := self.card) is None:
            raise LabelError(f"all {len(self._keys)} pairs are labelled: undo to change the last")
        left, seconds = self._left[card.key], round(time.monotonic() - self._shown, 1)
        pick = {"A": left, "B": OTHER[left]}.get(side, side)  # "tie" and "skip" are what they are
        label = Label(card.key, pick, left, seconds, reason, _now())
        self._append(asdict(label))  # first: what is not on disk does not count
        self.labels[card.key] = label
        self._shown = time.monotonic()

    def undo(self) -> Label:
        """Take the last choice back, and that before it on the next call; returns it."""
        if not self.labels:
            raise LabelError("there is nothing to undo")
        key = next(reversed(self.labels))
        self._append({"undo": key})
        self._shown = time.monotonic()
        return self.labels.pop(key)

    @property
    def progress(self) -> Progress:
        """How far the session is; the pace is the median, so that a coffee break does not count."""
        times = [label.seconds for label in self.labels.values()]
        left = len(self._keys) - len(times)
        skipped = sum(label.pick == "skip" for label in self.labels.values())
        seconds = left * statistics.median(times) if times else None
        return Progress(len(times), skipped, len(self._keys), seconds)

    def close(self) -> None:
        """Let another kernel have the file; the end of the process does it as well."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def owner_token() -> str:
    """Who this is: the same from run to run, another in each copy of the course and for each user.

    A digest of a random number and the home folder: labels are passed around, and nothing can be
    read off it.
    """
    if not OWNER_FILE.exists():
        write_whole(OWNER_FILE, uuid4().hex.encode())
    return _digest(OWNER_FILE.read_text(encoding="utf-8").strip() + "\n" + str(Path.home()))


def _name_and_stem(annotator):
    """The name with single spaces, and the stem of its file, which is blind to capitals."""
    text = annotator if isinstance(annotator, str) else ""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    stem = name.casefold().replace(" ", "_")
    bad = [c for c in name if c in FORBIDDEN or not c.isprintable()]
    long = len(name) > LONGEST_NAME or len(stem.encode(errors="replace")) > LONGEST_FILE_NAME
    if not name or bad or long or name.startswith("."):
        raise LabelError(
            f"annotator={annotator!r} gives no file name: give the name of the one who labels, of "
            f"at most {LONGEST_NAME} characters, without a dot in front, any of "
            f"{' '.join(FORBIDDEN)} or what is invisible"
        )
    return name, stem


def _rows_to_label(pairs):
    """The rows of raw pairs, images as stored. Raises PreferenceDataError."""
    if not isinstance(pairs, Dataset):
        raise PreferenceDataError(
            f"pairs is a {type(pairs).__name__}: pass a Dataset, of a stream its first rows as "
            "Dataset.from_list(list(stream.take(20)))"
        )
    if missing := [column for column in RAW_NEEDED if column not in pairs.column_names]:
        raise PreferenceDataError(
            f"the raw column `{'`, `'.join(missing)}` is missing (there are: "
            f"{', '.join(pairs.column_names)}): label pairs in the raw columns"
        )
    return list(rows(require_sound(pairs)))


# --- files of labels -------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelsRead:
    """What a file holds: whose labels, of which pairs, who opened it last, {key: Label} in order.

    `annotator` is None where the file is empty, or was cut off in its first line. `data`: its
    bytes.
    """

    annotator: str | None = None
    pairs: str | None = None  # a digest of their keys
    owner: str | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    data: bytes = b""


def read_labels(path: str | Path) -> LabelsRead:
    """An annotator's file: one JSON object a line.

    First whose labels these are and of which pairs; then an `opened` for each session, the labels
    in their order, and an `undo` for each that was taken back. A line that was cut off, or is no
    JSON for another reason, is passed over, and its number printed.

    Raises LabelError if the file cannot be read or is no file of labels.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabelError(f"cannot read {path} ({error.strerror}): restore it") from error
    first = data.partition(b"\n")[0].rstrip(b"\0")  # a crash of the system can leave zeros behind
    if b"\0" in first or b"\r" in data.replace(b"\r\n", b""):
        raise LabelError(
            f"{path} was saved by another program, in another encoding or with other line ends: "
            "save it as UTF-8 with Unix line ends, or restore it"
        )
    heads, owner, labels, torn = {}, None, {}, []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            record = json.loads(line or b"null")
        except (ValueError, RecursionError):  # cut off, perhaps in the middle of a character
            record = None
        match record:
            case {"annotator": str(name), "pairs": str(pairs)}:
                heads[name, pairs] = number
            case {"opened": str(token)}:
                owner = token
            case {"undo": str(key)}:
                labels.pop(key, None)
            case dict():
                label = _label(record, f"line {number} of {path}")
                labels[label.pair] = label
            case _:
                torn += [number] if line.strip() else []
    if len(heads) > 1:
        (one, _), (other, _) = list(heads)[:2]
        raise LabelError(
            f"{path} holds labels by {one!r} and by {other!r}, or of two sets of pairs: take it "
            "apart, one file for each"
        )
    if not heads and (labels or len(torn) > 1):
        raise LabelError(f"{path} is not a file of labels: move it out of this folder")
    for number in torn:
        print(f"line {number} of {path} cannot be read: a choice in it is not counted")
    annotator, pairs = next(iter(heads), (None, None))
    return LabelsRead(annotator, pairs, owner, labels, data)


def _label(record, where):
    try:
        return Label(**record)
    except (TypeError, AttributeError, LabelError) as error:
        raise LabelError(
            f"{where} is not a label ({error}): restore that line, or remove it"
        ) from None


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _now():
    return datetime.now(UTC).isoformat(timespec="seconds")
