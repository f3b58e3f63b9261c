"""A run survives being killed at any step, goes on to the same losses, and refuses to mix runs."""

import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from helpers.dpo import checkpoints
from helpers.dpo.checkpoints import CheckpointError, last_checkpoint, train, trained
from helpers.dpo.trainer import StopAt, dpo_trainer
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.setup import storage
from helpers.setup.storage import StorageError, check_writable
from helpers.setup.tracks import TRACKS
from helpers.vlm import pocket
from helpers.vlm.load import limit_edge
from tools.build_notebooks import ROOT

# A learner's cell, the same lines whether or not an earlier run was killed. It runs in a fork for
# each (folder, step to be killed before), so that the libraries are imported once.
CELL = """
import json, os, signal, sys
from dataclasses import replace
from transformers import TrainerCallback
from helpers.dpo.checkpoints import train
from helpers.dpo.trainer import dpo_trainer
from helpers.pairs.format import to_conversational
from helpers.pairs.load import load_raw
from helpers.setup.tracks import TRACKS
from helpers.vlm.load import load_policy

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

def cell():
    track = replace(TRACKS["pocket"], batch_size=4)
    pairs = to_conversational(load_raw(track, "train", 32))
    trainer = dpo_trainer(*load_policy(track), pairs, track, folder, callbacks=[Kill()],
                          save_steps=2, logging_steps=1, disable_tqdm=True)
    train(trainer)
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    print("losses", json.dumps(losses), flush=True)

for folder, step in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if pid := os.fork():
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        cell()
        os._exit(0)
"""


def test_killed_twice_and_gone_on_with_equals_uninterrupted(tmp_path):
    runs = [["straight", -1], ["killed", 3], ["killed", 7], ["killed", -1]]
    command = [sys.executable, "-c", CELL, json.dumps([[str(tmp_path / f), s] for f, s in runs])]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=one_thread)
    straight, first, second, last = ended.stdout.split("ended ")[:-1]
    statuses = [int(after.split()[0]) for after in ended.stdout.split("ended ")[1:]]
    assert statuses == [0, -signal.SIGKILL, -signal.SIGKILL, 0], ended.stderr
    assert "going on" not in straight + first
    assert "going on from checkpoint-2" in second and "going on from checkpoint-6" in last
    wanted, found = (json.loads(run.split("losses ")[1]) for run in (straight, last))
    # Without the optimiser's state 3e-3 apart, with the pairs from the beginning again 1e-2.
    assert len(wanted) == 8 and found == pytest.approx(wanted, abs=1e-5)
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert {"adapter", "run.json"} <= left and not any("checkpoint" in name for name in left)


TRACK = replace(TRACKS["pocket"], batch_size=4, lora_rank=4)


@functools.cache
def pairs(first):
    return to_conversational(load_raw(TRACK, "train", 20).select(range(first, first + 16)))


def make(folder, first_pair=0, seed_of_base=0, edge=None, callbacks=None, **changes):
    """A run of 4 steps in `folder`; `changes` go to its DPOConfig."""
    processor = copy.deepcopy(pocket.build_processor())
    model = pocket.build_model(processor, seed=seed_of_base)
    if edge:
        limit_edge(processor, edge)
    settings = {"save_steps": 1, "save_total_limit": 3, "disable_tqdm": True, **changes}
    return dpo_trainer(model, processor, pairs(first_pair), TRACK, folder, callbacks, **settings)


@pytest.fixture
def build(tmp_path):
    return functools.partial(make, tmp_path)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """The folders of a run that ended after step 3, with three checkpoints, and of a whole one."""
    folder = tmp_path_factory.mktemp("runs")
    train(make(folder / "stopped", callbacks=[StopAt(3)]))
    train(make(folder / "finished"))
    return folder


@pytest.fixture
def stopped(trained_once, tmp_path):
    return shutil.copytree(trained_once / "stopped", tmp_path, dirs_exist_ok=True)


@pytest.fixture
def finished(trained_once, tmp_path):
    return shutil.copytree(trained_once / "finished", tmp_path, dirs_exist_ok=True)


STATE = ("trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt")


@pytest.mark.parametrize("file", [*STATE, "rng_state.pth"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "zeros", "{}"])
def test_a_torn_checkpoint_is_passed_over(stopped, capsys, file, damage):
    assert last_checkpoint(stopped).name == "checkpoint-3"
    torn = stopped / "checkpoint-3" / file
    if damage == "cut":
        torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    elif damage == "missing":
        torn.unlink()
    else:
        torn.write_bytes({"garbage": b"garbage" * 50, "zeros": bytes(500), "{}": b"{}"}[damage])
    assert last_checkpoint(stopped).name == "checkpoint-2"
    assert "checkpoint-3 is not whole" in capsys.readouterr().out


def test_numbers_count_and_other_files_do_not(stopped):
    (stopped / "checkpoint-10").mkdir()  # torn, and later than 3 though "1" sorts before "3"
    (stopped / "checkpoint-best").mkdir()
    (stopped / "checkpoint-99").write_text("a file")
    names = [path.name for path in checkpoints.checkpoints_in(stopped)]
    assert names == [f"checkpoint-{number}" for number in (10, 3, 2, 1)]
    assert last_checkpoint(stopped).name == "checkpoint-3"


def lora_weights(model):
    return {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_leaves_the_adapter_and_starts_anew(build, finished, capsys):
    (finished / "notes.txt").write_text("mine")
    for _ in range(2):
        assert (finished / "adapter" / "adapter_model.safetensors").exists()
        assert last_checkpoint(finished) is None
        assert (finished / "notes.txt").read_text() == "mine"
        run = build()
        train(run)
        assert run.state.global_step == 4
    assert "going on" not in capsys.readouterr().out


def test_a_finished_run_is_loaded_and_not_trained_again(build, finished):
    run = build()
    before, loaded = lora_weights(run.model), lora_weights(trained(run))
    assert run.state.global_step == 0 and not run.model.training
    train(run)
    torch.testing.assert_close(loaded, lora_weights(run.model), rtol=0, atol=1e-6)
    assert not same(before, loaded)


@pytest.mark.parametrize("change", [{"beta": 0.2}, {"first_pair": 2}, {"seed_of_base": 1}], ids=str)
def test_a_finished_run_of_something_else_is_not_loaded(build, finished, change):
    other = build(**change)
    trained(other)
    assert other.state.global_step == 4


def test_an_adapter_is_not_taken_for_that_of_a_later_run_that_was_killed(build, finished):
    train(build(beta=0.2, callbacks=[StopAt(2)]))  # run.json is now about beta=0.2
    resumed = build(beta=0.2)
    trained(resumed)
    assert resumed.state.global_step == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: 8e-05 there, 0.001 now"),
        ({"loss_type": "ipo"}, "loss_type"),
        ({"adam_beta2": 0.5}, "adam_beta2"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type"),
        ({"edge": 24}, "inputs: "),
        ({"first_pair": 2}, "pairs: "),
        ({"seed_of_base": 1}, "weights: "),
    ],
    ids=str,
)
def test_an_unfinished_run_of_something_else_is_not_mixed(build, stopped, changes, named):
    other = build(**changes)
    with pytest.raises(CheckpointError, match=f"unfinished run of something else .*{named}"):
        train(other)
    assert other.state.global_step == 0
    assert last_checkpoint(stopped).name == "checkpoint-3"  # nothing is lost


def test_the_line_in_the_message_gives_the_old_run_up(build, stopped):
    again = build(learning_rate=1e-3)
    with pytest.raises(CheckpointError) as error:
        train(again)
    exec(str(error.value).splitlines()[-1])
    train(again)
    assert again.state.global_step == 4


def test_a_run_killed_while_it_saves_its_adapter_leaves_no_record_beside_it(build, finished):
    other = build(beta=0.2)
    save = other.save_model

    def killed(folder, *more, **named):
        save(folder, *more, **named)
        if folder.endswith("adapter"):
            raise KeyboardInterrupt

    other.save_model = killed
    with pytest.raises(KeyboardInterrupt):
        train(other)
    with pytest.raises(CheckpointError, match="unfinished run of something else"):
        trained(build())  # and not the adapter, half of which may be the other run's


class Interrupt(TrainerCallback):
    """The learner's stop button, once."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt


@pytest.mark.parametrize("save_steps", [1, 10], ids=["from a checkpoint", "from the start"])
def test_a_cell_run_again_after_an_interrupt_repeats_the_run(
    build, trained_once, tmp_path, save_steps
):
    adapter = trained_once / "finished" / "adapter"
    wanted = checkpoints.load_peft_weights(str(adapter), device="cpu")
    run = build(callbacks=[Interrupt(2)], save_steps=save_steps)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    for _ in range(2):  # the second time when it is finished: not trained further
        train(run)
        found = checkpoints.load_peft_weights(str(tmp_path / "adapter"), device="cpu")
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_how_often_to_write_may_change(build, stopped, capsys):
    train(build(save_steps=4, logging_steps=1))
    assert "going on from checkpoint-3" in capsys.readouterr().out


def test_no_room_stops_before_the_first_step(build, stopped, monkeypatch):
    run = build()
    size = sum(p.stat().st_size for p in (stopped / "checkpoint-3").rglob("*"))
    assert size < checkpoints.checkpoint_bytes(run.model) < 3 * size + 10_000_000
    usage = namedtuple("Usage", "free")(9_000_000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match="9 MB free and checkpoints need about .*free some"):
        train(run)
    assert run.state.global_step == 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to .*another folder"):
        check_writable(tmp_path / "file" / "runs")


def test_a_drive_that_is_not_mounted(tmp_path, monkeypatch):
    drive = tmp_path / "drive"
    monkeypatch.setattr(storage, "DRIVE", drive)
    with pytest.raises(StorageError, match="not mounted: run .*drive.mount"):
        check_writable(drive / "MyDrive" / "runs")
    with pytest.raises(StorageError, match="not mounted"):
        make(drive / "MyDrive")
    assert not drive.exists()  # or it would look mounted, and be lost
    monkeypatch.setattr(storage.os.path, "ismount", lambda path: True)
    check_writable(drive / "MyDrive" / "runs")
