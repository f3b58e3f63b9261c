"""Each line of the preflight report can fail, says what to do, and gives nothing private away."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch

from helpers import preflight
from helpers.preflight import Check, attempt, paste_safe, render, run_checks
from helpers.setup.tracks import TRACKS
from helpers.vlm import pocket
from helpers.vlm.load import ModelError

Card = namedtuple("Card", "name major minor total_memory")
SOUND = "I see a red plate on the left."


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """A machine without a fault: nothing below loads a checkpoint or writes to the real runs/."""
    for path in preflight.BUNDLED:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        source = preflight.ROOT / "data/photos/probes.parquet"
        shutil.copy(source, tmp_path / path)
    shutil.copy(preflight.CONSTRAINTS, tmp_path)
    tested = dict(line.split("==") for line in preflight.CONSTRAINTS.read_text().split())
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    monkeypatch.setattr(preflight, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(importlib.metadata, "version", tested.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory_of(16))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage_of(50))
    monkeypatch.setattr(pocket, "load", lambda: (None, None))
    monkeypatch.setattr(pocket, "captions", lambda *_: [SOUND])
    return monkeypatch


def memory_of(gib):
    return namedtuple("Memory", "available total")(gib * 2**30, 16 * 2**30)


def usage_of(gib):
    return namedtuple("Usage", "free")(gib * 2**30)


def raising(error):
    def function(*_, **__):
        raise error

    return function


def failed(checks):
    return [check.name for check in checks if check.ok is False]


def with_gpu(monkeypatch, card):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)


def test_a_sound_machine_has_no_fail(sound):
    checks = run_checks("auto")
    text = render(checks)
    assert failed(checks) == [] and "[FAIL]" not in text
    assert f'[OK]   pocket model answers "{SOUND}"' in text
    assert (
        "[OK]   track pocket (any CPU, no network), chosen by what is here; float32 on cpu" in text
    )
    assert text.splitlines()[-1] == f"{sum(check.ok is True for check in checks)} OK, 0 FAIL"


def break_python(sound):
    sound.setattr(sys, "version_info", (3, 10, 9))


def break_a_version(sound):
    real = importlib.metadata.version
    sound.setattr(importlib.metadata, "version", lambda n: "0.9" if n == "trl" else real(n))


def break_a_package(sound):
    real = importlib.metadata.version
    missing = raising(importlib.metadata.PackageNotFoundError("peft"))
    sound.setattr(importlib.metadata, "version", lambda n: missing() if n == "peft" else real(n))


def break_a_file(sound):
    (preflight.ROOT / "data/photos/preferences.parquet").unlink()


def break_a_parquet(sound):
    (preflight.ROOT / "data/photos/probes.parquet").write_text("version https://git-lfs")


def empty_a_file(sound):
    (preflight.ROOT / "data/pocket/training_log.json").write_text("")


def put_a_file_for_runs(sound):
    preflight.RUNS.rmdir()
    preflight.RUNS.write_text("")


FAULTS = [
    (break_python, "Python", "3.1"),
    (break_a_version, "trl", "0.9; the course was tested with"),
    (break_a_package, "peft", "is not installed"),
    (lambda m: m.setattr(psutil, "virtual_memory", lambda: memory_of(1)), "memory", "1.0 GiB"),
    (lambda m: m.setattr(shutil, "disk_usage", lambda _: usage_of(0)), "disk", "0.0 GiB"),
    (put_a_file_for_runs, "disk", "runs/ cannot be written"),
    (lambda m: m.setattr(torch.cuda, "is_available", raising(RuntimeError("old driver"))), "GPU",
     "RuntimeError: old driver"),
    (break_a_file, "data/photos/preferences.parquet", "is missing"),
    (break_a_parquet, "data/photos/probes.parquet", "cannot be read"),
    (empty_a_file, "data/pocket/training_log.json", "0 kB"),
    (lambda m: m.setattr(pocket, "load", raising(ModelError("no checkpoint"))),
     "pocket model", "no checkpoint"),
    (lambda m: m.setattr(pocket, "captions", lambda *_: ["plate plate"]), "pocket model",
     '"plate plate"'),
    (lambda m: m.setattr(pocket, "captions", raising(IndexError("a\nb"))), "pocket model",
     "IndexError: a b"),
]  # fmt: skip


@pytest.mark.parametrize("fault, name, says", FAULTS)
def test_each_check_can_fail_and_the_others_go_on(sound, fault, name, says):
    whole = len(run_checks("pocket"))
    fault(sound)
    checks = run_checks("pocket")
    assert failed(checks) == [name] or name == "GPU" and name in failed(checks)
    assert len(checks) == whole
    broken = next(check for check in checks if check.name == name)
    assert says in broken.detail
    assert len(broken.fix.splitlines()) == 2
    assert len(str(broken).splitlines()) == 3  # the line and its two-line fix
    assert max(map(len, render(checks).splitlines())) <= preflight.WIDTH


def test_long_findings_break_between_words_after_what_is_private_is_gone(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/mara bo"))
    words = "x" * 60 + " is not at /home/mara bo/course and has-hyphens " + "y" * 100
    first, *others = render([Check("disk", False, words, "Do:\n  " + "z " * 60)]).splitlines()
    assert first == "[FAIL] disk " + "x" * 60 + " is not at"
    assert others[:2] == [" " * 9 + "~/course and has-hyphens", " " * 9 + "y" * 100]
    assert others[3] == " " * 11 + "z " * 60  # a command stays one line
    assert "mara" not in "".join(others)


@pytest.mark.parametrize(
    "python, typed",
    [
        ("course/.venv/bin/python", ".venv/bin/python"),
        ("course/.venv/Scripts/python.exe", ".venv/Scripts/python.exe"),
        ("link/.venv/bin/python", ".venv/bin/python"),  # the course by another name
        ("envs/my course/bin/python", '"{}/envs/my course/bin/python"'),
    ],
)
def test_cures_name_the_interpreter_that_is_missing_them(sound, tmp_path, python, typed):
    (tmp_path / "course").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "course")
    (tmp_path / python).parent.mkdir(parents=True)
    (tmp_path / python).symlink_to(sys.executable)  # as venv makes it
    sound.setattr(preflight, "ROOT", tmp_path / "course")
    sound.setattr(sys, "executable", str(tmp_path / python))
    break_a_package(sound)
    (check,) = (check for check in run_checks("pocket") if check.name == "peft")
    command = f"  {typed.format(tmp_path)} -m pip install -r requirements.txt -c constraints.txt"
    assert check.fix.splitlines()[1] == command.replace("/", os.sep)


def test_as_a_command_it_prints_the_report_and_nothing_else():
    command = [sys.executable, "-m", "helpers.preflight", "pocket"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=preflight.ROOT)
    assert run.stderr == "" and run.stdout.startswith(("[OK]   Python", "[FAIL] Python"))


def test_an_unknown_track_and_a_gpu_track_without_gpu(sound):
    (unknown,) = (check for check in run_checks("h100") if check.ok is False)
    assert "unknown track 'h100'" in unknown.detail and "ampere" in unknown.fix
    absent = next(check for check in run_checks("t4") if check.name == "track")
    assert absent.ok is False and "no CUDA GPU was found" in absent.detail


def test_the_hub_is_asked_for_what_a_gpu_track_downloads(sound, hub):
    track = TRACKS["t4"]
    (missing,) = (check for check in run_checks("t4") if check.name == "Hub")
    assert missing.ok is False and track.model in missing.detail
    hub.add("models", track.model, {"config.json": b"{}"})
    hub.add("datasets", track.dataset, {"README.md": b"# Pairs"})
    (there,) = (check for check in run_checks("t4") if check.name == "Hub")
    assert there.ok and track.model in there.detail and track.dataset in there.detail
    assert not any(path.endswith(("config.json", "README.md")) for _, path in hub.requests)


def test_the_pocket_track_asks_no_hub(sound, hub):
    run_checks("pocket")
    assert hub.requests == []


def test_another_version_of_torch_is_said_but_no_fault(sound):
    real = importlib.metadata.version
    sound.setattr(importlib.metadata, "version", lambda n: "2.9.1" if n == "torch" else real(n))
    checks = run_checks("pocket")
    assert failed(checks) == []
    assert "torch 2.9.1; the course was tested with" in render(checks)


def test_a_gpu_is_described_and_decides_the_track(sound):
    with_gpu(sound, Card("Tesla T4", 7, 5, 15 * 2**30))
    text = render(run_checks("auto"))
    assert "[OK]   GPU Tesla T4, compute capability 7.5, 15.0 GiB" in text
    assert "track t4 (Colab's free T4: 16 GB, no bf16), chosen by what is here" in text
    assert "float32 on cuda, fp16 autocast" in " ".join(text.split())


def test_packages_are_required_ones():
    required = (preflight.ROOT / "requirements.txt").read_text().split()
    assert set(preflight.PACKAGES) <= set(required)


def test_paste_safe(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/mara"))
    monkeypatch.setattr(preflight, "ROOT", Path("/home/mara/course"))
    monkeypatch.setenv("USER", "mara.b")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    cases = {
        "/home/mara/course/data": "./data",
        "/home/mara/.cache and /home/maraschino": "~/.cache and /home/maraschino",
        "/scratch/mara.b/x": "/scratch/user/x",
        r"C:\Users\mara\x": r"C:\Users\user\x",
        "a mara is no path": "a mara is no path",
        "key 0123456789abcdef.": "key ***.",
        "hf_AbCdEfGhIjKlMnOpQrSt in hf_raise_for_status": "hf_*** in hf_raise_for_status",
        "http://mara:pw@proxy:80": "http://***@proxy:80",
    }
    assert {text: paste_safe(text) for text in cases} == cases


def test_what_breaks_a_check_is_safe_too(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/mara"))
    check = attempt("disk", raising(OSError("no /home/mara/runs, token hf_" + "a" * 30)))
    assert "mara" not in render([check]) and "aaaa" not in render([check])


def test_main_exits_with_the_number_of_fails(sound, capsys):
    sound.setattr(sys, "argv", ["preflight", "pocket"])
    with pytest.raises(SystemExit) as exit_:
        preflight.main()
    assert exit_.value.code == 0
    break_a_file(sound), break_a_version(sound)
    with pytest.raises(SystemExit) as exit_:
        preflight.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().out.count("[FAIL]") == 2


def test_plain_information_has_no_mark():
    text = render([Check("GPU", None, "none"), Check("disk", True, "ok")])
    assert text == "       GPU none\n[OK]   disk ok\n1 OK, 0 FAIL"
