"""The setup cell, run from a lone notebook on a stand-in for Colab: what it fetches and installs.

The stand-in is a virtual environment of its own, with real pip, git and IPython, and tiny packages
under the names and versions that Colab ships. github.com is a folder, the package index another.
None of this has been Colab itself.
"""

import base64
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement

import helpers.machine
import helpers.tracks
from helpers import runtime
from helpers.machine import Machine
from tools import build_notebooks
from tools.build_notebooks import (
    BADGE_ADDRESS,
    ROOT,
    build,
    course_settings,
    find_lessons,
    rewrite_badges,
    with_badges,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Colab and Kaggle are Linux")

PACKAGES = runtime.course_packages()
# What Colab's runtime 2026.07 ships, by its published list; neither trl nor bitsandbytes.
SHIPPED = {
    "torch": "2.11.0+cu128",
    "torchvision": "0.26.0+cu128",
    "torchao": "0.10.0",
    "numpy": "2.0.2",
    "accelerate": "1.14.0",
    "datasets": "4.0.0",
    "hf-xet": "1.5.1",
    "huggingface_hub": "1.23.0",
    "peft": "0.19.1",
    "pyarrow": "18.1.0",
    "tokenizers": "0.22.2",
    "transformers": "5.13.1",
}
REQUIRES = {
    "trl": ("transformers>=5", "accelerate", "torch"),
    "datasets": ("numpy>=1.17", "pyarrow>=24"),
}
TORCH = """
import os
from types import SimpleNamespace as Namespace

t4 = Namespace(name="Tesla T4", major=7, minor=5, total_memory=15 * 2**30)
gpus = [t4] * int(os.environ.get("STAND_IN_GPUS", "0"))
cuda = Namespace(is_available=lambda: bool(gpus), get_device_properties=gpus.__getitem__)
backends = Namespace(mps=Namespace(is_available=lambda: False))
"""
COLAB = "def load_ipython_extension(shell):\n    pass\n"
LESSON = """\
# %% [markdown]
# # A lesson

# %% tags=["parameters"]
TRACK = "auto"
QUICK = False
SEED = 0

# %%
from pathlib import Path
from helpers.tracks import choose

print(choose(TRACK).name, (Path.cwd() / "helpers").is_dir())
"""


# The stand-in runtime


def package_files(name, version, requires=()):
    """{path: text} of a tiny distribution with one module, as it lies in site-packages."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    fields = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n{TORCH if name == 'torch' else ''}",
        f"{info}/METADATA": "\n".join(["Metadata-Version: 2.1", *fields, ""]),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/INSTALLER": "pip\n",
    }
    return {**files, f"{info}/RECORD": "".join(map(record, files.items())) + f"{info}/RECORD,,\n"}


def record(item):
    path, text = item
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(text.encode())}\n"


def write_wheel(folder, name, version, requires=()):
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in package_files(name, version, requires).items():
            wheel.writestr(file, text)


def with_requirements(names):
    """Names of installed distributions and of all that they need on this machine."""
    todo, seen = [*names], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            asked = [Requirement(text) for text in distribution(name).requires or ()]
            todo += [r.name for r in asked if not r.marker or r.marker.evaluate({"extra": ""})]
    return seen


def link_distributions(names, site):
    """Make installed distributions importable, and visible to pip, in another site-packages."""
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))


class Runtime:
    """A stand-in for a Colab or Kaggle machine, with its own interpreter and an empty folder."""

    def __init__(self, folder):
        self.folder = folder
        self.content, self.index, self.log = (folder / n for n in ("content", "index", "pip.log"))
        self.remotes = folder / "remotes"
        for path in (self.content, self.index, folder / "tmp"):
            path.mkdir()
        venv.create(folder / "env", symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        (self.site,) = (folder / "env" / "lib").glob("python*/site-packages")
        link_distributions(with_requirements(["ipykernel", "pip", "psutil"]), self.site)
        (self.site / "google" / "colab").mkdir(parents=True)
        (self.site / "google" / "colab" / "__init__.py").write_text(COLAB)
        for name, version in SHIPPED.items():
            self.ship(name, version)
        for name, version in PACKAGES.items():
            write_wheel(self.index, name, version, REQUIRES.get(name, ()))
        for name in runtime.KEEP:  # tempting
            write_wheel(self.index, name, "99.0")

    def ship(self, name, version):
        """Have a tiny package here already, in place of another version of it."""
        for old in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        for path, text in package_files(name, version).items():
            (self.site / path).parent.mkdir(exist_ok=True)
            (self.site / path).write_text(text)

    def environment(self, **more):
        remote = f"url.file://{self.remotes}/.insteadOf"
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index),
            "PIP_LOG": str(self.log),
            "PYTHONPATH": "",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": remote,
            "GIT_CONFIG_VALUE_0": "https://github.com/",
            "GIT_TRACE": str(self.folder / "git.log"),
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_PATH": str(self.folder / "jupyter"),
            **more,
        }

    def publish(self):
        """Put what the setup cell needs of the working tree on the stand-in for GitHub."""
        settings = course_settings()
        remote = self.remotes / settings["repository"]
        shutil.copytree(ROOT / "helpers", remote / "helpers", ignore=lambda *_: {"__pycache__"})
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, remote)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(remote)]
        for command in (["init", "-qb", settings["branch"]], ["add", "."], ["commit", "-qm", "."]):
            subprocess.run([*git, *command], check=True)

    def open_notebook(self, monkeypatch, options=("--ext=google.colab",), **environment):
        """Run the lone notebook, its setup cell twice: what setup, lesson and setup printed."""
        spec = self.folder / "jupyter" / "kernels" / "stand-in"
        spec.mkdir(parents=True, exist_ok=True)
        launch = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": [*launch, *options], "display_name": "stand-in", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(kernel))
        lesson, lone = self.folder / "01_lone.py", self.content / "01_lone.ipynb"
        lesson.write_text(LESSON)
        notebook = build(lesson)
        notebook.cells.append(new_code_cell(notebook.cells[2].source))
        nbformat.write(notebook, lone)
        for key, value in self.environment(**environment).items():
            monkeypatch.setenv(key, value)
        done = papermill.execute_notebook(
            str(lone),
            None,
            kernel_name="stand-in",
            cwd=self.content,
            progress_bar=False,
            execution_timeout=60,
        )
        shown = ["".join(o.text for o in c.outputs) for c in done.cells if c.cell_type == "code"]
        return shown[0], shown[-2], shown[-1]

    def make_ready(self, before=""):
        """What the setup cell calls, without a notebook: return code, printed text and error."""
        code = (
            f"import google.colab\n{before}\nfrom helpers.runtime import make_ready\nmake_ready()"
        )
        environment = self.environment(PYTHONPATH=str(ROOT))
        return subprocess.run(
            [self.python, "-c", code], env=environment, capture_output=True, text=True
        )

    def versions(self):
        """{name: version} of the tiny packages that are installed now."""
        names = {name.replace("-", "_"): name for name in {**SHIPPED, **PACKAGES}}
        found = [path.stem.split("-", 1) for path in self.site.glob("*.dist-info")]
        return {names[name]: version for name, version in found if name in names}


@pytest.fixture
def machine(tmp_path):
    return Runtime(tmp_path)


def kept():
    return {name: SHIPPED[name] for name in runtime.KEEP if name in SHIPPED}


# A lone notebook


def test_a_lone_notebook_on_colab_gets_the_course_once(machine, monkeypatch):
    machine.publish()
    setup, lesson, again = machine.open_notebook(monkeypatch)
    assert lesson == "pocket True\n"
    assert machine.versions() == {**PACKAGES, **kept()}  # and torchao, too old for PEFT, is gone
    assert "trl==" in setup and "Runtime > Change runtime type > T4 GPU" in setup
    assert again == setup.splitlines(keepends=True)[-1]  # no GPU; nothing is fetched or installed
    assert [path.name for path in machine.content.iterdir() if path.is_dir()] == [
        course_settings()["folder"]
    ]

    logs = [machine.log, machine.folder / "git.log"]
    sizes = [log.stat().st_size for log in logs]
    shown = machine.open_notebook(monkeypatch, STAND_IN_GPUS="1")
    assert shown == ("", "t4 True\n", "")
    assert [log.stat().st_size for log in logs] == sizes, "pip or git ran again"


def test_kaggle_is_told_in_its_own_words(machine, monkeypatch):
    machine.publish()
    for name, version in PACKAGES.items():
        machine.ship(name, version)
    setup, lesson, _ = machine.open_notebook(monkeypatch, KAGGLE_KERNEL_RUN_TYPE="Interactive")
    assert lesson == "pocket True\n"
    assert "Settings > Accelerator" in setup and "Runtime >" not in setup


@pytest.mark.parametrize("options", [(), ("--ext=google.colab",)], ids=["laptop", "colab"])
def test_without_the_course_it_says_how_to_get_it(machine, monkeypatch, options):
    if not options:
        machine.publish()  # it could be fetched, but nobody fetches onto a laptop unasked
    with pytest.raises(papermill.PapermillExecutionError, match="not here. Fetch it: git clone"):
        machine.open_notebook(monkeypatch, options)
    assert not [path for path in machine.content.iterdir() if path.is_dir()]


def test_a_clone_that_was_killed_is_named(machine, monkeypatch):
    half = machine.content / course_settings()["folder"]
    (half / ".git").mkdir(parents=True)
    (half / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    with pytest.raises(papermill.PapermillExecutionError, match=f"Remove a broken .*{half.name}"):
        machine.open_notebook(monkeypatch, ("--ext=google.colab",))


def test_a_repository_that_asks_for_a_password_does_not_hang(machine, monkeypatch):
    seen = []

    class Private(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Private) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        key = f"url.http://127.0.0.1:{server.server_port}/.insteadOf"
        with pytest.raises(papermill.PapermillExecutionError, match="not here. Fetch it"):
            machine.open_notebook(monkeypatch, GIT_CONFIG_KEY_0=key, no_proxy="127.0.0.1")
        server.shutdown()
    assert seen


def test_on_a_laptop_it_only_finds_the_root(machine, monkeypatch):
    machine.publish()
    course = machine.remotes / course_settings()["repository"]
    machine.content = course / "notebooks"
    machine.content.mkdir()
    assert machine.open_notebook(monkeypatch, ()) == ("", "pocket True\n", "")
    assert machine.versions() == SHIPPED and not machine.log.exists()


# What pip is asked, and what happens if it cannot


def test_only_other_versions_are_asked_of_pip(machine):
    for name in {*PACKAGES} - {"trl", "peft"}:
        machine.ship(name, PACKAGES[name])
    asked = f"Installing peft=={PACKAGES['peft']}, trl=={PACKAGES['trl']}. "
    assert asked in machine.make_ready().stdout
    assert machine.versions() == {**PACKAGES, **kept()}


def test_pip_is_told_to_keep_torch_torchvision_and_numpy(monkeypatch):
    told, asked = [], []

    def pip(install, constraint, path, *requirements):
        told.extend(Path(path).read_text(encoding="utf-8").split())
        asked.extend(requirements)

    versions = {"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128", "numpy": "2.0.2"}
    monkeypatch.setattr(runtime, "installed", versions.get)
    monkeypatch.setattr(runtime, "pip", pip)
    runtime.install(["trl==1.0"])
    assert asked == ["trl==1.0"]
    assert sorted(told) == sorted(f"{name}=={version}" for name, version in versions.items())


def test_pip_failing_is_a_sentence_with_its_last_lines(machine):
    next(machine.index.glob("trl-*")).unlink()
    run = machine.make_ready()
    assert run.returncode and "NotReady: pip install failed" in run.stderr
    assert f"No matching distribution found for trl=={PACKAGES['trl']}" in run.stderr
    assert machine.versions() == SHIPPED


def test_a_package_that_wants_another_torch_is_refused(machine):
    write_wheel(machine.index, "trl", PACKAGES["trl"], ["torch>=99"])
    run = machine.make_ready()
    assert run.returncode and f"constraint) torch=={SHIPPED['torch']}" in run.stderr
    assert machine.versions() == SHIPPED


@pytest.mark.parametrize(
    ("machine_here", "said"),
    [
        (Machine("cpu", "CPU", None, 12.7), "No GPU here, so"),
        (Machine("cuda", "Tesla P100", (6, 0), 16.0), "Tesla P100, .* is too old or too small, so"),
        (Machine("cuda", "Tesla T4", (7, 5), 14.6), "^$"),
    ],
    ids=["none", "P100", "T4"],
)
def test_a_gpu_that_no_track_can_use_is_named(monkeypatch, capsys, machine_here, said):
    monkeypatch.setattr(helpers.machine, "this_machine", lambda: machine_here)
    monkeypatch.setattr(helpers.tracks, "this_machine", lambda: machine_here)
    runtime.tell_without_gpu(runtime.KAGGLE)
    assert re.search(said, capsys.readouterr().out)


def test_one_gpu_is_used_unless_somebody_chose(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runtime, "this_host", lambda: runtime.KAGGLE)
    for name in ("install_missing", "remove_old_torchao", "tell_without_gpu"):
        monkeypatch.setattr(runtime, name, lambda *_: None)
    runtime.make_ready()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    runtime.make_ready()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_what_the_kernel_has_imported_needs_a_restart(machine):
    run = machine.make_ready("import transformers, numpy")
    assert run.returncode and "Restart this kernel (Runtime > Restart session)" in run.stderr
    assert "another version of transformers and" in run.stderr
    assert machine.make_ready("import transformers, numpy").returncode == 0


def test_a_second_run_without_the_restart_says_so_again(monkeypatch):
    old = ModuleType("trl")
    old.__version__ = "0.1"
    monkeypatch.setitem(sys.modules, "trl", old)
    with pytest.raises(runtime.NotReady, match="Restart this kernel.* version of trl and"):
        runtime.install_missing({"trl": runtime.installed("trl")}, runtime.COLAB)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_fresh_import_is_not_stale(name):
    importlib.import_module(name.replace("-", "_"))
    assert not runtime.is_stale(name)


def test_torch_and_numpy_are_not_on_the_list():
    assert not {*runtime.KEEP} & {*PACKAGES}


def test_the_oldest_torchao_is_the_one_that_peft_accepts(monkeypatch):
    from peft import import_utils

    accepts = import_utils.is_torchao_available.__wrapped__
    monkeypatch.setattr(import_utils.importlib.util, "find_spec", lambda name: name)
    major, minor = runtime.OLDEST_TORCHAO
    monkeypatch.setattr(import_utils.importlib_metadata, "version", lambda _: f"{major}.{minor}.0")
    assert accepts()
    monkeypatch.setattr(
        import_utils.importlib_metadata, "version", lambda _: f"{major}.{minor - 1}.9"
    )
    with pytest.raises(ImportError, match="torchao"):
        accepts()


# One line for a fork


def test_badges_of_the_readme_lead_to_the_repository_and_release():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_badges(text) == text, "run python -m tools.build_notebooks --no-execute"
    assert {*BADGE_ADDRESS.findall(text)} == {lesson.stem for lesson in find_lessons()}


def test_a_fork_changes_one_line(tmp_path, monkeypatch):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    old = course_settings()
    fork = project.replace(f'repository = "{old["repository"]}"', 'repository = "ada/my-fork"')
    (tmp_path / "pyproject.toml").write_text(fork, encoding="utf-8")
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    rewrite_badges(page)
    assert "/ada/my-fork/blob/" in page.read_text(encoding="utf-8")
    lesson = tmp_path / "01_lone.py"
    lesson.write_text(LESSON)
    _, badge, setup, *_ = build(lesson).cells
    for text in (badge.source, setup.source, page.read_text(encoding="utf-8")):
        assert old["repository"] not in text
    assert "https://github.com/ada/my-fork" in setup.source


def test_the_setup_cell_is_short(tmp_path):
    lesson = tmp_path / "01_lone.py"
    lesson.write_text(LESSON)
    setup = build(lesson).cells[2].source
    assert len(setup.splitlines()) <= 20 and max(map(len, setup.splitlines())) <= 100
