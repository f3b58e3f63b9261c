"""Run the whole course with papermill and show what came out.

    python -m tools.run_course                      # every lesson, on the pocket track
    python -m tools.run_course --quick --only 03    # one lesson, in small
    python -m tools.run_course --track auto         # on whatever this machine has

The notebooks are built from lessons/ on the way. runs/course gets each executed notebook and an
HTML page of it. A lesson states its minutes on each track in its prose; a code cell tagged
`key-figure` prints the one line that the closing table shows for it.
"""

import argparse
import errno
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from helpers.tracks import TRACKS, TrackError, choose
from tools.build_notebooks import (
    LESSONS,
    ROOT,
    LessonError,
    build,
    execute,
    find_lessons,
    keep_outputs,
    pocket_environment,
    tags,
)
from tools.progress import Progress

UNSTATED_MINUTES = 1.0  # assumed where a lesson states no time for a track


class Stopped(Exception):
    """The course could not go on; the message says where, why and what to do."""


@dataclass(frozen=True)
class Result:
    """One lesson that ran through."""

    lesson: str
    minutes: float
    key_figure: str
    notebook: Path
    page: Path


def stated_minutes(notebook, track):
    """The minutes that a lesson's prose states for a track, or None.

    Read from a line such as "pocket (2 CPU cores): about 3 minutes", also in a table; the text up
    to the name of the next track counts.
    """
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    others = "|".join(TRACKS)
    time_of_track = rf"\b{track}\b(?:(?!\b(?:{others})\b).)*?(\d+(?:\.\d+)?)\s*(min|s)"
    found = re.search(time_of_track + r"(?:utes?|ec|econds?)?\b", prose, re.IGNORECASE)
    return found and float(found[1]) / (60 if found[2].lower() == "s" else 1)


def key_figure(notebook):
    """The last line printed by the cell tagged `key-figure`, or "" where there is none."""
    cells = [cell for cell in notebook.cells if "key-figure" in tags(cell)]
    printed = [o.text for cell in cells for o in cell.outputs if o.get("name") == "stdout"]
    lines = "".join(printed).strip().splitlines()
    return lines[-1].strip() if lines else ""


def prepare(folder):
    """Make the output folder and write to it once, so that a fault shows before an hour is gone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_text("")
        (folder / ".writable").unlink()
    except OSError as error:
        raise Stopped(
            f"Cannot write to {folder} ({error.strerror}): name another folder with --output."
        ) from None


def run_lesson(notebook, output, parameters, progress):
    """Execute one built notebook into `output`; return it as nbformat. Raises Stopped."""
    numbers = {cell.id: number for number, cell in enumerate(notebook.cells, start=1)}

    def on_cell_start(cell, cell_index):
        # papermill adds a cell with the parameters, so its index is not the learner's
        progress.cell = numbers.get(cell.id, progress.cell)

    try:
        return execute(notebook, output, parameters, on_cell_start=on_cell_start)
    except papermill.PapermillExecutionError as error:
        first_line = error.source.strip().splitlines()[0]
        raise Stopped(
            f"{progress.where} failed, [{error.exec_count}] in {shown(output)}\n"
            f"    {first_line}\n{error.ename}: {error.evalue}"
        ) from None
    except DeadKernelError:
        raise Stopped(
            f"{progress.where}: Python died, most often for want of memory. Close other programs, "
            f"or try --quick. What ran is in {shown(output)}."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Stopped(
            f"{progress.where}: the disk is full. Free some space, or name a folder on another "
            "disk with --output."
        ) from None


def write_page(notebook, executed, path):
    """One HTML page that needs no other file, from the tidied outputs."""
    page = keep_outputs(notebook, executed)
    names = {"metadata": {"name": path.stem}}
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(page, resources=names)
    path.write_text(html, encoding="utf-8")


def run_course(notebooks, folder, parameters, progress):
    """Run built notebooks, a dict by lesson name, in turn; yield a Result for each."""
    for name, notebook in notebooks.items():
        output, page = folder / f"{name}.ipynb", folder / f"{name}.html"
        with progress.lesson(name, len(notebook.cells)):
            executed = run_lesson(notebook, output, parameters, progress)
            write_page(notebook, executed, page)
        yield Result(name, progress.minutes[name], key_figure(executed), output, page)


def shown(path):
    """A path as short as it can be for someone in this folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def table(results):
    """The closing report: lesson, minutes and key figure, then where everything lies."""
    width = max(len(result.lesson) for result in results)
    rows = [f"{'lesson':{width}}  minutes  key figure"]
    rows += [f"{r.lesson:{width}}  {r.minutes:7.1f}  {r.key_figure or '-'}" for r in results]
    rows += [f"{'total':{width}}  {sum(r.minutes for r in results):7.1f}", "", "notebook, page:"]
    rows += [f"{shown(r.notebook)}  {shown(r.page)}" for r in results]
    return "\n".join(rows)


def announce(notebooks, track):
    """Say what will run and where the time left comes from; return the stated minutes by lesson."""
    stated = {name: stated_minutes(notebook, track) for name, notebook in notebooks.items()}
    silent = [name for name, minutes in stated.items() if minutes is None]
    if silent:
        print(f"No time stated for {track}, counted as 1 minute each: {', '.join(silent)}.")
    stated = {name: minutes or UNSTATED_MINUTES for name, minutes in stated.items()}
    print(
        f"{len(stated)} lesson(s) on the {track} track, about {sum(stated.values()):.0f} min. Time "
        "left is from the minutes the lessons state, corrected by this machine's pace so far.",
        flush=True,
    )
    return stated


def parse(arguments):
    parser = argparse.ArgumentParser(description="Run the course and report.")
    parser.add_argument("--track", default="pocket", help="pocket (default), t4, ampere or auto")
    parser.add_argument("--quick", action="store_true", help="every step, in small: QUICK = True")
    parser.add_argument("--only", nargs="+", default=(), help='lessons by number, such as "03"')
    parser.add_argument("--seed", type=int, help="instead of each lesson's own SEED")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "course")
    return parser.parse_args(arguments)


def main(arguments=None, lessons=LESSONS):
    options = parse(arguments)
    folder, progress = options.output.resolve(), None
    try:
        track = choose(options.track).name
        if track == "pocket":
            pocket_environment()
        prepare(folder)
        notebooks = {path.stem: build(path) for path in find_lessons(lessons, options.only)}
        parameters = {"TRACK": track, "QUICK": options.quick}
        if options.seed is not None:
            parameters["SEED"] = options.seed
        progress = Progress(announce(notebooks, track))
        results = list(run_course(notebooks, folder, parameters, progress))
    except (LessonError, Stopped, TrackError) as error:
        sys.exit(f"Stopped: {error}")
    except KeyboardInterrupt:
        place = f" in {progress.where}" if progress else ""
        sys.exit(f"Interrupted{place}. What ran so far is in {shown(folder)}.")
    print(table(results))


if __name__ == "__main__":
    main()
