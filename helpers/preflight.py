"""Will this machine do? A report that can be pasted into a bug form.

    python -m helpers.preflight            # exits with the number of [FAIL] lines
    print(report(track="auto"))            # the same in a notebook

Every check stands alone: one that breaks becomes its own [FAIL] and never stops the next. torch and
the rest are imported inside the checks, so a report also comes out where they are missing. Tokens,
user names and home paths are taken out of what is printed.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from helpers.setup.colab import EXACT

ROOT = Path(__file__).resolve().parent.parent
RUNS, CONSTRAINTS = ROOT / "runs", ROOT / "constraints.txt"
BUNDLED = (
    "data/photos/preferences.parquet",
    "data/photos/probes.parquet",
    "data/pocket/preferences.parquet",
    "data/pocket/training_log.json",
)
OLDEST_PYTHON = (3, 11)
MEMORY_NEEDED, DISK_NEEDED = 2, 1  # GiB free, for the pocket track

# What lessons import. All but EXACT, and torch above all, may be what the machine came with.
PACKAGES = (*EXACT, "accelerate", "bitsandbytes", "matplotlib", "pillow", "torch")

WIDTH = 90  # columns: reports are pasted into forms
INDENT = " " * 9
RESTORE = "Restore the files that came with the course, in its folder:\n  git checkout -- data"


@dataclass(frozen=True)
class Check:
    """One finding of the report. `ok` is None for plain information; `fix` is two lines."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""

    def __str__(self):
        mark = {True: "[OK]", False: "[FAIL]", None: ""}[self.ok]
        line = f"{mark:6} {self.name} {self.detail}"
        return line if self.ok is not False else f"{line}\n{textwrap.indent(self.fix, INDENT)}"


def report(track="auto"):
    """The whole report as text, safe to paste. `track`: as for `helpers.setup.tracks.choose`."""
    return render(run_checks(track))


def render(checks):
    """The checks, each with its fix under a [FAIL], and the count at the end."""
    failed = sum(check.ok is False for check in checks)
    passed = sum(check.ok is True for check in checks)
    text = paste_safe("\n".join([*map(str, checks), f"{passed} OK, {failed} FAIL"]))
    return "\n".join(map(wrapped, text.splitlines()))


def wrapped(line):
    """A finding in lines of at most WIDTH columns; a fix is left whole, to be copied."""
    if line.startswith(INDENT):
        return line
    whole_words = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(line, WIDTH, subsequent_indent=INDENT, **whole_words)


def run_checks(track="auto"):
    """A list of Check, in the order of the report."""
    return [
        attempt("Python", python_version),
        *(attempt(name, package, name) for name in PACKAGES),
        attempt("processor", processor),
        attempt("memory", memory),
        attempt("disk", disk),
        attempt("GPU", gpu),
        attempt("track", chosen_track, track),
        attempt("Hub", downloads, track),
        *(attempt(path, bundled, path) for path in BUNDLED),
        attempt("pocket model", pocket_model),
    ]


def attempt(name, look, *arguments):
    """The Check that `look` returns, or a [FAIL] with the sentence of what it raised."""
    try:
        return look(*arguments)
    except Exception as error:  # whatever a broken installation may raise
        sentence = " ".join(f"{type(error).__name__}: {error}".split())
        fix = f"Install again:\n  {install()}"
        return Check(name, False, f"cannot be checked: {sentence}", fix)


def install():
    """The command that installs the tested versions into the Python that runs this."""
    return f"{this_python()} -m pip install -r requirements.txt -c constraints.txt"


def this_python():
    """This interpreter, as it is typed in the course's folder."""
    python = Path(sys.executable)
    # Not python.resolve(): in .venv it is a link to the system's.
    for place in (python, python.parent.resolve() / python.name):
        if place.is_relative_to(ROOT):
            python = place.relative_to(ROOT)
    return f'"{python}"' if " " in str(python) else str(python)


# --- the checks ----------------------------------------------------------------------------


def python_version():
    version, wanted = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    fix = f"Make the environment again with Python {wanted} or newer, such as:\n"
    again = "rm -rf .venv && make course PYTHON=python3.12"
    if sys.platform == "win32":
        again = "py -3.12 -m venv --clear .venv"
    fix += f"  {again}"
    ok = sys.version_info >= OLDEST_PYTHON
    return Check("Python", ok, f"{version} on {platform.system()} {platform.machine()}", fix)


def package(name):
    """Installed, and in the tested version; for EXACT another version is a [FAIL]."""
    tested = dict(line.split("==") for line in CONSTRAINTS.read_text().split())[name]
    fix = f"Install the tested version, then restart Python:\n  {install()}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "is not installed", fix)
    if version.split("+")[0] == tested:  # the part after + names the build: cpu, cu130
        return Check(name, True, version)
    return Check(name, name not in EXACT, f"{version}; the course was tested with {tested}", fix)


def processor():
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count()
    return Check("processor", None, f"{cores} cores, of which torch uses {threads}")


def memory():
    import psutil

    free = psutil.virtual_memory().available / 2**30
    fix = f"Lessons may be killed below {MEMORY_NEEDED} GiB, without a message.\n"
    fix += "  Close other programs and other notebooks' kernels."
    return Check("memory", free >= MEMORY_NEEDED, f"{free:.1f} GiB free", fix)


def disk():
    """Room in runs/, and a file can be written there."""
    fix = f"Lessons write to runs/ and need {DISK_NEEDED} GiB there: make room (all in it can be\n"
    fix += "  made again), or move the course to a folder that you may write to."
    try:
        RUNS.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=RUNS) as file:
            file.write(b"x")
    except OSError as error:
        return Check("disk", False, f"runs/ cannot be written ({error.strerror})", fix)
    free = shutil.disk_usage(RUNS).free / 2**30
    return Check("disk", free >= DISK_NEEDED, f"{free:.1f} GiB free in runs/, writable", fix)


def gpu():
    from helpers.setup.machine import this_machine

    machine = this_machine()
    if machine.kind != "cuda":
        return Check("GPU", None, "none that torch can use; the pocket track needs none")
    return Check("GPU", True, str(machine))


def chosen_track(name):
    """The track, why, in what precision, and whether this machine can run it."""
    from helpers.setup.tracks import TRACKS, TrackError, choose

    known = f"Choose one of these and run the cell again:\n  TRACK = {' | '.join(TRACKS)} | auto"
    try:
        track = choose(name)
    except TrackError as error:
        return Check("track", False, f"{error}", known)
    why = "chosen by what is here" if name == "auto" else "as asked"
    detail = f"{track.name} ({track.machine}), {why}; {track.dtype} on {track.device}"
    detail += f", {track.autocast} autocast" if track.autocast else ""
    fits = track.name == "pocket" or track.device == "cuda"
    return Check("track", fits, detail if fits else f"{detail}: no CUDA GPU was found", known)


def downloads(name):
    """On a GPU track: the Hub answers for its model and its data. Nothing is downloaded."""
    from huggingface_hub import HfApi

    from helpers.setup.tracks import TRACKS, choose

    if name not in ("auto", *TRACKS) or choose(name).name == "pocket":
        return Check("Hub", None, "not asked; the pocket track needs no network")
    track = choose(name)
    fix = "Look at the network (on Kaggle: Settings, Internet on). If the data are gated,\n"
    fix += '  accept their terms on the Hub and log in. Or work without: TRACK = "pocket"'
    try:
        model, data = HfApi().model_info(track.model), HfApi().dataset_info(track.dataset)
    except Exception as error:  # the network has many ways to fail
        return Check("Hub", False, f"does not give {track.model}: {type(error).__name__}", fix)
    found = [f"{info.id} at {info.sha[:7]}" for info in (model, data)]
    return Check("Hub", True, " and ".join(found), fix)


def bundled(path):
    """A file of the course is there, and a parquet file can be opened."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_metadata

    file = ROOT / path
    try:
        size = file.stat().st_size
        rows = f", {read_metadata(file).num_rows} rows" if file.suffix == ".parquet" else ""
    except (OSError, ArrowInvalid) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        return Check(path, False, reason, RESTORE)
    return Check(path, size > 0, f"{size / 1000:.0f} kB{rows}", RESTORE)


def pocket_model():
    """The bundled checkpoint loads, and says what it sees in one scene."""
    from helpers.vlm import pocket
    from helpers.vlm.load import ModelError
    from helpers.world.scenes import sample_scene

    try:
        model, reader = pocket.load()
    except ModelError as error:
        return Check("pocket model", False, f"does not load: {error}", RESTORE)
    said = pocket.captions(model, reader, [sample_scene(0)])[0]
    if said.startswith("I see"):
        return Check("pocket model", True, f'answers "{said}"')
    return Check("pocket model", False, f'answers "{said}", no sentence of its world', RESTORE)


# --- safe to paste -------------------------------------------------------------------------


def paste_safe(text):
    """`text` without the course's place, the home folder, user names, tokens and passwords."""
    for place, short in ((ROOT, "."), (Path.home(), "~")):
        if len(place.parts) > 1:
            text = re.sub(re.escape(str(place)) + r"(?![\w-])", short, text)
    names = {Path.home().name, os.environ.get("USER", ""), os.environ.get("USERNAME", "")} - {""}
    for name in sorted(names, key=len, reverse=True):  # "mara.b" before "mara"
        # Only as a part of a path: a user may be called "fork".
        text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?![\w-])", "user", text)
    for name, value in os.environ.items():
        if re.search("TOKEN|SECRET|PASSWORD|KEY", name.upper()) and len(value) >= 8:
            text = text.replace(value, "***")
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)
    return re.sub(r"//[^/@\s]+@", "//***@", text)  # user:password@ in an address


def main():
    track = sys.argv[1] if len(sys.argv) > 1 else "auto"
    checks = run_checks(track)
    print(render(checks))
    sys.exit(sum(check.ok is False for check in checks))


if __name__ == "__main__":
    from helpers.setup.colab import turn_down_noise  # a notebook's setup cell has done it

    turn_down_noise()
    os.environ["TQDM_DISABLE"] = "1"  # no bar for one picture; tqdm reads it when it is imported
    main()
