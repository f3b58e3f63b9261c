"""The lists of dependencies agree: requirements.txt is the one list, the others read or pin it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement

from helpers.setup.colab import EXACT, pins
from tools.build_notebooks import ROOT, find_lessons, packages_of

FOLDERS = ("helpers", "tools", "tests", "lessons", "benchmarks")


def lines(name):
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def normal(name):
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


REQUIREMENTS = [normal(line) for line in lines("requirements.txt")]
PINS = {
    normal(line.partition("==")[0]): line.partition("==")[2] for line in lines("constraints.txt")
}


def needed(name, seen):
    """Add to `seen` what an installed distribution needs, on any platform, with the extras asked.

    Markers other than `extra` are not evaluated: the pins serve Linux, macOS and Windows.
    """
    todo = [(normal(name), frozenset())]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            asked = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        for one in asked:
            optional = re.findall(r"extra == ['\"]([\w.-]+)['\"]", str(one.marker or ""))
            if not optional or extras & set(optional):
                todo.append((normal(one.name), frozenset(one.extras)))


def imported_modules():
    """Top-level names imported anywhere in the course, each with a file that imports it."""
    found = {}
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found.update({name.split(".")[0]: path.name for name in names})
    ours = {*FOLDERS, *sys.stdlib_module_names, "tiny"}  # tiny: beside the scripts of docs/upstream
    return {name: path for name, path in found.items() if name not in ours}


def test_requirements_are_plain_names_in_order():
    assert all(re.fullmatch(r"[a-z0-9-]+", line) for line in lines("requirements.txt"))
    assert sorted(set(REQUIREMENTS)) == REQUIREMENTS


def test_every_constraint_is_one_exact_public_version():
    loose = [
        line for line in lines("constraints.txt") if not re.fullmatch(r"[\w.-]+==[\w.]+", line)
    ]
    assert not loose, f"write name==version, with no +local part: {loose}"
    names = [normal(line.split("==")[0]) for line in lines("constraints.txt")]
    assert names == sorted(set(names))


def test_every_requirement_is_pinned():
    assert not [name for name in REQUIREMENTS if name not in PINS]


def test_pins_are_what_the_requirements_need_and_no_more():
    if any(distribution(name).version.split("+")[0] != PINS[name] for name in REQUIREMENTS):
        pytest.skip("other versions than the pinned ones are installed and need other packages")
    closure = set()
    for name in REQUIREMENTS:
        needed(name, closure)
    stray = set(PINS) - {name for name, _ in closure}
    assert not stray, f"constraints.txt pins what nothing needs: {sorted(stray)}"


def test_every_import_is_of_a_pinned_distribution():
    owners = packages_distributions()
    unpinned = {
        module: path
        for module, path in imported_modules().items()
        if not any(normal(owner) in PINS for owner in owners.get(module, ()))
    }
    assert not unpinned, f"imported, but not from a package in constraints.txt: {unpinned}"


def test_pyproject_reads_the_one_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["dependencies"]
    assert "dependencies" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == ["requirements.txt"]


def test_conda_reads_the_one_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    assert [re.split("[=<>]", name)[0] for name in packages] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-c constraints.txt"]}


def test_lessons_ask_for_pinned_packages():
    assert {*EXACT} <= {*pins()}  # what the course is exact about
    for lesson in find_lessons():
        assert {*packages_of(lesson)} <= {*pins()}


def test_make_names_only_modules_that_exist():
    modules = re.findall(r"python -m (tools\.\w+|benchmarks\.\w+)", "\n".join(lines("Makefile")))
    absent = [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert modules and not absent, f"the Makefile runs what is not there: {absent}"
