"""Files that are whole or absent, in folders that can be written and have room.

check_writable("runs/04", 50_000_000)     # before an hour of work, not after it
write_whole(Path("runs/data/pairs.parquet"), data)
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

DRIVE = Path("/content/drive")  # where Colab mounts Google Drive


class StorageError(ValueError):
    """A folder cannot hold what is to be kept there; the message says what to do."""


class PreferenceDataError(ValueError):
    """Preference data that cannot be used; `problems` lists what `check_pairs` found."""

    def __init__(self, message, problems=()):
        super().__init__(message)
        self.problems = list(problems)


def check_writable(folder, needed_bytes=50_000_000):
    """Raises StorageError if `folder` cannot be written, has too little room, or is meant to be
    on a Drive that is not mounted: then it would be lost with the machine."""
    folder = Path(folder)
    if folder.is_relative_to(DRIVE) and not os.path.ismount(DRIVE):
        raise StorageError(
            f"{folder} is on Google Drive, which is not mounted: run `from google.colab import "
            f"drive; drive.mount('{DRIVE}')`, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:  # under a name of its own: others may try, too
            file.write(b"x")
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder} ({error.strerror}): choose another folder"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StorageError(
            f"{folder} has {free / 1e6:.0f} MB free and checkpoints need about "
            f"{needed_bytes / 1e6:.0f} MB: free some room or choose another folder"
        )


def write_whole(path: Path, data: bytes) -> None:
    """Write bytes to a file that is there whole or not at all, whenever the process is killed."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise PreferenceDataError(
            f"cannot write to {path.parent} ({error.strerror}): make room there, or choose another "
            "folder"
        ) from None


# --- results that are kept and gone on with ------------------------------------------------------


def key_of(*parts: Any) -> str:
    """The key of a result: a digest of everything that it depends on, JSON throughout.

    What is not in the key cannot make a difference: weights, settings, prompt, pixels, versions.
    Raises TypeError for a part that is not JSON.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder of results by key, each whole or absent whenever the process is killed.

        store = Store("runs/06")
        missing = [key for key in keys if key not in store]
        store.add({key: "two cups"})          # JSON values: one line of results.jsonl
        write_whole(store.file(key, ".png"), data)

    A line that was cut off is passed over when the folder is opened again, and its results are made
    once more. Values of one key are equal by construction, so whoever writes last does no harm.
    Raises StorageError if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, room: int = 10_000_000):
        check_writable(folder, room)
        self.folder, self.lines = Path(folder), Path(folder, "results.jsonl")
        self.known: dict[str, Any] = {}
        for line in self.lines.read_text("utf-8").split("\n") if self.lines.exists() else ():
            try:
                self.known |= json.loads(line)
            except (ValueError, TypeError):
                continue  # cut off in the middle, or empty

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> Any:
        return self.known[key]

    def add(self, results: dict[str, Any]) -> None:
        """Keep results, all of them or, if the process is killed now, none."""
        with open(self.lines, "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(results)}\n")  # begun anew: the last line may be cut off
            file.flush()
            os.fsync(file.fileno())
        self.known |= results

    def file(self, key: str, suffix: str) -> Path:
        """Where a file of that key is, or is to be written with `write_whole`."""
        return self.folder / "files" / f"{key}{suffix}"
