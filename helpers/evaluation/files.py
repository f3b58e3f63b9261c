"""Rows of the benchmarks' files, each with the place it stands at, for sentences that name it.

for place, row in rows("answers.jsonl"):                  # "answers.jsonl, line 3"
    text = field(row, "answer", str, place)
"""

import json
from pathlib import Path


def rows(path):
    """[(place, dict)] of a JSON list or of JSON Lines, whichever the file holds.

    Raises ValueError, naming the file and the row, for what is neither, and for no rows at all.
    """
    path = Path(path)
    content = text(path)
    if content.lstrip().startswith("["):
        found = [
            (f"{path.name}, entry {i}", row) for i, row in enumerate(parsed(content, path.name), 1)
        ]
    else:
        lines = [
            (f"{path.name}, line {i}", x)
            for i, x in enumerate(content.splitlines(), 1)
            if x.strip()
        ]
        found = [(place, parsed(line, place)) for place, line in lines]
    for place, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{place}: {row!r} is not a JSON object in braces.")
    if not found:
        raise ValueError(f"{path.name} holds no rows.")
    return found


def text(path):
    """The file's text. Raises ValueError with a sentence where there is none to read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}.") from None
    except (IsADirectoryError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not a text file in UTF-8 ({problem}).") from None


def parsed(content, place):
    try:
        return json.loads(content)
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"{place} is not JSON: {problem.msg} (line {problem.lineno}, column {problem.colno})."
        ) from None


def field(row, name, kind, place):
    """row[name], when it is there and is a `kind`. Raises ValueError otherwise."""
    if name not in row:
        raise ValueError(f"{place} has no {name!r}: it has {', '.join(row) or 'nothing'}.")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        raise ValueError(f"{place}: {name!r} is {row[name]!r}, not {_WORDS[kind]}.")
    return row[name]


_WORDS = {str: "a text", int: "a whole number", list: "a list"}


def first_use(seen, key, place, name):
    """Remember where `key` stands. Raises ValueError when it stands twice."""
    if key in seen:
        raise ValueError(f"{place}: {name} {key} is there already, at {seen[key]}.")
    seen[key] = place
