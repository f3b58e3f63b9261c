"""The lists of dependencies agree: requirements.txt is the one list, the others read or pin it."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement

from helpers.setup.colab import EXACT, pins
from tools.build_notebooks import ROOT, find_lessons, imported_names, packages_of

DOCS = [path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")]
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


def needed(names):
    """What installed distributions need, on any platform, with the extras asked, and themselves.

    Markers other than `extra` are not evaluated: the pins serve Linux, macOS and Windows.
    """
    todo, seen = [(name, frozenset()) for name in names], set()
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
    return {name for name, _ in seen}


def test_requirements_are_plain_names_in_order_each_pinned_to_one_public_version():
    assert all(re.fullmatch(r"[a-z0-9-]+", line) for line in lines("requirements.txt"))
    assert sorted(set(REQUIREMENTS)) == REQUIREMENTS and {*REQUIREMENTS} <= {*PINS}
    pinned = lines("constraints.txt")
    loose = [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not loose, f"write name==version, with no +local part: {loose}"
    assert [*PINS] == sorted(PINS) and len(PINS) == len(pinned)


def test_pins_are_what_the_requirements_need_and_no_more():
    if any(distribution(name).version.split("+")[0] != PINS[name] for name in REQUIREMENTS):
        pytest.skip("other versions than the pinned ones are installed and need other packages")
    stray = set(PINS) - needed(REQUIREMENTS)
    assert not stray, f"constraints.txt pins what nothing needs: {sorted(stray)}"


def test_every_import_is_of_a_pinned_distribution():
    # tiny lies beside the scripts of docs/upstream
    ours, owners = {*FOLDERS, *sys.stdlib_module_names, "tiny"}, packages_distributions()
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for module in {name.split(".")[0] for name in imported_names(path)} - ours:
            pinned = any(normal(owner) in PINS for owner in owners.get(module, ()))
            assert pinned, f"{path} imports {module}, which is not from constraints.txt"


def test_pyproject_and_conda_read_the_one_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["dependencies"]
    assert "dependencies" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == ["requirements.txt"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    assert [re.split("[=<>]", name)[0] for name in packages] == ["python", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-c constraints.txt"]}


def test_lessons_ask_for_pinned_packages():
    assert {*EXACT} <= {*pins()}  # what the course is exact about
    for lesson in find_lessons():
        assert {*packages_of(lesson)} <= {*pins()}


@pytest.mark.parametrize("page", ["Makefile", "README.md", *sorted(map(str, DOCS))])
def test_commands_and_links_lead_to_what_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    modules = re.findall(r"python3? -m ((?:tools|benchmarks|helpers)\.[\w.]+\w)", text)
    files = [f"{name.replace('.', '/')}.py" for name in modules]
    files += re.findall(r"-m pytest (tests/\w+\.py)", text)
    links = re.findall(r"\]\((?!https?:)([\w./-]+\w)(?:#[\w-]*)?\)", text)
    absent = [name for name in files if not (ROOT / name).exists()]
    absent += [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not absent, f"{page} names what is not there: {absent}"
