"""The setup cell, run from a lone notebook on a stand-in for Colab: what it fetches and installs.

The stand-in is a virtual environment of its own, with real pip, git and IPython, and tiny packages
under the names and versions of Colab's published list. github.com is a folder, the package index
another. None of this has been Colab itself.
"""

import base64
import hashlib
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
from types import ModuleType, SimpleNamespace
from urllib.parse import quote

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement

import helpers.setup.machine
import helpers.setup.tracks
from helpers.setup import colab as runtime
from helpers.setup.machine import Machine
from tests.colab_versions import colab_versions
from tools import build_notebooks
from tools.build_notebooks import (
    BADGE_ADDRESS,
    MODULES,
    ROOT,
    build,
    course_settings,
    find_lessons,
    packages_of,
    rewrite_badges,
    with_badges,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Colab and Kaggle are Linux")

SETTINGS = course_settings()
RELEASE = SETTINGS["release"]
PINS, SHIPPED = runtime.pins(), colab_versions()
REAL = ("ipykernel", "pip", "psutil")  # and what they need
REQUIRES = {
    "datasets": ("pyarrow>=24", "huggingface_hub>=2", "numpy"),
    "peft": ("torch", "accelerate"),
    "transformers": ("tokenizers>=0.23", "huggingface_hub>=2"),
    "trl": ("transformers>=5", "accelerate", "datasets>=5", "torch"),
}
MOVED = {name: PINS[name] for name in ("pyarrow", "huggingface_hub", "tokenizers")}
EXACT = {name: PINS[name] for name in runtime.EXACT}
AFTER = {**SHIPPED, **EXACT, **MOVED, "bitsandbytes": PINS["bitsandbytes"]}  # and no torchao
TORCH = """
import os
from types import SimpleNamespace as Namespace

t4 = Namespace(name="Tesla T4", major=7, minor=5, total_memory=15 * 2**30)
gpus = [t4] * int(os.environ.get("STAND_IN_GPUS", "0"))
cuda = Namespace(is_available=lambda: bool(gpus), get_device_properties=gpus.__getitem__)
backends = Namespace(mps=Namespace(is_available=lambda: False))
"""
COLAB = """
import anywidget, numpy, packaging, PIL, psygnal  # as the real one does, with much else

def load_ipython_extension(shell):
    pass
"""
LESSON = """\
# %% [markdown]
# # A lesson

# %% tags=["parameters"]
TRACK = "auto"
QUICK = False
SEED = 0

# %%
from pathlib import Path
import anywidget, bitsandbytes, datasets, peft, transformers, trl
from helpers.setup.tracks import choose

print(choose(TRACK).name, (Path.cwd() / "helpers").is_dir())
"""

POCKET = """
import sys
from dataclasses import replace
from helpers.setup.colab import make_ready
make_ready("trl")
from helpers.dpo.checkpoints import train, trained
from helpers.dpo.trainer import dpo_trainer
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.setup.tracks import choose
from helpers.vlm.load import load_policy

track = replace(choose("pocket"), batch_size=4)
pairs = to_conversational(load_raw(track, "train", 8))
for run in (train, trained):
    trainer = dpo_trainer(*load_policy(track), pairs, track, sys.argv[1], save_steps=1)
    run(trainer)
print("trained")
"""


# The stand-in runtime


def package_files(name, version, requires=()):
    """{path: text} of a tiny distribution with one module, as it lies in site-packages."""
    module = MODULES.get(name, name.replace("-", "_"))
    info = f"{name.replace('-', '_')}-{version}.dist-info"
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
        self.remotes, self.tools = folder / "remotes", folder / "bin"
        for path in (self.content, self.index, self.tools):
            path.mkdir()
        venv.create(folder / "env", symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        (self.site,) = (folder / "env" / "lib").glob("python*/site-packages")
        real = with_requirements(REAL)
        link_distributions(real, self.site)
        (self.site / "google" / "colab").mkdir(parents=True)
        (self.site / "google" / "colab" / "__init__.py").write_text(COLAB)
        self.tiny = {re.sub("[-_.]+", "_", name): name for name in SHIPPED | PINS}
        for name in real:
            self.tiny.pop(re.sub("[-_.]+", "_", name), None)
        for name in {*self.tiny.values()} & {*SHIPPED}:
            self.ship(name, SHIPPED[name])
        for name in {*EXACT, *MOVED, "accelerate", "anywidget", "bitsandbytes"}:
            self.publish_wheel(name, PINS[name], REQUIRES.get(name, ()))
        for name in (*runtime.KEEP, *MOVED, "anywidget", "bitsandbytes"):  # tempting
            self.publish_wheel(name, "2099.0")

    def ship(self, name, version):
        """Have a tiny package here already, in place of another version of it."""
        for old in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            shutil.rmtree(old)
        for path, text in package_files(name, version).items():
            (self.site / path).parent.mkdir(exist_ok=True)
            (self.site / path).write_text(text)

    def publish_wheel(self, name, version, requires=()):
        """Put a tiny package on the stand-in for the package index."""
        path = self.index / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in package_files(name, version, requires).items():
                wheel.writestr(file, text)

    def environment(self, **more):
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index),
            "PIP_LOG": str(self.log),
            "PYTHONPATH": "",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{self.remotes}/.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/",
            "GIT_TRACE": str(self.folder / "git.log"),
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_PATH": str(self.folder / "jupyter"),
            "no_proxy": "127.0.0.1",
            **more,
        }

    def publish(self, repository=SETTINGS["repository"], ref=RELEASE):
        """Put what the setup cell needs of the working tree on the stand-in for GitHub."""
        remote = self.remotes / repository
        shutil.copytree(ROOT / "helpers", remote / "helpers", ignore=lambda *_: {"__pycache__"})
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, remote)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(remote)]
        for command in (
            ["init", "-qb", "main"],
            ["add", "."],
            ["commit", "-qm", "."],
            ["tag", ref],
        ):
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
        (setup,) = [cell.source for cell in notebook.cells if "setup" in build_notebooks.tags(cell)]
        notebook.cells.append(new_code_cell(setup))
        nbformat.write(notebook, lone)
        for key, value in self.environment(**environment).items():
            monkeypatch.setenv(key, value)
        done = papermill.execute_notebook(
            str(lone),
            str(self.folder / "done.ipynb"),
            kernel_name="stand-in",
            cwd=self.content,
            progress_bar=False,
            execution_timeout=60,
        )
        shown = ["".join(o.text for o in c.outputs) for c in done.cells if c.cell_type == "code"]
        return shown[0], shown[-2], shown[-1]

    def refused(self, monkeypatch, *options, **environment):
        """The sentence with which the setup cell stops papermill, shown without a traceback."""
        with pytest.raises(papermill.PapermillExecutionError):
            self.open_notebook(monkeypatch, *options, **environment)
        cells = nbformat.read(self.folder / "done.ipynb", as_version=4).cells
        (error,) = [o for c in cells for o in c.get("outputs", ()) if o.output_type == "error"]
        assert error.traceback == [error.evalue] and "\n" not in error.evalue.strip()
        return error.evalue

    def make_ready(self, before="", **environment):
        """What the setup cell calls, without a notebook: return code, printed text and error."""
        asked = ", ".join(map(repr, ("anywidget", "bitsandbytes", *EXACT)))
        code = f"import google.colab\n{before}\nfrom helpers.setup import colab as runtime\n"
        return subprocess.run(
            [self.python, "-c", f"{code}runtime.make_ready({asked})"],
            env=self.environment(PYTHONPATH=str(ROOT), **environment),
            capture_output=True,
            text=True,
        )

    def versions(self):
        """{name: version} of the tiny packages that are installed now."""
        found = [path.stem.split("-", 1) for path in self.site.glob("*.dist-info")]
        return {self.tiny[name]: version for name, version in found if name in self.tiny}

    def left(self, versions):
        """Those of {name: version} that are tiny packages, without torchao, too old for PEFT."""
        tiny = {*self.tiny.values()} - {"torchao"}
        return {name: version for name, version in versions.items() if name in tiny}


@pytest.fixture
def machine(tmp_path):
    return Runtime(tmp_path)


@pytest.fixture
def serve():
    """Answer GET requests on loopback with a status, headers and a body; gives the port."""
    servers = []

    def start(status, headers=(), body=b"", seen=None):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                seen is None or seen.append(self.path)
                self.send_response(status)
                for header in headers:
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return str(servers[-1].server_port)

    yield start
    for server in servers:
        server.shutdown()


# A lone notebook


def test_a_lone_notebook_on_colab_gets_the_course_once(machine, monkeypatch):
    machine.publish()
    setup, lesson, again = machine.open_notebook(monkeypatch)
    assert lesson == "pocket True\n"
    assert machine.versions() == machine.left(AFTER)
    assert "anywidget" not in setup and "trl==" in setup and "> T4 GPU" in setup
    commit, no_gpu = setup.splitlines(keepends=True)[:1], setup.splitlines(keepends=True)[-1:]
    assert again == "".join(commit + no_gpu), "something was fetched or installed again"
    assert SETTINGS["repository"] in commit[0]
    assert [path.name for path in machine.content.iterdir() if path.is_dir()] == [
        SETTINGS["folder"]
    ]

    installed, clones = machine.log.stat().st_size, (machine.folder / "git.log").read_text()
    _, lesson, _ = machine.open_notebook(monkeypatch, STAND_IN_GPUS="1")
    assert lesson == "t4 True\n"
    assert machine.log.stat().st_size == installed, "pip ran again"
    assert (machine.folder / "git.log").read_text().count("clone") == clones.count("clone")


def test_kaggle_is_told_in_its_own_words(machine, monkeypatch):
    machine.publish()
    for name, version in AFTER.items():
        if name in machine.tiny.values():
            machine.ship(name, version)
    setup, lesson, _ = machine.open_notebook(monkeypatch, KAGGLE_KERNEL_RUN_TYPE="Interactive")
    assert lesson == "pocket True\n"
    assert "Settings > Accelerator" in setup and "Runtime >" not in setup


def test_on_a_laptop_it_says_where_to_get_the_course(machine, monkeypatch):
    machine.publish()  # it could be fetched, but nobody fetches onto a laptop unasked
    said = machine.refused(monkeypatch, ())
    assert f"Get it: git clone https://github.com/{SETTINGS['repository']}" in said
    assert not [path for path in machine.content.iterdir() if path.is_dir()]


@pytest.mark.parametrize("folder", ["notebooks", "work", "work/mine"])
def test_on_a_laptop_it_only_finds_the_root(machine, monkeypatch, folder):
    machine.publish()
    machine.content = machine.remotes / SETTINGS["repository"] / folder
    machine.content.mkdir(parents=True)
    for name in EXACT | {"bitsandbytes": ""}:
        machine.ship(name, "1.0")
    assert machine.open_notebook(monkeypatch, ()) == ("", "pocket True\n", "")
    assert not machine.log.exists()


# What is fetched


def test_a_clone_that_fails_names_the_address_the_tag_and_what_to_set(machine, monkeypatch):
    said = machine.refused(monkeypatch)
    assert f"--branch {RELEASE} https://github.com/{SETTINGS['repository']}" in said
    assert "fatal: " in said and "`sources`" in said


def test_a_clone_that_was_killed_is_named(machine, monkeypatch):
    (machine.content / SETTINGS["folder"] / ".git").mkdir(parents=True)
    assert f"{SETTINGS['folder']}' already exists" in machine.refused(monkeypatch)


def test_a_repository_that_asks_for_a_password_does_not_hang(machine, monkeypatch, serve):
    seen = []
    port = serve(401, [("WWW-Authenticate", 'Basic realm="private"')], seen=seen)
    key = f"url.http://127.0.0.1:{port}/.insteadOf"
    assert "terminal prompts disabled" in machine.refused(monkeypatch, GIT_CONFIG_KEY_0=key)
    assert seen


@pytest.mark.parametrize(
    "address",
    ["https://github.com/ada/my-fork", "https://colab.research.google.com/github/ada/my-fork"],
)
def test_colab_tells_where_the_notebook_was_opened_from(machine, monkeypatch, serve, address):
    machine.publish()
    machine.publish("ada/my-fork", "a/draft")
    page = "fileId=" + quote(f"{address}/blob/a/draft/notebooks/01_lone.ipynb", safe="")
    port = serve(200, body=json.dumps([{"path": page}]).encode())
    colab = {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": port}
    assert "/ada/my-fork, commit" in machine.open_notebook(monkeypatch, **colab)[0]
    shutil.rmtree(machine.content / SETTINGS["folder"])
    shutil.rmtree(machine.remotes / "ada")  # or it is private: then the release
    assert SETTINGS["repository"] in machine.open_notebook(monkeypatch, **colab)[0]


@pytest.mark.parametrize("body", [b"", b"[]", b'[{"path": "fileId=1aBcD"}]', b'{"a": 1}'])
def test_where_colab_does_not_tell_the_release_is_fetched(machine, monkeypatch, serve, body):
    machine.publish()
    colab = {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": serve(200, body=body)}
    assert SETTINGS["repository"] in machine.open_notebook(monkeypatch, **colab)[0]


def test_another_release_that_is_here_is_named(machine, monkeypatch, capsys):
    machine.publish()
    root = machine.content / SETTINGS["folder"]
    shutil.copytree(machine.remotes / SETTINGS["repository"], root)
    project = (root / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text(project.replace(f'"{RELEASE[1:]}"', '"0.0.1"'))
    said = machine.refused(monkeypatch)
    assert f"of release {RELEASE}" in said and "is v0.0.1" in said and f'rm -rf "{root}"' in said
    runtime.require_release("v0.0.1", None)  # a learner's own copy may well be older
    assert "take a new copy" in capsys.readouterr().out


# What is installed, and what happens if it cannot be


def test_only_what_lacks_is_asked_for(machine):
    for name in {*EXACT} - {"trl", "peft"}:
        machine.ship(name, EXACT[name])
    asked = f"bitsandbytes=={AFTER['bitsandbytes']}, peft=={EXACT['peft']}, trl=={EXACT['trl']}. "
    assert f"Installing {asked}" in machine.make_ready().stdout
    assert machine.versions() == machine.left({**AFTER, **{n: SHIPPED[n] for n in MOVED}})


def test_what_is_newer_here_than_tested_stays(machine):
    machine.ship("pyarrow", "2098.0")
    assert machine.make_ready().returncode == 0
    assert machine.versions()["pyarrow"] == "2098.0"


@pytest.mark.parametrize("works", [True, False])
def test_uv_is_used_where_it_is_and_pip_where_uv_fails(machine, works):
    uv = machine.tools / "uv"
    command = 'shift 3; python=$1; shift; exec "$python" -m pip install "$@"' if works else "exit 9"
    uv.write_text(f'#!/bin/sh\necho "$@" >> {machine.folder}/uv.log\n{command}\n')
    uv.chmod(0o755)
    assert machine.make_ready().returncode == 0
    newest = {} if works else dict.fromkeys(MOVED, "2099.0")  # the second try binds torch alone
    assert machine.versions() == machine.left(AFTER | newest)
    (asked,) = (machine.folder / "uv.log").read_text().splitlines()
    assert asked.startswith(f"pip install --python {machine.python} --constraint ")


def test_installing_that_fails_is_a_sentence_with_the_last_lines(machine):
    next(machine.index.glob("trl-*")).unlink()
    run = machine.make_ready()
    assert run.returncode and "NotReady: The packages could not be installed" in run.stderr
    assert f"No matching distribution found for trl=={EXACT['trl']}" in run.stderr
    assert machine.versions() == machine.left(SHIPPED) | {"torchao": SHIPPED["torchao"]}


def test_a_package_that_wants_another_torch_is_refused(machine):
    machine.publish_wheel("trl", EXACT["trl"], ["torch>=99"])
    run = machine.make_ready()
    assert run.returncode and f"constraint) torch=={SHIPPED['torch']}" in run.stderr


def test_a_restart_is_asked_for_only_where_nothing_else_helps(machine, monkeypatch):
    machine.publish()
    machine.publish_wheel("trl", EXACT["trl"], ["anywidget>=0.10"])  # which google.colab imported
    said = machine.refused(monkeypatch)
    assert said.startswith("Restart this kernel (Runtime > Restart session)")
    assert "another version of anywidget and" in said
    assert machine.open_notebook(monkeypatch)[1] == "pocket True\n"  # the kernel after it


def test_an_older_version_is_taken_where_the_tested_one_would_need_a_restart(machine):
    machine.publish_wheel("pyarrow", PINS["pyarrow"], ["anywidget>=0.10"])
    machine.publish_wheel("pyarrow", "25.0")
    assert machine.make_ready().returncode == 0
    assert machine.versions() == machine.left(AFTER | {"pyarrow": "25.0"})


def test_a_second_run_without_the_restart_says_so_again(monkeypatch):
    old = ModuleType("trl")
    old.__version__ = "0.1"
    monkeypatch.setitem(sys.modules, "trl", old)
    monkeypatch.setattr(runtime, "pins", lambda: {"trl": runtime.installed("trl")})
    with pytest.raises(runtime.NotReady, match="Restart this kernel.* version of trl and"):
        runtime.install_missing(("trl",), runtime.COLAB)


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
    monkeypatch.setattr(helpers.setup.machine, "this_machine", lambda: machine_here)
    monkeypatch.setattr(helpers.setup.tracks, "this_machine", lambda: machine_here)
    runtime.tell_without_gpu(runtime.KAGGLE)
    assert re.search(said, capsys.readouterr().out)


def test_one_gpu_is_used_unless_somebody_chose(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runtime.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    runtime.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


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


# The learner's kernel


@pytest.mark.parametrize(
    ("driver", "chosen", "threads"),
    [(None, None, 1), (None, "3", None), ("nvidia-smi", None, None)],
)
def test_one_thread_without_a_gpu_unless_somebody_chose(monkeypatch, driver, chosen, threads):
    told = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=told.append))
    monkeypatch.setattr(runtime.shutil, "which", lambda name: driver)
    for name, value in (("OMP_NUM_THREADS", chosen), ("HF_HUB_DISABLE_TELEMETRY", None)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    runtime.set_environment()
    assert told == ([threads] if threads else [])
    assert os.environ.get("OMP_NUM_THREADS") == (chosen or (threads and "1"))
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_nothing_on_the_pocket_track_asks_the_hub(running_hub, tmp_path):
    """From a kernel that the setup cell made ready: train, save, load."""
    running_hub.clear()
    unset = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_TOKEN")
    environment = os.environ | running_hub.environment()
    run = subprocess.run(
        [sys.executable, "-c", POCKET, str(tmp_path)],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if name not in unset},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "trained" in run.stdout, run.stderr
    assert running_hub.requests == []


# What the cell is built with


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("import PIL.Image", {"pillow"}),
        ("def later():\n    import trl.trainer as t", {"trl"}),
        ("from transformers import BitsAndBytesConfig", {"bitsandbytes", "transformers"}),
        ("from helpers import preflight", {*runtime.EXACT, "accelerate", "bitsandbytes"}),
        ("from helpers.feedback.widget import Widget", {"anywidget"}),
        ("import torch, numpy, json, huggingface_hub", set()),
    ],
)
def test_a_lesson_asks_for_what_it_imports(tmp_path, line, asked):
    lesson = tmp_path / "01_lone.py"
    lesson.write_text(line)
    found = {*packages_of(lesson)}
    assert asked <= found and not {*runtime.KEEP} & found
    assert asked == found or "helpers" in line


def test_each_lesson_asks_for_no_less_and_anywidget_only_where_it_is_shown():
    asked = {lesson.stem[:2]: {*packages_of(lesson)} for lesson in find_lessons()}
    assert [name for name, packages in asked.items() if "anywidget" in packages] == ["07"]
    for lesson in find_lessons():
        named = re.findall(r"^\s*(?:import|from) (\w+)", lesson.read_text(), flags=re.MULTILINE)
        modules = {MODULES.get(name, name): name for name in PINS if name not in runtime.KEEP}
        requirements = {*(ROOT / "requirements.txt").read_text().split()}
        assert {modules.get(name) for name in named} & requirements <= asked[lesson.stem[:2]]
    assert asked["00"] >= {"trl", "matplotlib"}  # through helpers


def test_badges_of_the_readme_lead_to_this_release_of_one_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    repositories, lessons = map(set, zip(*BADGE_ADDRESS.findall(text), strict=True))
    assert lessons == {lesson.stem for lesson in find_lessons()}
    assert with_badges(text, *repositories) == text, "python -m tools.build_notebooks --no-execute"


@pytest.mark.parametrize(
    ("url", "repository"),
    [
        ("https://github.com/ada/my-fork.git", "ada/my-fork"),
        ("https://ada:secret@github.com/ada/my.fork/", "ada/my.fork"),
        ("git@github.com:ada/my-fork.git", "ada/my-fork"),
        ("ssh://git@github.com/ada/my-fork", "ada/my-fork"),
        ("https://example.org/ada/my-fork", "course/course"),
        ("https://github.com.example.org/ada/my-fork", "course/course"),
        (None, "course/course"),
    ],
)
def test_a_fork_changes_nothing(tmp_path, monkeypatch, url, repository):
    project = '[project]\nversion = "2.0"\n[tool.course]\nrepository = "course/course"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    (tmp_path / "requirements.txt").write_text("trl")
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    if url:
        for command in (["init", "-q"], ["remote", "add", "origin", url]):
            subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    rewrite_badges(page)
    assert f"/{repository}/blob/v2.0/notebooks/" in page.read_text(encoding="utf-8")
    lesson = tmp_path / "01_lone.py"
    lesson.write_text(LESSON)
    texts = [cell.source for cell in build(lesson).cells]
    assert sum(f"/{repository}/blob/v2.0/notebooks/01_lone" in text for text in texts) == 1
    assert sum(f'("{repository}", "v2.0")' in text for text in texts) == 1


def test_setup_cells_are_short():
    for lesson in find_lessons():
        lines = build_notebooks.setup_cell(lesson, SETTINGS).splitlines()
        assert len(lines) <= 25 and max(map(len, lines)) <= 100
