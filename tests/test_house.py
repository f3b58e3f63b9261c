"""The house: eight rooms on four floors, and a room imports only from floors below its own."""

import ast

from tools.module_map import FLOORS, PAGE, ROOT, module_map

MODULES = {path: path.relative_to(ROOT).parts for path in (ROOT / "helpers").rglob("*.py")}


def rooms_imported(path):
    """(room, line) of every import from helpers, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((n.split(".")[1], node.lineno) for n in names if n.startswith("helpers."))


def test_a_room_imports_only_from_floors_below():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for path, (_, *parts) in MODULES.items():
        own = parts[0].removesuffix(".py")
        for room, line in rooms_imported(path) if own != "__init__" else ():
            if room != own and floor[room] >= floor[own]:
                wrong.append(f"{'/'.join(parts)}:{line} imports {room}")
    assert not wrong


def test_every_room_is_on_a_floor_and_rooms_export_nothing():
    rooms = {parts[1] for parts in MODULES.values() if len(parts) > 2}
    assert rooms == {room for floor in FLOORS for room in floor} - {"preflight"}
    for path, parts in MODULES.items():
        if parts[-1] == "__init__.py":
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body  # and nothing else
            assert isinstance(docstring, ast.Expr)


def test_the_module_map_is_that_of_the_docstrings():
    assert PAGE.read_text(encoding="utf-8") == module_map(), "run python -m tools.module_map"
    assert "|  |" not in module_map(), "every module says in a line what it is for"


def assigned(module):
    """The public names that a module itself defines at its top level."""
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
            )


def test_a_name_is_imported_from_the_module_that_defines_it():
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("helpers", "lessons", "tools", "benchmarks", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    defined = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {*assigned(tree)}
        for path, tree in trees.items()
        if path in MODULES and path.name != "__init__.py"
    }
    elsewhere = [
        f"{path.relative_to(ROOT)}:{node.lineno} takes {alias.name} from {node.module}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in defined
        for alias in node.names
        if alias.name not in defined[node.module]
    ]
    assert not elsewhere
