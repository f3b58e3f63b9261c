"""What a learner's door does: clean copies that are never lost, and an environment that mends."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import lab
from tools.build_notebooks import ROOT
from tools.lab import make_copies, prepare

NAMES = ["01_first.ipynb", "02_second.ipynb"]


@pytest.fixture
def course(tmp_path):
    """(notebooks, work): two executed lessons; work is not there yet."""
    (tmp_path / "notebooks").mkdir()
    for name in NAMES:
        write_lesson(tmp_path / "notebooks" / name)
    return tmp_path / "notebooks", tmp_path / "work"


def write_lesson(path, code="6 * 7", answer="42"):
    output = new_output("execute_result", {"text/plain": answer}, execution_count=1)
    cells = [
        new_markdown_cell("badge", id="badge"),
        new_markdown_cell("# A lesson\n\nPredict.", id="title"),
        new_code_cell(code, id="code", outputs=[output], execution_count=1),
    ]
    nbformat.write(new_notebook(cells=cells), path)


def edit(path, code):
    """A save in JupyterLab: the notebook is read and written whole, with more metadata."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11"}
    notebook.cells[-1].source = code
    nbformat.write(notebook, path)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.ipynb")}


def test_copies_have_no_outputs_and_lead_to_the_executed_page(course):
    notebooks, work = course
    before = contents(notebooks)
    prepare(notebooks, work)
    assert sorted(path.name for path in work.iterdir()) == [*NAMES, "pages"]
    copy = nbformat.read(work / NAMES[0], as_version=4)
    nbformat.validate(copy)
    assert [cell.source[:7] for cell in copy.cells] == ["badge", "# A les", "*This c", "6 * 7"]
    assert copy.cells[-1].outputs == [] and copy.cells[-1].execution_count is None
    link = work / copy.cells[2].source.partition("](")[2].partition(")")[0]
    assert link == work / "pages" / "01_first.html" and ">42" in link.read_text(encoding="utf-8")
    assert contents(notebooks) == before


def test_a_lesson_that_changed_reaches_the_copies_that_nobody_worked_in(course):
    notebooks, work = course
    prepare(notebooks, work)
    edit(work / NAMES[0], "6 * 7")  # opened and saved: the cells are the same
    write_lesson(notebooks / NAMES[0], code="6 * 8", answer="48")
    os.utime(notebooks / NAMES[0], (2**31, 2**31))  # newer than its page
    prepare(notebooks, work)
    assert nbformat.read(work / NAMES[0], as_version=4).cells[-1].source == "6 * 8"
    assert ">48" in (work / "pages" / "01_first.html").read_text(encoding="utf-8")


def changed(change):
    """A function that reads a notebook, changes it and writes it again."""

    def write(path):
        notebook = nbformat.read(path, as_version=4)
        change(notebook)
        nbformat.write(notebook, path)

    return write


@pytest.mark.parametrize(
    "change",
    [
        lambda path: edit(path, "my_own = 1"),
        changed(lambda notebook: notebook.cells[-1].update(execution_count=1)),  # run
        changed(lambda notebook: notebook.metadata.pop("course")),
        lambda path: path.write_text('{"cells": ['),  # cut off
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff"),
    ],
)
def test_what_a_learner_changed_is_kept_and_named_once_there_is_something_newer(
    course, capsys, change
):
    notebooks, work = course
    prepare(notebooks, work)
    change(work / NAMES[0])
    mine = (work / NAMES[0]).read_bytes()
    for name in NAMES:
        write_lesson(notebooks / name, code="6 * 8")
    capsys.readouterr()
    prepare(notebooks, work)
    assert (work / NAMES[0]).read_bytes() == mine
    said = capsys.readouterr().out
    assert NAMES[0] in said and NAMES[1] not in said and "Delete or rename" in said
    (work / NAMES[0]).rename(work / "mine.ipynb")
    assert make_copies(notebooks, work) == []
    assert (work / "mine.ipynb").read_bytes() == mine and (work / NAMES[0]).exists()


def test_nothing_is_said_of_a_changed_copy_whose_lesson_is_the_same(course):
    notebooks, work = course
    make_copies(notebooks, work)
    edit(work / NAMES[0], "my_own = 1")
    write_lesson(notebooks / NAMES[0], answer="other outputs")
    assert make_copies(notebooks, work) == []


def test_a_copy_whose_lesson_is_gone_goes_unless_it_is_the_learners(course):
    notebooks, work = course
    make_copies(notebooks, work)
    shutil.copy(work / NAMES[0], work / "01_first-Copy1.ipynb")
    edit(work / NAMES[1], "my_own = 1")
    for name in NAMES:
        (notebooks / name).unlink()
    write_lesson(notebooks / "03_third.ipynb")
    make_copies(notebooks, work)
    assert sorted(contents(work)) == ["01_first-Copy1.ipynb", "02_second.ipynb", "03_third.ipynb"]


def test_an_interrupted_write_leaves_the_old_copy_whole(course, monkeypatch):
    notebooks, work = course
    make_copies(notebooks, work)
    before = contents(work)
    write_lesson(notebooks / NAMES[0], code="6 * 8")

    def interrupted(path, text, **_):
        path.write_bytes(text.encode()[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_copies(notebooks, work)
    assert contents(work) == before and len(list(work.iterdir())) == len(NAMES)


def test_a_folder_that_cannot_be_written_is_one_sentence(course):
    notebooks, work = course
    work.write_text("a file where the folder goes")
    with pytest.raises(SystemExit, match="cannot be copied to .*work .File exists.*may write to"):
        prepare(notebooks, work)


@pytest.fixture
def started(monkeypatch, tmp_path, course):
    """The arguments that JupyterLab was started with."""
    from jupyterlab.labapp import LabApp

    calls = []
    monkeypatch.setattr(LabApp, "launch_instance", calls.extend)
    monkeypatch.setattr(lab, "prepare", lambda: None)
    monkeypatch.chdir(tmp_path)  # main changes to the course's root
    return calls


def test_root_is_told_the_option_that_jupyterlab_wants_and_the_first_lesson_is_opened(
    started, monkeypatch
):
    monkeypatch.setattr(lab, "is_root", lambda: True)
    with pytest.raises(SystemExit, match='make lab LAB="--allow-root'):
        lab.main(["--no-browser"])
    assert started == []
    first = "--LabApp.default_url=/lab/tree/work/00_start_here.ipynb"
    lab.main(["--allow-root", "--port=9999"])
    assert started == [first, "--allow-root", "--port=9999"]
    assert Path.cwd() == ROOT and (ROOT / "notebooks" / lab.FIRST).exists()
    monkeypatch.setattr(lab, "is_root", lambda: False)
    started.clear()
    lab.main([])
    assert started == [first]


# The environment


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A course of a Makefile and one requirement, in a path with a space, installed."""
    if sys.platform == "win32":
        pytest.skip("make and bin/ are for Linux and macOS")
    folder = tmp_path_factory.mktemp("a course")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.txt").write_text("tiny\n")
    (folder / "constraints.txt").write_text("tiny==1.0\n")
    info, lines = "tiny-1.0.dist-info", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", f"{lines}Tag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    make(folder)
    return folder


def make(folder, *arguments, targets=("environment",), fails=False):
    """What make prints, as if no other make had started these tests."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ".", "PIP_CONFIG_FILE": os.devnull}
    run = subprocess.run(
        ["make", *targets, f"PYTHON={sys.executable}", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in outer} | alone,
        capture_output=True,
        text=True,
    )
    assert (run.returncode != 0) == fails, run.stdout + run.stderr
    return run.stdout + run.stderr


def packages(folder):
    (found,) = (folder / ".venv").glob("lib/python*/site-packages")
    return found


def test_make_alone_shows_the_targets_and_a_sound_environment_is_left_alone(place):
    assert make(place) == ""
    shown = make(place, targets=())
    assert shown == make(place, targets=("help",))
    assert "make lab" in shown and "make environment" not in shown


def lose_the_python(folder):
    python = folder / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.9")


def lose_pip(folder):  # as when `python -m venv` is killed
    (folder / ".venv" / "installed").unlink()
    for path in [*packages(folder).glob("pip*"), *packages(folder).glob("tiny*")]:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    "fault, said", [(lose_the_python, "its Python does not start"), (lose_pip, "it has no pip")]
)
def test_a_broken_environment_is_made_again(place, fault, said):
    (place / ".venv" / "old").touch()
    fault(place)
    make(place, "PYTHON=false", fails=True)  # nothing to make it again with: it stays
    assert (place / ".venv" / "old").exists()
    assert f"broken: {said}. It is made again." in make(place)
    assert not (place / ".venv" / "old").exists() and make(place) == ""


def test_packages_that_are_gone_and_newer_lists_are_installed(place):
    (place / ".venv" / "old").touch()
    shutil.rmtree(packages(place) / "tiny-1.0.dist-info")
    assert "Packages are missing in .venv" in make(place)
    assert (place / ".venv" / "old").exists() and make(place) == ""
    os.utime(place / ".venv" / "installed", (1, 1))
    assert "already satisfied: tiny" in make(place) and make(place) == ""


def test_what_venv_did_not_make_is_not_removed(place):
    config = place / ".venv" / "pyvenv.cfg"
    config.rename(place / "config")
    lose_the_python(place)
    assert "Move it away" in make(place, fails=True)
    assert (place / ".venv" / "installed").exists()
    (place / "config").rename(config)
    make(place)
