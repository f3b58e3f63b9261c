"""The whole course on this CPU, as `make course` runs it; there is nothing to pair it with.

contest = build({"arguments": ["--quick"]}, folder)      # or [], for all of it
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.records import ROOT
from benchmarks.side_by_side import Contest, Side


def build(settings, folder):
    command = [sys.executable, "-m", "tools.run_course", "--output", str(Path(folder) / "course")]
    # No warm-up: a learner's first run has none.
    run = partial(run_once, [*command, *settings["arguments"]])
    return Contest({"make course": Side(run, warm_up=lambda: None)})


def run_once(command):
    """Raises RuntimeError with the course's own last line if it stops."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")
