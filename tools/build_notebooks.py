"""Build the notebooks from the lessons, executed on the pocket track.

    python -m tools.build_notebooks                 # every lesson
    python -m tools.build_notebooks --only 03 A     # some
    python -m tools.build_notebooks --no-execute    # new text; outputs stay where the source did

A lesson is a Python file in jupytext's percent format, lessons/NN_name.py. Its first cell is
markdown and opens with the title, one code cell is tagged `parameters`. After the title the
notebook has two generated cells: the link that opens it in Colab, and the setup cell, folded. Both,
and the badges in README.md, lead to this repository on GitHub, at the tag of this release. The
first picture of the cell tagged `cover` is put into the title cell, too.
"""

import argparse
import ast
import base64
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
import papermill
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from helpers.preflight import PACKAGES
from helpers.setup.colab import KEEP, course_release, set_environment
from tools.outputs import output_faults, tags, tidy

ROOT = Path(__file__).resolve().parent.parent
LESSONS, NOTEBOOKS = ROOT / "lessons", ROOT / "notebooks"
LESSON_FILE = re.compile(r"(\d\d|[A-Z])_\w+\.py")
PARAMETERS = ("TRACK", "QUICK", "SEED")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "accelerator": "GPU",  # Colab opens the notebook on its free T4
    "colab": {"gpuType": "T4", "provenance": []},
}

COLAB = (
    "https://colab.research.google.com/github/{repository}/blob/{release}/notebooks/{stem}.ipynb"
)
OPEN_IN_COLAB = f"[Open in Colab]({COLAB})"  # as text: a badge's picture is broken offline
BADGE_ADDRESS = re.compile(
    r"https://colab\.research\.google\.com/github/([^\s)]+)/blob/[^\s)]+/notebooks/(\w+)\.ipynb"
)
SETUP_TITLE = "# @title Setup: find the course, or fetch it (run this first)\n"
# Folded in JupyterLab, in Colab (which shows the title line) and in MyST.
FOLDED = {"tags": ["setup", "hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
CELL_METADATA = ("tags", "alt", "jupyter", "cellView")  # what is kept of a lesson's cells
COVER_BYTES = 80_000
GITHUB = re.compile(
    r"(?:https://(?:[^/@]+@)?|(?:ssh://)?git@)github\.com[/:]([\w.-]+/[\w.-]+?)(?:\.git)?/?"
)
# What is in <> is filled in. It is dense because the course, and so its helpers, may not be there.
SETUP = r"""
# Find the course. Colab and Kaggle fetch it, and what this lesson lacks (helpers/setup/colab.py).
import json, os, re, subprocess, sys, urllib.request as web
from pathlib import Path
here, sources = Path.cwd(), [("<repository>", "<release>")]  # whose, which tag
places = [here, here / "<folder>", *here.parents]
course = lambda: next((p for p in places if (p / "helpers/setup/colab.py").exists()), None)
why = "Get it: git clone https://github.com/<repository>"
if not course() and ("google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ):
    try:  # first from where this notebook was opened, which Colab's own server can tell
        server = "http://{COLAB_JUPYTER_IP}:{KMP_TARGET_PORT}/api/sessions".format(**os.environ)
        page = web.unquote(json.load(web.urlopen(server, timeout=5))[0]["path"])
        sources[:0] = re.findall(r"github.*?/([\w.-]+/[\w.-]+)/blob/([\w./-]+)/notebooks", page)
    except Exception: pass
    for name, ref in dict.fromkeys(sources):
        git = f"git clone -q --depth 1 --branch {ref} https://github.com/{name} '{places[1]}'"
        said = subprocess.getoutput(f"GIT_TERMINAL_PROMPT=0 timeout 300 {git} < /dev/null").split()
        if course(): break
        why = f"{git} said: {' '.join(said)}. Mend that, or correct `sources` in this cell."
if not course():
    class NotFound(Exception): _render_traceback_ = lambda self: [str(self)]  # without a traceback
    raise NotFound(f"The course is not here. {why}")
sys.path.insert(0, str(course()))
from helpers.setup.colab import make_ready
<make_ready>
"""
# A requirement's module, where it has another name; and what is needed without being imported.
MODULES = {"pillow": "PIL"}
UNSEEN = {"helpers.preflight": PACKAGES, "transformers.BitsAndBytesConfig": ("bitsandbytes",)}


class LessonError(Exception):
    """A lesson or notebook that is not fit to build; the message names it and says what to do."""


def find_lessons(folder=LESSONS, only=()):
    """The lesson files in reading order; `only` names some by number or in full: "03", "A"."""
    lessons = sorted(path for path in folder.glob("*.py") if LESSON_FILE.fullmatch(path.name))
    if not lessons:
        raise LessonError(f"There are no lessons in {folder}: a lesson is a file like 01_name.py.")
    for name in only:
        if not any(is_called(path, name) for path in lessons):
            known = ", ".join(path.stem for path in lessons)
            raise LessonError(f"There is no lesson {name!r}. The lessons are: {known}.")
    return [path for path in lessons if not only or any(is_called(path, n) for n in only)]


def is_called(lesson, name):
    return name in (lesson.stem, lesson.stem.split("_")[0])


def build(lesson, repository=None):
    """The notebook of one lesson, not yet executed. Raises LessonError if the lesson is unfit.

    `repository`: where its badge and setup cell lead, if not to this one (course_settings).
    """
    cells = jupytext.reads(lesson.read_text(encoding="utf-8"), fmt="py:percent").cells
    require_lesson(cells, lesson.name)
    settings = course_settings(repository)
    link = new_markdown_cell(OPEN_IN_COLAB.format(stem=lesson.stem, **settings))
    setup = new_code_cell(SETUP_TITLE + setup_cell(lesson, settings), metadata=FOLDED)
    cells = [cells[0], link, setup, *cells[1:]]
    for cell, name in zip(cells, cell_ids(cells), strict=True):
        cell.metadata = {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        cell.id = name
    return new_notebook(cells=cells, metadata=METADATA)


def require_lesson(cells, name):
    """Raise LessonError unless the title and the tagged cells are as the tools need them."""

    def require(sound, otherwise):
        if not sound:
            raise LessonError(f"{name}: {otherwise}")

    titled = cells and cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    require(titled, "the first cell must be markdown and open with the '# ' title.")
    tagged = Counter(tag for cell in cells for tag in tags(cell))
    require(
        tagged["parameters"] == 1,
        f"{tagged['parameters']} cells are tagged `parameters`; tag exactly one code cell, "
        f'# %% tags=["parameters"], and assign {", ".join(PARAMETERS)} in it.',
    )
    parameters = next(cell.source for cell in cells if "parameters" in tags(cell))
    for one in sorted(set(PARAMETERS) - assigned_names(parameters, name)):
        require(False, f"give {one} a line in the parameters cell: {one} = ...")
    told = all("alt" in cell.metadata for cell in cells if "cover" in tags(cell))
    require(told, 'say what the cell tagged `cover` shows, alt="A plot of ...".')
    require(not tagged["setup"], "leave out the cell tagged `setup`; the build adds it.")
    # papermill stops at every error output, whatever the tag says
    stops = "a cell is tagged `raises-exception`; catch and print instead."
    require(not tagged["raises-exception"], stops)


def assigned_names(source, name):
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise LessonError(f"{name}: the parameters cell is not valid Python: {error}.") from None
    assignments = [node for node in statements if isinstance(node, ast.Assign)]
    return {t.id for node in assignments for t in node.targets if isinstance(t, ast.Name)}


def setup_cell(lesson, settings):
    """The text of the first code cell of a lesson's notebook."""
    asked = [f'"{name}",' for name in packages_of(lesson)]
    call = f'make_ready({" ".join(asked)} release="{settings["release"]}")'
    text = SETUP.strip().replace("<make_ready>", textwrap.fill(call, 100, subsequent_indent="    "))
    for name, value in settings.items():
        text = text.replace(f"<{name}>", value)
    return text


def packages_of(lesson):
    """The requirements that a lesson imports, itself or through helpers, but for runtime.KEEP.

    Imports inside functions count: they are needed sooner or later.
    """
    todo, found = [lesson], set()
    while todo:
        new = imported_names(todo.pop()) - found
        found |= new
        files = [ROOT / name.replace(".", "/") for name in new if name.startswith("helpers")]
        files = [file for path in files for file in (path.with_suffix(".py"), path / "__init__.py")]
        todo += [file for file in files if file.exists()]
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in requirements}
    unseen = {name for module in found & {*UNSEEN} for name in UNSEEN[module]}
    asked = {name for name, module in modules.items() if module in found}
    return sorted((asked | unseen) - {*KEEP})


def imported_names(file):
    """Every dotted name that a Python file imports, and the packages that it lies in."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name[: end.start()] for name in names for end in re.finditer(r"\.|$", name)}


def course_settings(repository=None):
    """Where badges and setup cells lead: `repository` on GitHub, if not that of git's `origin` or
    of [tool.course] in pyproject.toml; `release`, a tag; the `folder` that git clones it into."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = repository or origin() or project["tool"]["course"]["repository"]
    folder = repository.split("/")[-1]
    return {"repository": repository, "release": course_release(ROOT), "folder": folder}


def origin():
    """owner/name of git's remote `origin`, or None where that is not on GitHub."""
    if not (ROOT / ".git").exists():  # an archive, perhaps inside of another repository
        return None
    asked = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    url = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    found = GITHUB.fullmatch(url)
    return found and found[1]


def with_badges(text, repository=None):
    """The text with every address of a notebook on Colab as course_settings has it."""
    settings = course_settings(repository)
    return BADGE_ADDRESS.sub(lambda found: COLAB.format(stem=found[2], **settings), text)


def rewrite_badges(page):
    """Let the badges of a markdown page lead to this repository and release."""
    page.write_text(with_badges(page.read_text(encoding="utf-8")), encoding="utf-8")


def cell_ids(cells):
    """An id from each cell's text, so that an edit changes the id of the edited cell alone."""
    seen = Counter()
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] += 1
        yield f"{digest}-{seen[digest]}"


def execute(notebook, output, parameters, **hooks):
    """Run a built notebook with papermill from the course's root; return it with its outputs.

    The file `output` is written after every cell. Keyword arguments are nbclient's hooks, such as
    on_cell_start. A failing cell raises papermill.PapermillExecutionError.
    """
    nbformat.write(notebook, output)
    # GitHub shows no notebook with widget states. A kernel's own log would tear the live line: it
    # warns at its start and when it is interrupted.
    return papermill.execute_notebook(
        str(output), str(output), parameters, cwd=ROOT, progress_bar=False,
        store_widget_state=False, extra_arguments=["--IPKernelApp.log_level=CRITICAL"], **hooks,
    )  # fmt: skip


def keep_outputs(notebook, executed):
    """Put the outputs of an executed copy into a built notebook, without papermill's records."""
    outputs = {cell.id: tidy(cell.outputs) for cell in executed.cells if cell.cell_type == "code"}
    return with_outputs(notebook, outputs)


def with_outputs(notebook, outputs):
    """Fill code cells by id and number those that were run; a cell without outputs stays blank."""
    ran = (cell for cell in notebook.cells if cell.cell_type == "code" and cell.id in outputs)
    for count, cell in enumerate(ran, start=1):
        cell.execution_count, cell.outputs = count, outputs[cell.id]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return notebook


def with_cover(notebook):
    """Attach the first picture of the cell tagged `cover` to the title cell.

    There it is seen before anything has run, without a network, and on Colab. A notebook whose
    cover was never drawn stays as it is.
    """
    for cell in (cell for cell in notebook.cells if "cover" in tags(cell)):
        for output in cell.outputs:
            if picture := output.get("data", {}).get("image/png"):
                notebook.cells[0].source += f"\n\n![{cell.metadata['alt']}](attachment:cover.png)"
                attached = {"image/png": small_png(picture)}
                notebook.cells[0].attachments = {"cover.png": attached}
                return notebook
    return notebook


def small_png(picture):
    """A PNG in base64 with as many colours as COVER_BYTES allow."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    for colours in (256, 128, 64, 32):
        # The octree keeps rare colours, such as those of a thing in a drawing; without dithering
        # the noise of a drawing stays compressible.
        few = image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        file = io.BytesIO()
        few.save(file, "PNG", optimize=True)
        if file.tell() <= COVER_BYTES:
            break
    return base64.b64encode(file.getvalue()).decode("ascii")


def build_one(lesson, folder, run=True):
    """Write the notebook of a lesson. With run=False, keep the outputs of unchanged cells."""
    notebook, path = build(lesson), folder / f"{lesson.stem}.ipynb"
    if run:
        with tempfile.TemporaryDirectory() as scratch:
            executed = execute(notebook, Path(scratch) / path.name, {"TRACK": "pocket"})
        notebook = keep_outputs(notebook, executed)
    elif path.exists():
        old = nbformat.read(path, as_version=4).cells
        notebook = with_outputs(
            notebook, {c.id: c.outputs for c in old if c.get("execution_count")}
        )
    notebook = with_cover(notebook)
    if faults := output_faults(notebook):
        raise LessonError(f"{lesson.name}, {faults[0]}")
    nbformat.write(notebook, path)


def main(arguments=None, lessons=LESSONS, notebooks=NOTEBOOKS, readme=ROOT / "README.md"):
    parser = argparse.ArgumentParser(description="Build notebooks/ from lessons/.")
    parser.add_argument("--only", nargs="+", default=(), help='lessons by number, such as "03"')
    parser.add_argument("--no-execute", action="store_true", help="rewrite the sources only")
    options = parser.parse_args(arguments)
    set_environment(gpu=False)  # kernels inherit it: one thread, also where there is a GPU
    rewrite_badges(readme)
    try:
        for lesson in find_lessons(lessons, options.only):
            start = time.monotonic()
            build_one(lesson, notebooks, run=not options.no_execute)
            print(f"{lesson.stem}.ipynb  {time.monotonic() - start:.0f} s", flush=True)
    except LessonError as error:
        sys.exit(f"Not built: {error}")
    except papermill.PapermillExecutionError as error:
        sys.exit(f"Not built: {lesson.name}: {error.ename}: {error.evalue}\n{error.source}")


if __name__ == "__main__":
    main()
