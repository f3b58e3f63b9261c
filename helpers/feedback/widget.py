"""The buttons of a session, in a notebook: `annotate(session)` as the last line of a cell.

anywidget brings one ES module (widget.js) to JupyterLab, Colab and VS Code alike: keys, focus and
the reason box live in the browser, where ipywidgets alone has no keyboard. The page knows nothing
but the card: which answer is the dataset's chosen one stays in the kernel. Every message from the
page names the pair it was about, so that a second click never labels the pair that came after.
"""

import html
import io
from pathlib import Path

import anywidget
import traitlets
from PIL import ImageOps

from helpers.feedback.annotation import LabelError, Session
from helpers.pairs.check import decoded
from helpers.pairs.images import image_bytes

HERE = Path(__file__).parent
# jupyter_server drops messages beyond 3 MB in 3 seconds, so large photographs are shown smaller.
LARGEST_FILE, LONGEST_SIDE = 300_000, 1024
SMALL_PICTURE = 200  # pixels: below, they are shown as sharp squares
SHOWN_BY_BROWSERS = (b"\xff\xd8\xff", b"\x89PNG")  # JPEG and PNG, by their first bytes


def annotate(session: Session) -> "Annotator":
    """The widget of a `Session`. Without a front end, a sentence that says where it works."""
    return Annotator(session)


class Annotator(anywidget.AnyWidget):
    """Shows the session's card, and calls its `label`, `skip` and `undo` for the page."""

    _esm = HERE / "widget.js"
    _css = HERE / "widget.css"
    view = traitlets.Dict().tag(sync=True)
    picture = traitlets.Bytes().tag(sync=True)

    def __init__(self, session):
        super().__init__()
        self.session, self._replies = session, 0
        self._show()
        self.on_msg(self._act)

    def _act(self, widget, message, buffers):
        card, error = self.session.card, ""
        methods = {"label": self.session.label, "skip": self.session.skip}
        try:
            # Of a second click on the same card nothing is saved; the card is sent once more.
            if message.get("pair") == (card and card.key):
                if message["action"] == "undo":
                    self.session.undo()
                else:
                    methods[message["action"]](message["value"])
        except LabelError as sentence:
            error = str(sentence)
        self._show(error)

    def _show(self, error=""):
        """One message to the page: the card, how far it is, and that the last choice was heard."""
        card, progress = self.session.card, self.session.progress
        self._replies += 1
        picture, size = shown_picture(card.image) if card else (b"", (0, 0))
        view = {
            "reply": self._replies,
            "error": error,
            "annotator": self.session.annotator,
            "file": str(self.session.path),
            "done": progress.done,
            "skipped": progress.skipped,
            "total": progress.total,
            "time": time_left(progress.seconds_left),
            "card": card and {"key": card.key, "number": card.number, "question": card.question,
                              "A": card.left, "B": card.right},
            "sharp": max(size) < SMALL_PICTURE,
        }  # fmt: skip
        with self.hold_sync():
            self.picture, self.view = picture, view

    def _repr_mimebundle_(self, **kwargs):
        """Beside the live view, what is shown without a kernel: on GitHub, in an HTML page."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        progress = self.session.progress
        text = (
            f"{self.session.annotator} has labelled {progress.done} of {progress.total} pairs. The "
            "buttons need a live kernel: open this notebook in JupyterLab or Colab and run this "
            "cell."
        )
        return {**data, "text/plain": text, "text/html": f"<p>{html.escape(text)}</p>"}, metadata


def time_left(seconds: float | None) -> str:
    """For people; empty before the first label."""
    if not seconds:
        return ""
    return "less than a minute left" if seconds < 60 else f"about {seconds / 60:.0f} min left"


def shown_picture(image: dict) -> tuple[bytes, tuple[int, int]]:
    """Bytes for the browser and their size in pixels: the file's own if it can show them and they
    are not too many, else a JPEG of at most LONGEST_SIDE."""
    data = image_bytes(image)
    picture = decoded(image)
    if data.startswith(SHOWN_BY_BROWSERS) and len(data) <= LARGEST_FILE:
        return data, picture.size
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue(), picture.size
