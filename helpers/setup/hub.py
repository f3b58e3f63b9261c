"""A file on the Hub, read block by block; what was read stays on disk and is not asked for twice.

    file = RemoteFile(partial(ask_range, url, name), size, folder)
    pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK)

Whatever goes wrong on the way ends as one PreferenceDataError that says what to do. Texts of HTTP
errors are not passed on: they can hold a signed address.
"""

import io
import time

from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from tqdm.auto import tqdm

from helpers.setup.storage import PreferenceDataError, write_whole

TAGS = ("dpo", "preference", "trl")  # of a card for pairs: by them we know our own
BLOCK = 4 * 2**20  # bytes: a lost connection costs at most one of them
WAITS = (1, 2, 4, 8)  # seconds before each new try
LONGEST_WAIT = 60  # seconds; when the Hub asks for more (429), we stop instead


def ask(call, name):
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
            wait = wait and _longer(error, wait)
            if wait is None or not _passes(error):
                raise PreferenceDataError(_sentence(error, name)) from None
            tqdm.write(f"{_sentence(error, name)} (try {number} of {len(WAITS) + 1}: {wait:g} s)")
            time.sleep(wait)


def ask_range(url, name, start, end):
    """Bytes start to end of a file on the Hub, as `ask` does it."""
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
    headers["Accept-Encoding"] = "identity"  # a range of a compressed body would be no range

    def get():
        response = get_session().get(url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        sent = response.headers.get("Content-Range", f"bytes {start}-")
        if response.status_code == 206 and not sent.startswith(f"bytes {start}-"):
            raise ConnectionError("another part of the file")
        if len(response.content) > end - start:
            raise PreferenceDataError(f"the server of {name} sends no parts of files: use the Hub")
        if len(response.content) < end - start:
            raise ConnectionError("cut short")
        return response.content

    return ask(get, name)


def _status(error):
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error):
    """True for what may be over in a moment: a broken connection, 429, the server's own faults."""
    if status := _status(error):
        return status == 429 or status >= 500
    broken = isinstance(error, (ConnectionError, TimeoutError)) or "httpx" in type(error).__module__
    return (broken or _no_answer(error)) and not isinstance(error, OfflineModeIsEnabled)


def _no_answer(error):
    """Without an answer, huggingface_hub looks on the disk and misses the file there.

    `datasets` makes a FileNotFoundError of that, which has it in its words.
    """
    return "LocalEntryNotFoundError" in f"{type(error).__name__} {error}"


def _longer(error, wait):
    """The wait, or the one that the Hub asks for; None if that is too long."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "0")
    wait = max(wait, int(asked) if asked.isdigit() else 0)
    return wait if wait <= LONGEST_WAIT else None


def _sentence(error, name):
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
    if status or _passes(error):
        reason = "no answer" if _no_answer(error) else status or type(error).__name__
        return f"the connection to {name} broke ({reason})"
    return (
        f"{name} cannot be read ({type(error).__name__}: {first_line(error)}): check the name, or "
        "work on the pocket track, which needs no network"
    )


def first_line(error):
    return (str(error).strip() or "no reason given").splitlines()[0]


class RemoteFile(io.RawIOBase):
    """For reading by pyarrow. `ask_bytes(start, end)` gives bytes; blocks are kept in `folder`."""

    def __init__(self, ask_bytes, size, folder, on_bytes=lambda count: None):
        """on_bytes: called with the number of bytes of each block that was not on disk."""
        self.ask_bytes, self.size, self.folder, self.on_bytes = ask_bytes, size, folder, on_bytes
        self.position = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=io.SEEK_SET):
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer):
        end, filled = min(self.position + len(buffer), self.size), 0
        while self.position < end:
            number, offset = divmod(self.position, BLOCK)
            piece = self._block(number)[offset : offset + end - self.position]
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self.position += len(piece)
        return filled

    def _block(self, number):
        path = self.folder / str(number)
        if path.exists():
            return path.read_bytes()
        data = self.ask_bytes(number * BLOCK, min((number + 1) * BLOCK, self.size))
        write_whole(path, data)
        self.on_bytes(len(data))
        return data


def drop_blocks(folder, position):
    """Remove the kept blocks of a RemoteFile that end before a position."""
    for path in folder.glob("[0-9]*"):
        if path.name.isdigit() and (int(path.name) + 1) * BLOCK <= position:
            path.unlink(missing_ok=True)
