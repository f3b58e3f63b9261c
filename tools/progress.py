"""One live line for a run of several lessons: lesson, cell, time so far, time left.

progress = Progress({"00_start_here": 0.5, "01_inspect_preferences": 1.5})  # stated minutes
with progress.lesson("00_start_here", cells=40):
    progress.cell = 7
"""

import shutil
import sys
import threading
import time
from contextlib import contextmanager


def minutes_left(stated, minutes, current, since):
    """Minutes still to go, from the stated ones and the pace of the lessons already finished.

    stated: minutes by lesson, all of them; minutes: measured, of the finished lessons; current:
    the lesson now running, for `since` minutes. The pace starts at 1, with the weight of one
    stated minute, so that a short first lesson does not set it alone.
    """
    pace = (1 + sum(minutes.values())) / (1 + sum(stated[name] for name in minutes))
    later = sum(m for name, m in stated.items() if name not in minutes and name != current)
    return max(pace * stated[current] - since, 0) + pace * later


class Progress:
    """Where a run is. Draws to a terminal once a second; to a pipe, one line a lesson."""

    def __init__(self, stated, stream=sys.stderr):
        self.stated, self.stream = stated, stream
        self.minutes = {}  # measured, by finished lesson
        self.began = time.monotonic()
        self.name, self.cell, self.cells = "", 0, 0

    @property
    def where(self):
        return f"{self.name}, cell {self.cell} of {self.cells}"

    @contextmanager
    def lesson(self, name, cells):
        """Measure one lesson and keep the line alive while it runs."""
        self.name, self.cell, self.cells = name, 0, cells
        start, done = time.monotonic(), threading.Event()
        ticker = threading.Thread(target=self._tick, args=(start, done), daemon=True)
        ticker.start()
        try:
            yield
            self.minutes[name] = (time.monotonic() - start) / 60
        finally:
            done.set()
            ticker.join()
        if not self.stream.isatty():
            print(f"{name}  {self.minutes[name]:.1f} min", file=self.stream, flush=True)

    def line(self, start):
        """The text of the live line; `start` is when the current lesson began."""
        now = time.monotonic()
        left = minutes_left(self.stated, self.minutes, self.name, (now - start) / 60)
        minutes, seconds = divmod(int(now - self.began), 60)
        so_far = f"{minutes}:{seconds:02d}"
        return f"{self.where}  {so_far} so far, about {max(round(left), 1)} min left"

    def _tick(self, start, done):
        def draw(text, end):
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + text[:width].ljust(width) + end)
            self.stream.flush()

        if self.stream.isatty():
            while not done.wait(1):
                draw(self.line(start), end="")
            draw("", end="\r")
