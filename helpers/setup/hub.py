"""What the Hub answers, as one set of sentences; and its large files, downloaded once.

    info = ask(lambda: HfApi().dataset_info(name), name)
    file = download(name, "data/train-00000.parquet", info.sha, folder)

Whatever goes wrong ends as one PreferenceDataError that says what to do. Texts of HTTP errors are
not passed on: they can hold a signed address.
"""

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from filelock import FileLock, Timeout
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm.auto import tqdm

from helpers.setup.storage import PreferenceDataError, check_writable

TAGS = ("dpo", "preference", "trl")  # of a card for pairs: by them we know our own
WAITS = (1, 2, 4, 8)  # seconds before each new try


def ask(call: Callable[[], Any], name: str) -> Any:
    """call(), tried again after each of WAITS seconds while the connection breaks.

    name: what is asked for, a dataset or a file of one, for the sentence. Raises
    PreferenceDataError at once where another try would not help, else after the last one.
    """
    for number, wait in enumerate((*WAITS, None), start=1):
        try:
            return call()
        except PreferenceDataError:
            raise
        except Exception as error:  # the network has many ways to fail
            if wait is None or not _passes(error):
                raise PreferenceDataError(_sentence(error, name)) from None
            tqdm.write(f"{_sentence(error, name)} (try {number} of {len(WAITS) + 1}: {wait:g} s)")
            time.sleep(wait)


def download(name: str, path: str, revision: str, folder: str | Path) -> Path:
    """A file of a dataset on the Hub, below `folder`: downloaded unless it is there already.

    revision: a commit, so that the file cannot change. Says the size before it starts. What has
    come stays, however the process ends, and the next call goes on from there: hf_hub_download of
    huggingface_hub 2.4 drops it, its http_get takes it up. Whoever shares the folder calls this
    within `alone`. Raises PreferenceDataError, or StorageError if the file does not fit there.
    """
    file, where = Path(folder, revision[:12], path), f"{path} of {name}"
    if file.exists():
        return file
    url = hf_hub_url(name, path, repo_type="dataset", revision=revision)
    size = ask(partial(get_hf_file_metadata, url), where).size
    part = file.with_name(file.name + ".part")
    there = part.stat().st_size if part.exists() else 0
    check_writable(part.parent, size - there)
    goes_on = f", {there / 1e6:.0f} MB of it are here already" if there else ""
    print(f"downloading {where}: {size / 1e6:.0f} MB{goes_on}, to {file.parent}")

    def go_on():
        with open(part, "ab") as end:
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # bytes as they are
            http_get(url, end, resume_size=end.tell(), headers=headers, expected_size=size,
                     displayed_filename=path)  # fmt: skip

    ask(go_on, where)
    os.replace(part, file)
    return file


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """One process at a time for a folder: a second notebook waits, then finds the files there."""
    digest = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]
    # Not in the folder: a Drive knows no locks.
    lock = FileLock(Path(tempfile.gettempdir(), f"course-{digest}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process is reading into {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def undamaged(where: str, file: Path | None = None) -> Iterator[None]:
    """Turns what pyarrow says of a broken parquet file into a sentence that names it.

    file: a download, which is removed then, or the next call would read the damage again.
    """
    try:
        yield
    except PreferenceDataError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        if file is not None:
            file.unlink(missing_ok=True)
        raise PreferenceDataError(
            f"{where} is damaged, or not parquet ({first_line(error)}): run this again to "
            "fetch it anew; if it stays so, choose another dataset"
        ) from None


# --- the sentences -----------------------------------------------------------------------------


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error: Exception) -> bool:
    """True for what may be over in a moment: a broken connection, 429, the server's own faults."""
    if status := _status(error):
        return status == 429 or status >= 500
    broken = isinstance(error, (ConnectionError, TimeoutError)) or "httpx" in type(error).__module__
    cut_short = "Consistency check failed" in str(error)  # an OSError of http_get
    offline = isinstance(error, OfflineModeIsEnabled)
    return (broken or cut_short or _no_answer(error)) and not offline


def _no_answer(error: Exception) -> bool:
    """Without an answer, huggingface_hub looks on the disk and misses the file there.

    `datasets` makes a FileNotFoundError of that, which has it in its words.
    """
    return "LocalEntryNotFoundError" in f"{type(error).__name__} {error}"


def _sentence(error: Exception, name: str) -> str:
    status = _status(error)
    if isinstance(error, GatedRepoError) or "is a gated dataset" in str(error):
        return (
            f"{name} is gated: ask for access on its page on the Hub, then log in with "
            "`hf auth login`, or work on the pocket track"
        )
    if status in (401, 403, 404):
        return (
            f"{name} is not there, or not for you ({status}): check the name; if it is private, "
            "log in with `hf auth login`"
        )
    if status == 429:
        return f"the Hub has had too many requests for {name} (429): wait some minutes, or log in"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{name} is not on this disk and HF_HUB_OFFLINE forbids the network: unset it, or work "
            "on the pocket track"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no room for {name} ({error.strerror}): make room, or choose another folder"
    if status or _passes(error):
        reason = "no answer" if _no_answer(error) else status or type(error).__name__
        return f"the connection to {name} broke ({reason}): run this again"
    return (
        f"{name} cannot be read ({type(error).__name__}: {first_line(error)}): check the name, or "
        "work on the pocket track, which needs no network"
    )


def first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
