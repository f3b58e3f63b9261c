"""Make the kernel of a notebook ready; on Colab and Kaggle, install what the course needs there.

    from helpers.runtime import make_ready     # the end of every notebook's first code cell,
    make_ready()                               # which has found the course or fetched it

A laptop has what `make` installed: there only the working folder is set and noise turned down. A
Colab or Kaggle runtime brings hundreds of packages, and this kernel has imported some before the
first cell. So pip may change those that the course lists, and never torch, torchvision or numpy.
Only the standard library is imported up here, so that pip can replace all else without a restart.
"""

import importlib
import logging
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The runtime's own, whatever their version: built for its GPU, or imported before the first cell.
KEEP = ("torch", "torchaudio", "torchvision", "numpy")
# get_peft_model raises beside an older one, which Colab ships (peft.import_utils, peft 0.21.2).
OLDEST_TORCHAO = (0, 16)
LAST_LINES = 15


class NotReady(RuntimeError):
    """The runtime could not be made ready; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """Where a hosted runtime has what the learner must click."""

    name: str
    gpu: str
    restart: str


COLAB = Host("Colab", "Runtime > Change runtime type > T4 GPU", "Runtime > Restart session")
KAGGLE = Host("Kaggle", "Settings > Accelerator > GPU T4 x2", "Run > Restart")


def this_host():
    """COLAB, KAGGLE, or None on a machine that its owner set up."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # first: its image is built on Colab's
        return KAGGLE
    return COLAB if "google.colab" in sys.modules else None  # imported before the first cell


def make_ready():
    """Everything between "the course is found" and the lesson's first line.

    Prints only on Colab and Kaggle, where there is something to tell. Raises NotReady if pip
    fails, or if the kernel has imported what was replaced and must be restarted.
    """
    os.chdir(ROOT)  # lessons name files from the course's root
    turn_down_noise()
    if host := this_host():
        use_one_gpu()
        install_missing(course_packages(), host)
        remove_old_torchao()
        tell_without_gpu(host)


def use_one_gpu():
    """Hide all GPUs but the first from torch: Kaggle gives two, and transformers' Trainer would
    copy the model to both and split every batch, which the course has not been tried with."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def turn_down_noise():
    """Silence what is known, harmless and not the learner's doing, in this kernel."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # plain progress bars will do
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing`")  # PEFT's old name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports optional kernels


def course_packages(root=ROOT):
    """{name: version}: `colab` of [tool.course] in pyproject.toml, pinned by constraints.txt."""
    course = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]
    pins = (root / "constraints.txt").read_text(encoding="utf-8").split()
    versions = dict(pin.split("==") for pin in pins)
    return {name: versions[name] for name in course["colab"]}


def installed(name):
    """The version of a distribution, or None. It may name a build, as 2.11.0+cu128 does."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install_missing(packages, host):
    """Install those of {name: version} that are not here in that version; nothing, if all are."""
    missing = [f"{name}=={pin}" for name, pin in packages.items() if installed(name) != pin]
    replaced = set()
    if missing:
        print(f"Installing {', '.join(missing)}. This takes a minute or two, once.", flush=True)
        start, before = time.monotonic(), snapshot()
        install(missing)
        replaced = {name for name, found in snapshot().items() if before.get(name, found) != found}
        print(f"Installed in {time.monotonic() - start:.0f} s.")
    if stale := sorted(name for name in replaced | {*packages} if is_stale(name)):
        raise NotReady(
            f"Restart this kernel ({host.restart}), then run all cells again: it had imported "
            f"another version of {', '.join(stale)} and cannot load the one that is installed now."
        )


def snapshot():
    """{name: version} of every installed distribution."""
    return {found.name: found.version for found in distributions()}


def install(requirements):
    """pip install, with KEEP held at the installed versions. Raises NotReady if pip fails."""
    kept = [f"{name}=={installed(name)}" for name in KEEP if installed(name)]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "keep.txt"
        constraints.write_text("\n".join(kept), encoding="utf-8")
        pip("install", "--constraint", str(constraints), *requirements)
    importlib.invalidate_caches()  # this kernel has listed the folders that pip wrote to


def pip(*arguments):
    """Run this interpreter's pip, unseen. Raises NotReady with its last lines if it fails."""
    command = [sys.executable, "-m", "pip", "--no-input", *arguments]
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if run.returncode:
        last = "\n".join(run.stdout.strip().splitlines()[-LAST_LINES:])
        raise NotReady(
            f"pip {arguments[0]} failed, see its last lines below. Run this cell again; on Kaggle, "
            f"switch the internet on first (Settings > Turn on internet).\n\n{last}"
        )


def is_stale(name):
    """Whether this kernel has imported another version of a distribution than is installed now.

    Modules without `__version__`, or named otherwise than their distribution, count as fresh.
    """
    module = sys.modules.get(name.replace("-", "_"))
    return getattr(module, "__version__", installed(name)) != installed(name)


def remove_old_torchao():
    """Uninstall a torchao that would make PEFT refuse to add adapters; the course needs none."""
    found = installed("torchao")
    if found and tuple(map(int, found.split(".")[:2])) < OLDEST_TORCHAO:
        pip("uninstall", "--yes", "torchao")
        importlib.invalidate_caches()
        print(f"Removed torchao {found}: PEFT refuses to work beside one so old.")


def tell_without_gpu(host):
    """Say how to get a GPU if this runtime has none that a GPU track can use."""
    from helpers.machine import this_machine  # these import torch
    from helpers.tracks import choose

    if choose("auto").name == "pocket":
        found = this_machine()
        lack = f"{found} is too old or too small" if found.kind == "cuda" else "No GPU here"
        print(f'{lack}, so TRACK = "auto" takes the pocket track. To get one: {host.gpu}.')
