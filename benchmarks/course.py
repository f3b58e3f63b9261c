"""The whole course on this CPU, as `make course` runs it; there is nothing to pair it with.

contest = build({"arguments": ["--quick"]}, folder)      # or [], for all of it
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Case, Contest, Side

SOURCES = ("lessons/*.py", "helpers/**/*.py", "tools/run_course.py")


def cases():
    title = "`make course`, all lessons on the pocket track"
    return [Case("course", title, build, {"arguments": []}, SOURCES, 1, 900, "a course")]


def build(settings, folder):
    """The Contest of one side. Its run raises RuntimeError with the course's own last line."""
    command = [sys.executable, "-m", "tools.run_course", "--output", str(Path(folder) / "course")]
    command += settings["arguments"]

    def run():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")

    # No warm-up: a learner's first run has none.
    return Contest({"make course": Side(run, warm_up=lambda: None)})
