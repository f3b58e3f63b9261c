"""Run the whole course with papermill and show what came out.

    python -m tools.run_course                      # every lesson, on the pocket track
    python -m tools.run_course --quick --only 03    # one lesson, in small
    python -m tools.run_course --track auto         # on whatever this machine has

The notebooks are built from lessons/ on the way. runs/course gets each executed notebook, an HTML
page of it, and index.html, which leads to all pages. A lesson states its minutes on each track in
its first cell; a code cell tagged `key-figure` prints what the closing table shows of it.
"""

import argparse
import errno
import sys
import textwrap
from pathlib import Path

import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError

from helpers.setup.colab import set_environment
from helpers.setup.tracks import TrackError, choose
from tools.build_notebooks import (
    LESSONS,
    ROOT,
    LessonError,
    build,
    execute,
    find_lessons,
    keep_outputs,
    with_cover,
)
from tools.pages import entry, stated_minutes, write_index, write_page
from tools.progress import Progress

UNSTATED_MINUTES = 1.0  # assumed where a lesson states no time for a track
COLUMNS, INDENT = 80, "    "  # of the closing table


class Stopped(Exception):
    """The course could not go on; the message says where, why and what to do."""


def claim(folder):
    """Make the output folder and lock it, so that a fault shows before an hour is gone.

    Returns the lock, a context. It ends with this process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise Stopped(
            f"Another course is running and writes to {shown(folder)}: wait until it has ended."
        ) from None
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
        why = f" failed, [{error.exec_count}] in {shown(output)}\n{INDENT}"
        why += f"{error.source.strip().splitlines()[0]}\n{error.ename}: {error.evalue}"
    except DeadKernelError:
        why = ": Python died, most often for want of memory. Close other programs, or try --quick. "
        why += f"What ran is in {shown(output)}."
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = ": the disk is full. Free some space, or name a folder on another disk with --output."
    raise Stopped(f"{progress.where}{why}")


def run_course(notebooks, folder, parameters, progress):
    """Run built notebooks, a dict by lesson name, in turn; return an Entry for each."""
    entries = []
    for name, notebook in notebooks.items():
        with progress.lesson(name, len(notebook.cells)):
            executed = run_lesson(notebook, folder / f"{name}.ipynb", parameters, progress)
            page = with_cover(keep_outputs(notebook, executed))
            write_page(page, folder / f"{name}.html", notebooks)
        entries.append(entry(name, page, progress.minutes[name]))
        write_index(entries, folder / "index.html")  # after each: a later one may fail
    return entries


def shown(path):
    """A path as short as it can be for someone in this folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def table(entries, folder):
    """The closing report: lesson, minutes and key figure, where all lies, and what comes next."""
    width = max(len(one.name) for one in entries)
    indented = textwrap.TextWrapper(COLUMNS, initial_indent=INDENT, subsequent_indent=INDENT)
    rows = [f"{'lesson':{width}}  minutes"]
    for one in entries:
        rows += [f"{one.name:{width}}  {one.minutes:7.1f}", *indented.wrap(one.key_figure)]
    rows.append(f"{'total':{width}}  {sum(one.minutes for one in entries):7.1f}\n")
    rows.append(f"All passed: {len(entries)} of {len(entries)} lessons.")
    rows.append(f"Read them: {shown(folder / 'index.html')} (the notebooks lie beside the pages)")
    return "\n".join([*rows, "Work through them: make lab"])


def announce(notebooks, track):
    """Say what will run and where the time left comes from; return the stated minutes by lesson."""
    stated = {name: stated_minutes(notebook, track) for name, notebook in notebooks.items()}
    if silent := [name for name, minutes in stated.items() if minutes is None]:
        say(f"No time stated for {track}, counted as 1 minute each: {', '.join(silent)}.")
    stated = {name: minutes or UNSTATED_MINUTES for name, minutes in stated.items()}
    say(
        f"{len(stated)} lesson(s) on the {track} track, about {sum(stated.values()):.0f} min. Time "
        "left is from the minutes the lessons state, corrected by this machine's pace so far."
    )
    return stated


def say(text):
    print(textwrap.fill(text, COLUMNS), flush=True)


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
            set_environment(gpu=False)  # kernels inherit it: one thread, also beside a GPU
        with claim(folder):
            notebooks = {path.stem: build(path) for path in find_lessons(lessons, options.only)}
            parameters = {"TRACK": track, "QUICK": options.quick}
            if options.seed is not None:
                parameters["SEED"] = options.seed
            progress = Progress(announce(notebooks, track))
            entries = run_course(notebooks, folder, parameters, progress)
    except (LessonError, Stopped, TrackError) as error:
        sys.exit(f"Stopped: {error}")
    except KeyboardInterrupt:
        place = f" in {progress.where}" if progress else ""
        sys.exit(f"Interrupted{place}. What ran so far is in {shown(folder)}.")
    print(table(entries, folder))


if __name__ == "__main__":
    main()
