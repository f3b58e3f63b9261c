"""Make the kernel of a notebook ready; on Colab and Kaggle, install what the lesson lacks there.

    from helpers.setup.colab import make_ready     # the end of every notebook's first code cell,
    make_ready("datasets", "matplotlib")       # which has found the course or fetched it

A laptop has what `make` installed: there only the working folder and the environment are set. A
Colab or Kaggle runtime brings hundreds of packages, and this kernel has imported some before the
first cell. So as little as possible is installed there, never torch, torchvision or numpy, and what
is imported already stays as it is if it can: then no restart is needed.
Only the standard library is imported up here, so that all else can be replaced without a restart.
"""

import importlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from dataclasses import dataclass
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    version,
)
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Another version of these may have other settings or column rules; of all else, any version that
# they accept will do.
EXACT = ("datasets", "peft", "transformers", "trl")
# The runtime's own, whatever their version: built for its GPU, or imported before the first cell.
KEEP = ("torch", "torchaudio", "torchvision", "numpy")
# get_peft_model raises beside an older one, which Colab ships (peft.import_utils, peft 0.21.2).
OLDEST_TORCHAO = (0, 16)
LAST_LINES = 15


class NotReady(RuntimeError):
    """The runtime could not be made ready; the message says what to do. Shown without traceback."""

    def _render_traceback_(self):  # IPython asks for it
        return [str(self)]


@dataclass(frozen=True)
class Host:
    """Where a hosted runtime has what the learner must click."""

    name: str
    gpu: str
    restart: str


COLAB = Host("Colab", "Runtime > Change runtime type > T4 GPU", "Runtime > Restart session")
KAGGLE = Host("Kaggle", "Settings > Accelerator > GPU T4 x2", "Run > Restart")


def this_host() -> Host | None:
    """COLAB, KAGGLE, or None on a machine that its owner set up."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # first: its image is built on Colab's
        return KAGGLE
    return COLAB if "google.colab" in sys.modules else None  # imported before the first cell


def make_ready(*packages: str, release: str | None = None) -> None:
    """Everything between "the course is found" and the lesson's first line.

    `packages`: the distributions that the lesson imports. `release`: the tag that its notebook was
    built for. Prints only where there is something to tell. Raises NotReady if the course here is
    of another release, if nothing can be installed, or if the kernel must be restarted.
    """
    os.chdir(ROOT)  # lessons name files from the course's root
    host = this_host()
    require_release(release, host)
    set_environment()
    turn_down_noise()
    if host:
        tell_commit()
        use_one_gpu()
        install_missing(packages, host)
        remove_old_torchao()
        tell_without_gpu(host)


def course_release(root: Path = ROOT) -> str:
    """The release tag of the course in a folder, such as "v0.1.0"."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"v{project['version']}"


def require_release(release: str | None, host: Host | None) -> None:
    """Say so if a notebook is not of the release that the course here is; on a host, stop."""
    if release in (None, course_release()):
        return
    said = f"This notebook is of release {release}, but the course in {ROOT} is {course_release()}"
    if host:
        raise NotReady(
            f"{said}: keep what you need of {ROOT / 'runs'}, delete the folder with "
            f'!rm -rf "{ROOT}", and run this cell again to fetch {release}.'
        )
    print(f"{said}: take a new copy of this notebook from its folder notebooks/.")


def tell_commit() -> None:
    """Say which commit of which repository is here, if git knows."""
    if (ROOT / ".git").exists():
        git = ["git", "-C", str(ROOT)]
        commands = (
            [*git, "remote", "get-url", "origin"],
            [*git, "log", "-1", "--format=%h of %cs"],
        )
        url, commit = (subprocess.run(c, capture_output=True, text=True).stdout for c in commands)
        print(f"The course is {url.strip()}, commit {commit.strip()}.")


def set_environment(gpu: bool | None = None) -> None:
    """No telemetry, and one thread without a CUDA GPU, unless the environment says otherwise.

    TRL reports every trainer that is made to the Hub, also from the pocket track: nothing else
    there asks the network. One thread is as fast as two for so small a model, while two that share
    a busy core wait for each other, up to ten times slower. `gpu`: None looks for NVIDIA's driver.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    gpu = shutil.which("nvidia-smi") is not None if gpu is None else gpu
    if gpu or "OMP_NUM_THREADS" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once, when it is imported
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def use_one_gpu() -> None:
    """Hide all GPUs but the first from torch: Kaggle gives two, and transformers' Trainer would
    copy the model to both and split every batch, which the course has not been tried with."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def turn_down_noise() -> None:
    """Silence what is known, harmless and not the learner's doing, in this kernel."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # plain progress bars will do
    warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing`")  # PEFT's old name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports optional kernels


def pins(root: Path = ROOT) -> dict[str, str]:
    """{name: version} of constraints.txt."""
    return dict(pin.split("==") for pin in (root / "constraints.txt").read_text().split())


def installed(name: str) -> str | None:
    """The version of a distribution, or None. It may name a build, as 2.11.0+cu128 does."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install_missing(packages: tuple[str, ...], host: Host) -> None:
    """Install those of EXACT that are here in another version, and the others that are not here.

    Raises NotReady if that fails, or if it replaced what this kernel has imported.
    """
    tested = pins()
    missing = [
        f"{name}=={tested[name]}"
        for name in packages
        if installed(name) != tested[name] and (name in EXACT or not installed(name))
    ]
    replaced = set()
    if missing:
        print(f"Installing {', '.join(missing)}. This takes up to a minute, once.", flush=True)
        start, before = time.monotonic(), imported()
        install(missing, before)
        replaced = {name for name, found in before.items() if installed(name) != found}
        print(f"Installed in {time.monotonic() - start:.0f} s.")
    if stale := sorted(replaced | {name for name in packages if is_stale(name)}):
        raise NotReady(
            f"Restart this kernel ({host.restart}), then run all cells again: it had imported "
            f"another version of {', '.join(stale)} and cannot load the one that is installed now."
        )


def imported() -> dict[str, str]:
    """{name: version} of the distributions that this kernel has imported a module of."""
    owners = packages_distributions()
    loaded = {name.partition(".")[0] for name in sys.modules}
    return {name: version(name) for module in loaded for name in owners.get(module, ())}


def install(requirements: list[str], imported: dict[str, str]) -> None:
    """Install, with KEEP and what is imported held at the installed versions.

    What must change with them changes to its tested version. uv, which Colab ships, takes a part of
    pip's time. If it fails, pip tries once more and holds KEEP alone. Raises NotReady if that
    fails, too.
    """
    kept = {name: f"=={installed(name)}" for name in KEEP if installed(name)}
    asked = {requirement.partition("==")[0] for requirement in requirements}
    held = {name: f"=={found}" for name, found in imported.items() if name not in asked}
    pip = [sys.executable, "-m", "pip", "--no-input", "install"]
    uv = shutil.which("uv")
    first = [uv, "pip", "install", "--python", sys.executable] if uv else pip
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        for command, bounds in ((first, at_most_tested() | held | kept), (pip, kept)):
            lines = [name + bound for name, bound in bounds.items()]
            constraints.write_text("\n".join(lines), encoding="utf-8")
            said = run([*command, "--constraint", str(constraints), *requirements])
            if said is None:
                return
    raise NotReady(
        "The packages could not be installed, see pip's last lines below. Run this cell again; on "
        f"Kaggle, switch the internet on first (Settings > Turn on internet).\n\n{said}"
    )


def at_most_tested() -> dict[str, str]:
    """{name: bound} that keeps what is installed, and where that will not do takes what is tested:
    the newest that is allowed. What is newer here already has no bound."""
    from packaging.version import Version

    tested = pins().items()
    return {
        name: f"<={pin}" for name, pin in tested if Version(installed(name) or pin) <= Version(pin)
    }


def run(command: list[str]) -> str | None:
    """Run an installer, unseen: None if all went well, else the last lines that it printed."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    importlib.invalidate_caches()  # this kernel has listed the folders that were written to
    return "\n".join(done.stdout.strip().splitlines()[-LAST_LINES:]) if done.returncode else None


def is_stale(name: str) -> bool:
    """Whether this kernel has imported another version of a distribution than is installed now.

    Modules without `__version__`, or named otherwise than their distribution, count as fresh.
    """
    module = sys.modules.get(name.replace("-", "_"))
    return getattr(module, "__version__", installed(name)) != installed(name)


def remove_old_torchao() -> None:
    """Uninstall a torchao that would make PEFT refuse to add adapters; the course needs none."""
    found = installed("torchao")
    if found and tuple(map(int, found.split(".")[:2])) < OLDEST_TORCHAO:
        if said := run([sys.executable, "-m", "pip", "uninstall", "--yes", "torchao"]):
            raise NotReady(f"torchao {found} must go and pip cannot remove it:\n\n{said}")
        print(f"Removed torchao {found}: PEFT refuses to work beside one so old.")


def tell_without_gpu(host: Host) -> None:
    """Say how to get a GPU if this runtime has none that a GPU track can use."""
    from helpers.setup.machine import this_machine  # these import torch
    from helpers.setup.tracks import choose

    if choose("auto").name == "pocket":
        found = this_machine()
        lack = f"{found} is too old or too small" if found.kind == "cuda" else "No GPU here"
        print(f'{lack}, so TRACK = "auto" takes the pocket track. To get one: {host.gpu}.')
