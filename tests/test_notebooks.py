"""Every notebook is what its lesson says, fit to publish, in the course's rhythm, and runs."""

import json
import re

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from helpers.evaluation.pope_hub import NAME as POPE
from helpers.pairs import rlaifv
from helpers.setup.tracks import TRACKS
from tests.standin import CARD, rlaifv_shards, smolvlm
from tests.test_hub_pope import pope_files
from tests.test_probing import amber_files
from tools.build_notebooks import (
    BADGE_ADDRESS,
    COVER_BYTES,
    LESSONS,
    NOTEBOOKS,
    ROOT,
    LessonError,
    assigned_names,
    build,
    execute,
    find_lessons,
    with_cover,
    with_outputs,
)
from tools.outputs import output_faults, tags
from tools.pages import entry, stated_minutes

try:
    LESSON_FILES = find_lessons()
except LessonError:  # test_there_is_a_notebook_for_every_lesson says so
    LESSON_FILES = []

REBUILD = "run `make notebooks` (or python -m tools.build_notebooks --only {})"
CODE_LINES = 20
COLUMNS = 100  # JupyterLab breaks a longer printed line wherever its window ends
LINK = re.compile(r"\]\(([^)\s]+)\)")
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w.-]+/(.+)")


@pytest.fixture(params=LESSON_FILES, ids=lambda path: path.stem)
def lesson(request):
    return request.param


@pytest.fixture
def notebook(lesson):
    path = NOTEBOOKS / f"{lesson.stem}.ipynb"
    assert path.exists(), f"{path.name} is missing: {REBUILD.format(lesson.stem)}"
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    """All markdown, without fenced code."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def test_there_is_a_notebook_for_every_lesson():
    names = [path.stem for path in find_lessons()]  # raises when there are none
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == names
    strays = {path.stem for path in LESSONS.glob("*.py")} - set(names)
    assert not strays, f"not named as a lesson is, NN_name.py: {strays}"


def test_source_is_that_of_the_lesson(lesson, notebook):
    def source(nb):
        return [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in nb.cells]

    # As the README says whose it is: a fork's `origin` differs until it builds again.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    built = build(lesson, BADGE_ADDRESS.search(readme)[1])
    drawn = {cell.id: cell.outputs for cell in code_cells(notebook)}
    built = with_cover(with_outputs(built, drawn))
    assert source(notebook) == source(built), REBUILD.format(lesson.stem)
    assert notebook.metadata == built.metadata, REBUILD.format(lesson.stem)


def test_every_cell_was_run_in_order(lesson, notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), REBUILD.format(lesson.stem)


def test_outputs_are_fit_to_publish(notebook):
    assert output_faults(notebook) == []


def test_printed_lines_are_not_cut_within_words(notebook):
    printed = [o.text for cell in code_cells(notebook) for o in cell.outputs if "text" in o]
    long = [line for line in "\n".join(printed).split("\n") if len(line) > COLUMNS]
    assert not long, f"use print_wrapped, or print less: {long}"


def test_the_first_screen_is_title_question_and_picture(lesson, notebook):
    assert len(re.findall(r"^# ", prose(notebook), flags=re.MULTILINE)) == 1
    title, link, setup, parameters, *_ = notebook.cells
    assert title.source.startswith("# ") and entry(lesson.stem, notebook).question
    assert title.source.endswith("](attachment:cover.png)")
    assert len(title.attachments["cover.png"]["image/png"]) <= 4 / 3 * COVER_BYTES + 4  # base64
    assert link.source.endswith(f"/notebooks/{lesson.stem}.ipynb)") and "![" not in link.source
    assert setup.metadata.jupyter.source_hidden and setup.source.startswith("# @title ")
    assert "parameters" in tags(parameters)


def test_links_lead_somewhere(notebook):
    for target in LINK.findall(prose(notebook)):
        if colab := COLAB.fullmatch(target):
            assert (ROOT / colab[1]).exists(), f"a badge to no notebook: {target}"
        elif not re.match(r"https?:|#|mailto:|data:|attachment:", target):
            path = NOTEBOOKS / target.split("#")[0]
            assert path.exists(), f"a link to no file: {target}"


def test_tagged_cells(notebook):
    for tag in ("parameters", "setup", "key-figure", "cover"):
        tagged = [cell for cell in notebook.cells if tag in tags(cell)]
        assert [cell.cell_type for cell in tagged] == ["code"], f"tag one code cell `{tag}`"


def test_time_is_stated_for_the_pocket_track(notebook):
    assert stated_minutes(notebook, "pocket"), 'state it, such as "pocket: about 2 minutes"'


def test_the_stated_minutes_are_the_measured_ones():
    """Together those of the recorded run of the whole course; README says the same of each."""
    stated = {path.stem: stated_minutes(build(path), "pocket") for path in find_lessons()}
    rows = json.loads((ROOT / "benchmarks/results/bench.json").read_text(encoding="utf-8"))["rows"]
    (course,) = (row for row in rows if row["name"] == "course")
    measured = course["rounds"][-1]["make course"]["wall"] / 60
    assert sum(stated.values()) == pytest.approx(measured, rel=0.15)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| \[[^\n]*/(\w+)\.ipynb\) \|[^|\n]*\| ([\d.]+) (min|s) \|", readme, re.M)
    assert {name: float(n) / (60 if unit == "s" else 1) for name, n, unit in told} == stated


def test_lesson_00_leads_to_all_others():
    first, *others = (path.stem for path in find_lessons())
    text = (LESSONS / f"{first}.py").read_text(encoding="utf-8")
    assert re.findall(r"^# \| \[.*\]\((\w+)\.ipynb\) \|", text, re.MULTILINE) == others


def test_code_cells_are_short(notebook):
    for cell in code_cells(notebook):
        if not {"showcase", "setup"}.intersection(tags(cell)):  # the setup cell is generated
            assert len(cell.source.splitlines()) <= CODE_LINES, cell.source


def test_prose_comes_between_code(notebook):
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds, f"three code cells in a row, from cell {kinds.find('ccc') + 1}"


def in_small(lesson, track, tmp_path, **changes):
    """The built notebook of a lesson and its parameters, with all that it keeps in tmp_path."""
    notebook = build(lesson)
    cell = next(cell for cell in notebook.cells if "parameters" in tags(cell))
    values = {"TRACK": track, "QUICK": True, "OUT": str(tmp_path / "out"), **changes}
    values["KEPT"] = str(tmp_path / "kept")
    known = assigned_names(cell.source, lesson.name)
    return notebook, {name: value for name, value in values.items() if name in known}


def run_here(notebook, parameters):
    """Run the cells in this process: no kernel to start, and nothing to import once more."""
    shell = InteractiveShell.instance()
    shell.reset(new_session=True)
    for cell in code_cells(notebook):
        shell.run_cell(cell.source).raise_error()
        if "parameters" in tags(cell):
            shell.push(parameters)
    shell.reset(new_session=True)  # lets go of the lesson's models


def test_runs_in_small(lesson, tmp_path):
    notebook, parameters = in_small(lesson, "pocket", tmp_path)
    execute(notebook, tmp_path / "small.ipynb", parameters)


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    """What the GPU tracks fetch, in small: a checkpoint with SmolVLM's tiles, and pairs."""
    return smolvlm(tmp_path_factory.mktemp("smolvlm"), tile=512), rlaifv_shards(300), pope_files(8)


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """Lesson 07's painter and rewards, in small."""
    from tests import standin_stages  # it imports diffusers, which takes seconds

    made = {
        "PAINTER": standin_stages.sd_turbo,
        "IMAGE_REWARD": standin_stages.pickscore,
        "TEXT_REWARD": standin_stages.skywork,
    }
    return {name: str(make(tmp_path_factory.mktemp(name))) for name, make in made.items()}


@pytest.mark.parametrize("track", ["t4", "ampere"])
def test_runs_on_the_gpu_tracks_without_a_gpu(
    lesson, track, downloads, stages, hub, tmp_path, monkeypatch
):
    """Every line that a learner's GPU would run, on the CPU: a tiny model, a hub on loopback."""
    model, pairs, pope = downloads
    hub.add("models", "tiny/smolvlm", model)
    hub.add("datasets", TRACKS[track].dataset, {"README.md": CARD, **pairs})
    hub.add("datasets", POPE, pope)
    (tmp_path / "amber").mkdir()
    amber = str(amber_files(tmp_path / "amber"))
    names = {"MODEL": "tiny/smolvlm", "PUSH_TO": "me/tuned"}
    monkeypatch.setattr(rlaifv, "FOLDER", tmp_path / "data")
    monkeypatch.chdir(ROOT)
    run_here(*in_small(lesson, track, tmp_path, **names, AMBER=amber, **stages, SIZE=64))
    if "PUSH_TO" in lesson.read_text(encoding="utf-8"):
        pushed = hub.files("models", "me/tuned")
        assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(pushed)
        assert b"cc-by-nc-4.0" in pushed["README.md"]
