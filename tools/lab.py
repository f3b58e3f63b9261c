"""Open JupyterLab on the learner's own copies of the lessons.

    python -m tools.lab                               # what `make lab` runs
    python -m tools.lab --allow-root --no-browser     # options are passed on to JupyterLab

The notebooks in notebooks/ are tracked by git and hold every output. So each lesson is copied to
work/ without its outputs, and the first copy is opened. A copy's metadata record the digest of the
cells that were written. As long as the cells still have that digest, nobody has worked in the copy,
and it is written again when the lesson changes; a copy that was changed or run is never touched.
work/pages holds the lessons as they were executed, as HTML pages that the copies link to.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, WORK = ROOT / "notebooks", ROOT / "work"
FIRST = "00_start_here.ipynb"
NOTE = (
    "*This copy is yours: what you change in it is kept. To compare with afterwards: "
    "[the lesson as it was executed](pages/{lesson}.html).*"
)
AS_ROOT = (
    "You are root, as in most containers and on many rented machines. JupyterLab starts as root\n"
    'only if it is told to:\n  make lab LAB="--allow-root"\nor, for the browser of another machine:'
    '\n  make lab LAB="--allow-root --no-browser --ip=0.0.0.0"'
)


def digest(cells: list[dict]) -> str:
    """A digest of a notebook's cells, as JSON holds them: sources, outputs and metadata."""
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def clean_copy(lesson: Path) -> dict:
    """The notebook `lesson` as JSON, without outputs, with a link to its executed page."""
    notebook = json.loads(lesson.read_text(encoding="utf-8"))
    cells, place = notebook["cells"], 0
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        elif not place and "".join(cell["source"]).startswith("# "):
            place = number  # behind the title
    note = {"cell_type": "markdown", "id": "your-copy", "metadata": {}}
    cells.insert(place, {**note, "source": [NOTE.format(lesson=lesson.stem)]})
    notebook["metadata"]["course"] = {"lesson": lesson.stem, "digest": digest(cells)}
    return notebook


def record_of(copy: Path) -> tuple[dict, bool]:
    """What was recorded when a copy was written, and whether its cells are still the same.

    ({}, False) for a file that is not such a copy, or cannot be read as a notebook.
    """
    try:
        notebook = json.loads(copy.read_text(encoding="utf-8"))
        record = dict(notebook["metadata"]["course"])
        return record, digest(notebook["cells"]) == record["digest"]
    except (ValueError, KeyError, TypeError):
        return {}, False


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there in full or not at all, also beside another writer."""
    # helpers.setup.storage writes under one name, which two `make lab` at a time would share.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        new = Path(folder) / path.name
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)


def make_copies(notebooks: Path = NOTEBOOKS, work: Path = WORK) -> list[str]:
    """Copy new and changed lessons to `work`; return the copies kept though their lesson changed.

    A copy without a lesson, as after a lesson was renamed, is removed if nobody worked in it.
    """
    work.mkdir(exist_ok=True)
    kept, lessons = [], {path.name: path for path in sorted(notebooks.glob("*.ipynb"))}
    for name, lesson in lessons.items():
        new = clean_copy(lesson)
        record, untouched = record_of(work / name) if (work / name).exists() else ({}, True)
        if record == new["metadata"]["course"]:
            continue
        if untouched:
            text = json.dumps(new, indent=1, sort_keys=True, ensure_ascii=False)
            write_whole(work / name, text + "\n")
        else:
            kept.append(name)
    for copy in sorted(work.glob("*.ipynb")):
        record, untouched = record_of(copy)
        # A duplicate that the learner made has another name than the record says.
        if copy.name not in lessons and untouched and record["lesson"] == copy.stem:
            copy.unlink(missing_ok=True)  # another `make lab` may be faster
    return kept


def make_pages(notebooks: Path = NOTEBOOKS, pages: Path = WORK / "pages") -> None:
    """Write the executed pages that are missing or older than their notebook."""
    pages.mkdir(parents=True, exist_ok=True)
    lessons = {path: pages / f"{path.stem}.html" for path in sorted(notebooks.glob("*.ipynb"))}
    outdated = [
        (lesson, page)
        for lesson, page in lessons.items()
        if not page.exists() or page.stat().st_mtime < lesson.stat().st_mtime
    ]
    if outdated:
        from tools.pages import page_of  # two seconds, which most starts can do without

        print(f"Writing the pages of {len(outdated)} executed lessons, once ...", flush=True)
    for lesson, page in outdated:
        names = [path.stem for path in lessons]
        write_whole(page, page_of(nbformat.read(lesson, as_version=4), lesson.stem, names))


def prepare(notebooks: Path = NOTEBOOKS, work: Path = WORK) -> None:
    """Bring `work` up to date and say which copies were left as they are."""
    try:
        kept = make_copies(notebooks, work)
        make_pages(notebooks, work / "pages")
    except OSError as error:
        sys.exit(
            f"The lessons cannot be copied to {work} ({error.strerror}). Make room there, or move "
            "the course to a folder that you may write to."
        )
    print(f"Your copies of the lessons are in {work.name}/; what you change there is kept.")
    if kept:
        print(
            f"Left as they are, because you have changed them: {', '.join(kept)}. The course has a "
            f"newer version of each. Delete or rename a copy in {work.name}/ to get it."
        )


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0  # Windows has no such function


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if is_root() and not re.search("allow.root", " ".join(arguments)):
        sys.exit(AS_ROOT)
    os.chdir(ROOT)  # the folder that JupyterLab shows
    prepare()
    from jupyterlab.labapp import LabApp

    sys.stdout.flush()
    LabApp.launch_instance([f"--LabApp.default_url=/lab/tree/{WORK.name}/{FIRST}", *arguments])


if __name__ == "__main__":
    main()
