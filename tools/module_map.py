"""Write docs/modules.md: every module of `helpers` with the first line of its docstring.

python -m tools.module_map
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
# From below; a room imports only from floors below its own (tests/test_house.py).
FLOORS = (
    ("setup", "world", "plots"),
    ("pairs",),
    ("evaluation", "vlm"),
    ("feedback", "dpo"),
    ("preflight",),  # the front door looks into every room
)
OPENING = """\
# The modules of `helpers`

Written by `python -m tools.module_map`. Eight rooms on four floors, the highest first: a room
imports only from floors below its own. Every public name has one address, its module.
"""


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring that stands on its first line."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def module_map(helpers: Path = ROOT / "helpers") -> str:
    """The text of docs/modules.md."""
    parts = [OPENING]
    for number, rooms in reversed(list(enumerate(FLOORS[:-1], start=1))):
        parts.append(f"## Floor {number}\n")
        for room in rooms:
            parts.append(f"### {room}\n\n{first_line(helpers / room / '__init__.py')}\n")
            modules = sorted(p for p in (helpers / room).glob("*.py") if p.stem != "__init__")
            rows = [f"| `{path.stem}` | {first_line(path)} |" for path in modules]
            parts.append("\n".join(["| module | what it is for |", "|---|---|", *rows]) + "\n")
    doors = [f"`helpers.{name}`: {first_line(helpers / f'{name}.py')}" for name in FLOORS[-1]]
    return "\n".join([*parts, "## Above them all\n", *doors]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(module_map(), encoding="utf-8")
