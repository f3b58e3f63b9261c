"""One annotator's file: opened for its owner alone, every choice on disk before the next pair.

    file = LabelFile("runs/labels", "Ada", digest_of(keys))
    file.append(Label(key, "chosen", left="rejected", seconds=4.2).record())

Two people with one name are kept apart three times over: by a lock, while both are at it on one
machine; by the owner in the file, when the other comes later or from elsewhere; and by the file's
length, which nobody else may have changed between two choices of a session.
"""

import json
import os
import unicodedata
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from helpers.feedback.labels import LabelError, digest_of, now, read_labels
from helpers.setup.storage import check_writable

FORBIDDEN = set('/\\<>:"|?*')  # in the file names of one system or another
LONGEST_NAME, LONGEST_FILE_NAME = 60, 200  # characters; bytes, of the 255 that systems take
OWNER_FILE = Path(__file__).resolve().parents[2] / "runs" / ".annotator"


class LabelFile:
    """One annotator's file, open for this process alone; `labels` are those it held when opened.

    Raises LabelError for a name that cannot be one, a file that is open elsewhere, belongs to
    somebody else (`mine=True` takes it over) or is about other pairs; StorageError where the
    folder cannot be written.
    """

    def __init__(self, folder, annotator, pairs, *, mine=False):
        name = sound_name(annotator)
        check_writable(folder, 1_000_000)
        self.path = Path(folder, f"{stem_of(name)}.jsonl")
        self._lock = _locked(self.path, name)
        try:
            self.labels, self.torn = self._open(name, pairs, mine)
        except BaseException:
            self.close()
            raise

    def _open(self, name, pairs, mine):
        owner = owner_token()
        try:
            self.path.touch()
        except OSError as error:
            raise LabelError(f"cannot write {self.path} ({error.strerror}): make room") from error
        there = read_labels(self.path)
        self._size = there.size
        if there.annotator is None:
            self.append({"annotator": name, "pairs": pairs, "at": now()})
        else:
            _require_own(there, name, pairs, owner, mine)
        self.append({"opened": owner, "at": now()})
        return there.labels, there.torn

    def append(self, record):
        """One line, on disk when this returns; else LabelError, and the file is as before."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            with open(self.path, "r+b", buffering=0) as file:
                self._require_unchanged(file)
                self._write(file, line)
        except OSError as error:
            raise LabelError(
                f"not saved: {self.path} cannot be written ({error.strerror}): make room or "
                "restore the file, and choose again"
            ) from error

    def _require_unchanged(self, file):
        if file.seek(0, os.SEEK_END) != self._size:
            raise LabelError(
                f"not saved: {self.path} was changed since this session opened it, by another "
                "session or another person under this name: run the cell that opens it again, or "
                "choose another name"
            )

    def _write(self, file, line):
        if self._size:  # a line that was cut off must not swallow this one
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(self._size)
            raise
        self._size += len(line)

    def close(self):
        """Let another kernel have the file; the end of the process does it as well."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _require_own(there, name, pairs, owner, mine):
    if there.annotator.casefold() != name.casefold():
        raise LabelError(
            f"{there.path} holds labels by {there.annotator!r}, whose name gives the same file as "
            f"{name!r}: choose another name"
        )
    if there.pairs != pairs:
        raise LabelError(
            f"{there.path} holds {len(there.labels)} labels of other pairs than these: load those, "
            "or choose another folder"
        )
    if there.owner not in (None, owner) and not mine:
        raise LabelError(
            f"{there.path} was begun by somebody named {there.annotator!r} on another machine or "
            "in another copy of the course: choose another name; if it was you, open it once with "
            "mine=True"
        )


def sound_name(annotator):
    """The name, with single spaces. Raises LabelError if it cannot be one."""
    text = annotator if isinstance(annotator, str) else ""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name:
        raise LabelError(f"annotator={annotator!r}: give the name of the one who labels")
    bad = sorted({c for c in name if c in FORBIDDEN or not c.isprintable()})
    long = len(name) > LONGEST_NAME or len(stem_of(name).encode()) > LONGEST_FILE_NAME
    if bad or long or name.startswith("."):
        raise LabelError(
            f"annotator={annotator!r} gives no file name: at most {LONGEST_NAME} characters, no "
            f"dot in front, none of {' '.join(sorted(FORBIDDEN))} and none that is invisible"
            + (f" (leave out {', '.join(map(ascii, bad))})" if bad else "")
        )
    return name


def stem_of(name):
    """Names that differ in capitals alone share a file on some systems: so on all."""
    return name.casefold().replace(" ", "_")


def _locked(path, name):
    """Held until the process ends, however it ends; opened again in one kernel, the same lock."""
    lock = FileLock(
        path.with_name(f".{path.stem}.lock"), timeout=0, thread_local=False, is_singleton=True
    )
    try:
        lock.acquire()
    except Timeout:
        raise LabelError(
            f"{path} is open in another kernel under the name {name!r}: shut that kernel down; if "
            "it is another person's, choose another name"
        ) from None
    except OSError:
        return None  # some network drives have no locks; owner and length are still compared
    return lock


def owner_token(file=None):
    """Who this is: the same from run to run, another in each copy of the course and for each user.

    Nothing can be read off it: labels are passed around.
    """
    file = Path(file or OWNER_FILE)
    if not file.exists():
        check_writable(file.parent, 1_000_000)
        file.write_text(uuid4().hex, encoding="utf-8")
    return digest_of([file.read_text(encoding="utf-8").strip(), str(Path.home())])
