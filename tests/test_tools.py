"""The course's machinery on tiny lessons: what it builds and shows, and what an unfit one gets."""

import base64
import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from random import Random

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from helpers.plots.cards import print_wrapped
from tools import build_notebooks, run_course
from tools.build_notebooks import (
    COVER_BYTES,
    LessonError,
    build,
    build_one,
    find_lessons,
    small_png,
    with_cover,
)
from tools.outputs import WIDGET, machine_path, output_faults, tidy
from tools.pages import Entry, entry, key_figure, stated_minutes, write_index, write_page
from tools.progress import minutes_left

GOOD = """\
# %% [markdown]
# # A lesson
#
# **The question:** does it
# run?
#
# pocket (2 cores): about 30 seconds. t4: not measured.

# %% tags=["parameters"]
TRACK = "auto"
QUICK = False
SEED = 0

# %% [markdown]
# Run it.

# %%
import helpers.world.scenes
from tqdm import tqdm
for _ in tqdm(range(50), mininterval=0):
    pass
TRACK

# %% tags=["key-figure"]
print(f"margin {0.25} on {TRACK}, seed {SEED}, quick {QUICK}")
"""
FAILING = GOOD.replace("# Run it.", "# Fail.").replace("    pass\n", "    losses = 1 / 0\n")


@pytest.fixture
def lessons(tmp_path):
    """Writes lessons into a folder: lessons(text) is a folder with 01_fake.py."""

    def write(*texts):
        folder = tmp_path / "lessons"
        folder.mkdir()
        for number, text in enumerate(texts, start=1):
            (folder / f"{number:02d}_fake.py").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def built(lessons):
    """The notebook of a text, not executed."""
    return lambda text: build(lessons(text) / "01_fake.py")


def stream(text, name="stderr"):
    return new_output("stream", name=name, text=text)


def notebook_showing(*outputs):
    return new_notebook(cells=[new_code_cell("1", outputs=list(outputs), execution_count=1)])


# Building


def test_build_puts_link_and_folded_setup_after_the_title(built):
    title, link, setup, parameters, *_ = built(GOOD).cells
    assert title.source.startswith("# A lesson")
    assert link.source.startswith("[Open in Colab](") and link.source.endswith("/01_fake.ipynb)")
    assert setup.metadata.tags == ["setup", "hide-input"] and setup.metadata.cellView == "form"
    assert setup.metadata.jupyter.source_hidden and setup.source.startswith("# @title Setup")
    assert len(setup.source.splitlines()) <= 25
    assert parameters.metadata == {"tags": ["parameters"]}


def noise(width, height):
    """A picture that hardly compresses, as base64."""
    file = io.BytesIO()
    size = (width, height)
    Image.frombytes("RGB", size, Random(0).randbytes(3 * width * height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def drawn(built, *outputs):
    """The built notebook of a lesson with a cover, with outputs of that cell."""
    text = GOOD.replace("# %%\nimport", '# %% tags=["cover"] alt="A dot."\nimport')
    notebook = built(text)
    next(c for c in notebook.cells if "cover" in c.metadata.get("tags", [])).outputs = list(outputs)
    return notebook


def test_the_first_picture_of_the_cover_cell_is_attached_to_the_title(built):
    pictures = [new_output("display_data", data={"image/png": noise(n, n)}) for n in (8, 9)]
    notebook = with_cover(drawn(built, stream("text"), *pictures))
    title = notebook.cells[0]
    assert title.source.endswith("\n\n![A dot.](attachment:cover.png)")
    attached = base64.b64decode(title.attachments["cover.png"]["image/png"])
    assert Image.open(io.BytesIO(attached)).size == (8, 8)
    nbformat.validate(notebook)


def test_a_cover_that_was_never_drawn_changes_nothing_and_a_large_one_has_fewer_colours(built):
    title = with_cover(drawn(built)).cells[0]
    assert title.source.endswith("not measured.") and "attachments" not in title
    data = base64.b64decode(small_png(noise(340, 340)))
    assert len(data) <= COVER_BYTES and Image.open(io.BytesIO(data)).size == (340, 340)


def test_build_is_deterministic_and_an_edit_renames_one_cell(built, lessons):
    folder = lessons(GOOD, GOOD, GOOD.replace("Run it.", "Run it now."))
    built = (build(path).cells for path in find_lessons(folder))
    # The second cell is the link, which names the lesson.
    first, same, edited = ([c.id for c in (cells[0], *cells[2:])] for cells in built)
    assert first == same
    assert sum(one != other for one, other in zip(first, edited, strict=True)) == 1
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    "text, message",
    [
        (GOOD.replace(' tags=["parameters"]', ""), "0 cells are tagged `parameters`"),
        (GOOD.replace("SEED = 0", ""), "give SEED a line"),
        (GOOD.replace("SEED = 0", "SEED = = 0"), "not valid Python"),
        (GOOD.replace("# # A lesson", "# A lesson"), "open with the '# ' title"),
        (GOOD + '\n# %% tags=["setup"]\n1\n', "leave out the cell tagged `setup`"),
        (GOOD + '\n# %% tags=["raises-exception"]\n1\n', "catch and print"),
        (GOOD + '\n# %% tags=["cover"]\n1\n', "say what the cell tagged `cover` shows"),
        ("", "open with the '# ' title"),
    ],
)
def test_an_unfit_lesson_gets_a_sentence_with_its_name(built, text, message):
    with pytest.raises(LessonError, match=f"01_fake.py.*{re.escape(message)}"):
        built(text)


def test_lessons_are_found_in_reading_order_and_by_number(tmp_path):
    with pytest.raises(LessonError, match="no lessons"):
        find_lessons(tmp_path)
    for name in ("A_pocket.py", "01_look.py", "00_start.py", "helper.py", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.stem for p in find_lessons(tmp_path)] == ["00_start", "01_look", "A_pocket"]
    assert [p.stem for p in find_lessons(tmp_path, ["A", "00_start"])] == ["00_start", "A_pocket"]
    with pytest.raises(LessonError, match="no lesson '7'.*00_start, 01_look, A_pocket"):
        find_lessons(tmp_path, ["7"])


def test_built_notebook_keeps_outputs_and_nothing_of_the_run(lessons, tmp_path):
    lesson = lessons(GOOD) / "01_fake.py"
    build_one(lesson, tmp_path)
    text = (tmp_path / "01_fake.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in build(lesson).cells]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    (output,) = code[2].outputs  # the finished progress bar is gone
    assert output.data["text/plain"] == "'pocket'" and "\r" not in text
    assert "papermill" not in text and "start_time" not in text
    assert output_faults(notebook) == []


def test_without_running_only_unchanged_cells_keep_outputs(lessons, tmp_path):
    lesson = lessons(GOOD) / "01_fake.py"
    notebook = build(lesson)
    for count, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count, cell.outputs = count + 1, [stream(f"output {count}")]
    nbformat.write(notebook, tmp_path / "01_fake.ipynb")
    lesson.write_text(GOOD.replace("range(50)", "range(60)"), encoding="utf-8")
    build_one(lesson, tmp_path, run=False)
    code = [c for c in nbformat.read(tmp_path / "01_fake.ipynb", 4).cells if c.cell_type == "code"]
    assert [len(cell.outputs) for cell in code] == [1, 1, 0, 1]
    assert code[2].execution_count is None


@pytest.mark.parametrize(
    "code, message",
    [
        ("1 / 0", "01_fake.py: ZeroDivisionError"),
        ("print('/home/ada/course')", "01_fake.py, cell 6 shows a path"),
    ],
)
def test_a_failing_cell_or_unfit_output_is_not_built(lessons, tmp_path, code, message):
    folder = lessons(GOOD.replace("    pass", f"    {code}"))
    with pytest.raises(SystemExit, match=message):
        build_notebooks.main([], folder, tmp_path)
    assert not (tmp_path / "01_fake.ipynb").exists()


# Outputs


BAR = "before\n\r 50%|##  | 1/2 [00:01]\r100%|####| 2/2 [00:02]\nafter: 50% | of all\n"


@pytest.mark.parametrize(
    "pieces, kept",
    [
        (["\r  0%", "\r 50%", "\r100%\nnext\n"], ["100%\nnext\n"]),  # the last state of a bar
        ([BAR], ["before\nafter: 50% | of all\n"]),  # nothing of a finished one
        (["\r100%|###|", "\r          \r"], []),  # it wiped itself
        (["two\n", "  lines\r\n"], ["two\n  lines\n"]),
    ],
)
def test_tidy_joins_a_stream_and_drops_finished_bars(pieces, kept):
    outputs = [stream(piece) for piece in pieces]
    assert [output.text for output in tidy(outputs)] == kept
    assert [output.text for output in outputs] == pieces  # its argument is left alone


def test_tidy_keeps_the_order_of_prints_and_pictures_and_of_a_widget_its_html():
    picture = new_output("display_data", data={"image/png": "aGk="})
    kept = tidy([stream("a", "stdout"), picture, stream("b", "stdout")])
    assert [output.output_type for output in kept] == ["stream", "display_data", "stream"]
    bar = new_output("display_data", data={WIDGET: {}, "text/plain": "100%|##| 2/2 [00:01<00:00]"})
    shown = new_output("display_data", data={WIDGET: {}, "text/html": "<b>a card</b>"})
    assert [output.data for output in tidy([bar, shown])] == [{"text/html": "<b>a card</b>"}]


PLACES = [
    "  File /home/ada/course/helpers/world/scenes.py:12",
    "/Users/ada/course/.venv/lib: warning",
    "C:\\Users\\ada\\course",
    ".venv/lib/python3.11/site-packages/torch/nn.py:3: UserWarning",
    "/tmp/ipykernel_31/123.py:1: UserWarning",
    str(build_notebooks.ROOT / "data"),
]


def test_machine_paths_are_found_and_those_inside_the_course_are_fine():
    assert [machine_path(f"first\n{line}\n") for line in PLACES] == [one.strip() for one in PLACES]
    for text in ("data/pocket/model", "runs/04/adapter", "12/13", "a / b", ""):
        assert machine_path(text) is None


@pytest.mark.parametrize(
    "output, message",
    [
        (stream("/home/ada/x.py:3: UserWarning"), "cell 1 shows a path"),
        (new_output("error", ename="KeyError", evalue="'a'"), "cell 1 ends in KeyError"),
        (new_output("display_data", data={WIDGET: {}}), "cell 1 shows a widget"),
        (new_output("display_data", data={"text/html": "<b>/home/ada</b>/home/ada/"}), "a path"),
    ],
)
def test_unfit_outputs_are_named(output, message):
    (fault,) = output_faults(notebook_showing(output))
    assert message in fault


def test_pictures_are_not_read_as_paths():
    picture = new_output("display_data", data={"image/png": "AA/home/AA"})
    card = new_output("display_data", data={"text/html": "<img src='data:a;base64,A/tmp/A='>"})
    assert output_faults(notebook_showing(picture, card)) == []


# Running


@pytest.mark.parametrize(
    "text, minutes",
    [
        ("| pocket | any CPU, 2 cores | 3 minutes |", 3),
        ("Time: **pocket** about 1.5 min, t4 12 min", 1.5),
        ("pocket: not measured; t4: 3 minutes", None),
        ("Pocket: 45 s", 0.75),
        (GOOD, 0.5),
        ("the pocket model has 2 layers", None),
    ],
)
def test_stated_minutes_are_those_of_the_track(text, minutes):
    assert stated_minutes(new_notebook(cells=[new_markdown_cell(text)]), "pocket") == minutes


# Pages


@pytest.fixture
def page(tmp_path):
    """Writes markdown cells as a page and reads it back."""

    def write(*cells, pages=()):
        cells = [new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
        write_page(new_notebook(cells=cells), tmp_path / "page.html", pages)
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


def test_a_page_loads_nothing(page, built):
    picture = new_output("display_data", data={"image/png": noise(8, 8)})
    html = page(*with_cover(drawn(built, picture, stream("text"))).cells)
    loaded = re.findall(r"""(?:src=|url\(|@import|<link)["' ]*(?!["' ]*data:)(.{0,40})""", html)
    assert loaded == [] and "<script" not in html
    assert html.count('src="data:image/png') == 2  # the cover is there without an attachment


def test_formulas_are_mathml_and_other_dollars_stay(page):
    html = page(r"With $\binom{n}{k}$ and $$a < b$$ it costs \$5 and `$x$`.")
    assert html.count("<math") == 2 and "<mfrac" in html and '<math display="block"' in html
    assert "$5" in html and "<code>$x$</code>" in html and "binom" not in html


def test_formulas_of_the_lessons_are_understood(page):
    for lesson in find_lessons():
        prose = [cell.source for cell in build(lesson).cells if cell.cell_type == "markdown"]
        formulas = re.findall(r"<math.*?</math>", page(*prose), re.DOTALL)
        # What latex2mathml does not know, it leaves as it is.
        assert not [one for one in formulas if re.search(r"\\|&amp;", one)], lesson.name


def test_links_lead_to_pages_that_are_there(page):
    links = "[Next](02_b.ipynb), [late](03_c.ipynb#end), [out](https://a.org/x.ipynb)"
    html = page(links, pages=["02_b"])
    assert 'href="02_b.html"' in html and 'href="https://a.org/x.ipynb"' in html
    assert "03_c" not in html and "late" in html


def test_a_folded_cell_is_folded_in_its_page(page, built):
    html = page(*built(GOOD).cells)
    folded = re.findall(r"<details>.*?</details>", html, re.DOTALL)
    assert len(folded) == 1 and "make_ready" in folded[0]
    assert "Setup: find the course" in re.search("<summary.*?</summary>", html, re.DOTALL)[0]


def test_the_index_has_a_row_for_each_lesson(built, tmp_path):
    entries = [entry("01_fake", built(GOOD)), Entry("02_b", "B", "x*y*z?", 2.04, "a | b, <3")]
    write_index(entries, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert re.search('href="01_fake.html">A lesson</a>.*does it run?.*>0.5<', html, re.DOTALL)
    assert re.search('href="02_b.html".*x\\*y\\*z.*>2.0<.*a | b, &lt;3', html, re.DOTALL)


def test_a_key_figure_of_several_lines_is_one(built):
    notebook = built(GOOD)
    notebook.cells[-1].outputs = [stream("margin 0.25\n    on pocket\n", "stdout")]
    assert key_figure(notebook) == "margin 0.25 on pocket"


def test_printed_lines_break_between_words(capsys):
    print_wrapped("  rejected:", "word " * 30 + "\nshort  line\n")
    first, *others, short, empty, end = capsys.readouterr().out.split("\n")
    assert all(len(line) <= 96 for line in (first, *others)) and first.endswith("word")
    assert others and all(line.startswith("      word") for line in others)
    assert (short, empty, end) == ("short  line", "", "")


def test_time_left_starts_as_stated_and_follows_the_pace():
    stated = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert minutes_left(stated, {}, "a", 0.0) == 6.0
    assert minutes_left(stated, {}, "a", 0.25) == 5.75
    assert minutes_left(stated, {"a": 3.0}, "b", 0.0) == 10.0  # twice as slow as stated
    assert minutes_left(stated, {"a": 1.0, "b": 2.0}, "c", 9.0) == 0.0  # overdue, never negative


def test_course_runs_and_reports(lessons, tmp_path, capsys):
    folder = lessons(GOOD)
    run_course.main(["--quick", "--seed", "7", "--output", str(tmp_path / "out")], lessons=folder)
    report = capsys.readouterr().out
    assert re.search(r"01_fake +0\.\d\n    margin 0.25 on pocket, seed 7, quick True\n", report)
    assert "All passed: 1 of 1 lessons" in report and "make lab" in report
    assert str(tmp_path / "out" / "index.html") in report
    assert 'href="01_fake.html"' in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    page = (tmp_path / "out" / "01_fake.html").read_text(encoding="utf-8")
    assert "margin 0.25" in page and "<title>01_fake</title>" in page
    executed = nbformat.read(tmp_path / "out" / "01_fake.ipynb", as_version=4)
    assert key_figure(executed).startswith("margin 0.25")


def test_course_stops_at_the_first_failing_cell(lessons, tmp_path):
    folder = lessons(FAILING, GOOD)
    with pytest.raises(SystemExit) as stop:
        run_course.main(["--output", str(tmp_path / "out")], lessons=folder)
    message = str(stop.value)
    assert "01_fake, cell 6 of 7 failed" in message and "import helpers.world.scenes" in message
    assert "ZeroDivisionError: division by zero" in message
    assert (tmp_path / "out" / "01_fake.ipynb").exists()
    assert not (tmp_path / "out" / "02_fake.ipynb").exists()


def test_the_closing_table_fits_a_terminal(tmp_path):
    long = Entry("07_make_preferences", "", "", 61.25, "figure " * 30)
    lines = run_course.table([long] * 2, build_notebooks.ROOT / "runs" / "course").splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.count("figure") for line in lines) == 60


def test_a_second_course_does_not_write_over_the_first(lessons, tmp_path):
    folder, out = lessons(GOOD), tmp_path / "out"
    with run_course.claim(out), pytest.raises(SystemExit, match="Another course is running .*wait"):
        run_course.main(["--output", str(out)], lessons=folder)
    script = (
        "import pathlib, sys; from tools.run_course import claim; "
        "lock = claim(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = started(script, out, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(run_course.Stopped):
        run_course.claim(out)
    holder.kill()
    holder.communicate()
    with run_course.claim(out):
        pass  # nothing stale is left


def started(script, *arguments, **more):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, text=True, cwd=build_notebooks.ROOT, **more)


def test_what_cannot_be_done_is_one_sentence(lessons, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_course, "execute", full)
    (tmp_path / "file").touch()
    folder = lessons(GOOD)
    for output, more, sentence in (
        ("out", [], "01_fake, cell 0 of 7: the disk is full"),
        ("file", [], "Cannot write to .*file.*--output"),
        ("out", ["--track", "laptop"], "unknown track 'laptop'"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run_course.main(["--output", str(tmp_path / output), *more], lessons=folder)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process on Windows")
def test_interrupt_is_one_sentence_and_keeps_what_ran(lessons, tmp_path):
    folder = lessons(GOOD.replace("    pass", "    import time; time.sleep(60)"))
    script = (
        "import sys; from pathlib import Path; from tools.run_course import main; "
        "main(['--output', sys.argv[1]], Path(sys.argv[2]))"
    )
    # What a shell starts in the background ignores interrupts, and so would its children.
    stoppable = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    run = started(script, tmp_path / "out", folder, stderr=subprocess.PIPE, **stoppable)
    executed = tmp_path / "out" / "01_fake.ipynb"
    try:
        wait_for(lambda: executed.exists() and '"running"' in executed.read_text(encoding="utf-8"))
        run.send_signal(signal.SIGINT)
        _, message = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 1
    assert re.fullmatch(
        r"Interrupted in 01_fake, cell \d of 7\. What ran so far is in .*\n", message
    )
    nbformat.read(executed, as_version=4)  # whole, not cut off


def wait_for(condition, seconds=300):  # a busy machine takes long to import torch
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
