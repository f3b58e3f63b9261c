"""What a benchmark measured, kept round by round, so that it can be interrupted and gone on with.

    record = Record(case, "runs/bench")     # with the rounds that are there already
    record.add(one_round(contest, len(record.rounds)))

A file a case, in runs/bench. Its name has a digest of all that the times hang on: the settings, the
machine, the versions of the libraries and the code that is measured. When one of them changes the
file is another one, and the old one stays. Comments and docstrings are not code.
"""

import ast
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side import hardware, versions

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ("benchmarks/side_by_side.py",)


@dataclass(frozen=True)
class Case:
    """One row of the results: what is measured, and how its Contest is built."""

    name: str  # for --only, and of the file
    title: str
    build: Callable  # build(settings, folder) -> side_by_side.Contest; a function of a module
    settings: dict  # JSON: all that decides what is measured
    sources: tuple[str, ...]  # files whose code is measured, from the root of the repository
    rounds: int = 5
    seconds: float = 10.0  # expected for a round on the CPU, for the time left
    unit: str = "a run"  # what one item is

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"{self.name} has {self.rounds} rounds: it must have at least one")


class Record:
    """What is known of a Case on this machine: a dictionary, written whenever something is added.

    `rounds`: as `one_round` gives them; `memory_gb`, `flop`, `notes` and `base`, the first side.
    """

    def __init__(self, case, folder):
        about = identity(case)
        self.file = Path(folder) / f"{case.name}-{digest(about)[:8]}.json"
        self.found = {"name": case.name, "title": case.title, "unit": case.unit, **about}
        self.found |= {"rounds": []}
        if self.file.exists():
            self.found |= json.loads(self.file.read_text(encoding="utf-8"))

    @property
    def rounds(self):
        return self.found["rounds"]

    def add(self, round=None, **facts):
        """Keep a round, or facts about the case, at once."""
        if round:
            self.rounds.append(round)
        self.found |= facts
        write(self.file, self.found)


def identity(case):
    """All that the times of a case hang on, as a JSON object."""
    return {
        "settings": case.settings,
        "machine": hardware(),
        "versions": versions(),
        "code": digest([code(ROOT / source) for source in (*HARNESS, *case.sources)])[:16],
    }


def code(path):
    """The program in a Python file without what does not run: comments, docstrings, line breaks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _constant(one)]
    return ast.dump(tree)


def _constant(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write(file, content):
    """Replace a JSON file at once: it is never half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(new, file)
