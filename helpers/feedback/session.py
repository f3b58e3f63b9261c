"""One annotator's way through the pairs: what is shown, what was said, how far it is.

    session = Session(pairs, "Ada", "runs/labels")
    while (card := session.card) is not None:
        session.label("A" if len(card.left) < len(card.right) else "B")

The buttons of `annotate` call these same methods. A simulated annotator, too, sees nothing of a
pair but its card.
"""

import hashlib
import statistics
import time
from dataclasses import dataclass

from datasets import Dataset

from helpers.feedback.file import LabelFile, sound_name
from helpers.feedback.labels import Label, LabelError, digest_of, pair_keys
from helpers.pairs.check import require_sound
from helpers.pairs.images import RAW_NEEDED, PreferenceDataError, rows

LONGEST_REASON = 300


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


class Session:
    """Pairs in the raw columns, labelled by one annotator into `folder`; goes on where it stopped.

    `mine=True` takes over a file of the same name that was begun on another machine. Raises
    LabelError for a bad name or somebody else's file, PreferenceDataError for pairs that cannot be
    labelled, StorageError where the folder cannot be written.
    """

    def __init__(self, pairs, annotator, folder="runs/labels", *, mine=False):
        self.annotator = sound_name(annotator)
        self._rows = _labelable(pairs)
        self._keys = pair_keys(pairs)
        self._left = left_answers(self._keys, self.annotator)
        self._file = LabelFile(folder, self.annotator, digest_of(sorted(self._keys)), mine=mine)
        self.labels = dict(self._file.labels)
        self._shown = time.monotonic()
        for line in self._file.torn:
            print(f"line {line} of {self.path} cannot be read: a choice in it is not counted")
        if self.labels:
            told = f"{len(self.labels)} of {len(self._keys)} pairs"
            print(f"{self.annotator}: {told} are in {self.path}")

    @property
    def path(self):
        return self._file.path

    @property
    def card(self):
        """The pair to label now: the first without a label; None when all have one."""
        for i, key in enumerate(self._keys):
            if key not in self.labels:
                return self._card(i, key)
        return None

    def _card(self, i, key):
        row = self._rows[i]
        answers = [row["chosen"], row["rejected"]]
        left, right = answers if self._left[key] == "chosen" else reversed(answers)
        return Card(key, i + 1, len(self._keys), row["image"], row["question"], left, right)

    def label(self, side):
        """Save "A" (the left answer), "B" or "tie". Raises LabelError if it could not be saved."""
        if side not in ("A", "B", "tie"):
            raise LabelError(f"side={side!r}: choose 'A', 'B' or 'tie'")
        key = self._current()
        left = self._left[key]
        right = "rejected" if left == "chosen" else "chosen"
        self._save(Label(key, {"A": left, "B": right, "tie": "tie"}[side], left, self._seconds()))

    def skip(self, reason):
        """Save why this pair gets no label, in at most 300 characters."""
        key, reason = self._current(), " ".join(str(reason or "").split())[:LONGEST_REASON]
        reason = reason.encode(errors="replace").decode()  # half a character cannot be saved
        self._save(Label(key, "skip", self._left[key], self._seconds(), reason))

    def undo(self):
        """Take the last choice back, and that before it on the next call; returns it."""
        if not self.labels:
            raise LabelError("there is nothing to undo")
        key = next(reversed(self.labels))
        self._file.append({"undo": key})
        self._shown = time.monotonic()
        return self.labels.pop(key)

    @property
    def progress(self):
        times = [label.seconds for label in self.labels.values()]
        left = len(self._keys) - len(times)
        skipped = sum(label.pick == "skip" for label in self.labels.values())
        # The median: a coffee break is not part of the pace.
        seconds = left * statistics.median(times) if times else None
        return Progress(len(times), skipped, len(self._keys), seconds)

    def close(self):
        """Let another kernel go on with the file."""
        self._file.close()

    def _current(self):
        if (card := self.card) is None:
            raise LabelError(f"all {len(self._keys)} pairs are labelled: undo to change the last")
        return card.key

    def _save(self, label):
        self._file.append(label.record())  # first: what is not on disk does not count
        self.labels[label.pair] = label
        self._shown = time.monotonic()

    def _seconds(self):
        return round(time.monotonic() - self._shown, 1)


def left_answers(keys, annotator):
    """{key: the answer shown on the left}: half of the pairs each way, shuffled by the name.

    Halves rather than coins, so that who knows every answer chooses A as often as B.
    """
    name = annotator.casefold()
    order = sorted(keys, key=lambda key: hashlib.sha256(f"{name}/{key}".encode()).digest())
    return {key: ("chosen", "rejected")[i % 2] for i, key in enumerate(order)}


def _labelable(pairs):
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
