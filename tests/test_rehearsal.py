"""The rehearsal of the GPU tracks: every line of it on the CPU, in small, and what it stores."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_rehearsal, rehearsal
from benchmarks.gpu_rehearsal import AMPERE, CASES, CPU_CASES, T4, TINY_CASES, on

GB = 10**9


def test_a_tiny_case_runs_in_a_process_of_its_own_and_is_not_stored(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_rehearsal, "TINY_CASES", TINY_CASES[:1])
    gpu_rehearsal.main(["--tiny", "--out", str(tmp_path / "results.json")])
    assert ", ratio " in capsys.readouterr().out
    # And without a GPU nothing of the GPU tracks is run.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_rehearsal.main(["--out", str(tmp_path / "results.json")])
    assert "No GPU that torch can use: nothing was rehearsed" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_tiny_case_in_4_bits_meets_its_budget():
    pytest.importorskip("bitsandbytes")
    case = TINY_CASES[1]
    row = rehearsal.rehearse(case, tiny=True)
    assert row["plan"]["tiles"] == 5 and row["plan"]["answer_tokens"] == 150
    assert row["ratio"] == pytest.approx(1, abs=0.15)
    assert len(row["losses"]) == case.steps[0] and all(map(math.isfinite, row["losses"]))
    assert sum(row["predicted"].values()) == pytest.approx(row["predicted_gb"])


def test_cases_take_the_precision_of_their_machine():
    small, large = on(T4, "2.2B", 14.6, quantize=True), on(AMPERE, "2.2B", quantize=True)
    assert (small.dtype, small.autocast, small.cap_gib) == ("float16", "fp16", 14.6)
    assert (large.dtype, large.autocast, large.cap_gib) == ("bfloat16", "bf16", None)
    assert on(T4, "256M").dtype == "float32"
    for cases in (CASES, CPU_CASES, TINY_CASES):
        assert len({case.name for case in cases}) == len(cases)


# --- storing -------------------------------------------------------------------------------


@pytest.fixture
def rehearsed(monkeypatch):
    """Names of the cases that were run, instead of running them: some have no memory, or die."""
    ran = []

    def found(work, case, tiny):
        ran.append(case.name)
        if case.pairs == 1:
            yield {"failed": "its process died"}
        elif case.checkpointing:
            yield {"out_of_memory": "CUDA out of memory", "predicted_gb": 20.0}
        else:
            yield {"predicted_gb": 2.2, "measured_gb": 2.0, "ratio": 1.1, "seconds_a_pair": 0.5}

    monkeypatch.setattr(gpu_rehearsal, "from_a_child", found)
    return ran


def test_results_are_stored_after_each_case_and_not_run_again(tmp_path, rehearsed, capsys):
    out = tmp_path / "new" / "results.json"
    gpu_rehearsal.run(CPU_CASES[:3], out, " --cpu")
    gpu_rehearsal.run(CPU_CASES[:4], out, " --cpu")
    assert rehearsed == [case.name for case in CPU_CASES[:4]]
    stored = json.loads(out.read_text())
    assert stored["command"] == "python -m benchmarks.gpu_rehearsal --cpu"
    assert [row["case"] for row in stored["rows"]] == rehearsed
    assert all(row["machine"] == gpu_rehearsal.hardware() for row in stored["rows"])
    said = capsys.readouterr().out
    assert "measured 2.00 GB, predicted 2.20 GB, ratio 1.100, 0.50 s a pair" in said
    assert "CUDA out of memory; predicted 20.00 GB" in said and "its process died" in said


def test_a_gpu_without_bf16_leaves_those_cases_out(rehearsed, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_rehearsal, "this_machine", lambda: T4)
    gpu_rehearsal.run([on(AMPERE, "256M"), on(T4, "256M")], tmp_path / "results.json")
    assert rehearsed == [on(T4, "256M").name]
    assert "not run, this GPU computes no bf16" in capsys.readouterr().out


# --- the lines that need a GPU, on stand-ins -----------------------------------------------


def test_a_cap_is_a_share_of_the_gpu(monkeypatch):
    shares, card = [], SimpleNamespace(total_memory=40 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    rehearsal.cap(10)
    rehearsal.cap(80)
    assert shares == [0.25, 1.0]


def test_on_a_gpu_the_pace_leaves_the_first_step_out(monkeypatch):
    clock = iter([10.0, 14.0, 18.0])
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: next(clock))
    for name, value in (("reset_peak_memory_stats", None), ("synchronize", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * GB)

    class Trainer:
        args = SimpleNamespace(gradient_accumulation_steps=2, per_device_train_batch_size=2)

        def add_callback(self, callback):
            self.callback = callback

        def train(self):
            for _ in range(3):
                self.callback.on_step_end(None, None, None)

    found = rehearsal.on_the_gpu(Trainer())
    assert found == {"measured_gb": 2.0, "reserved_gb": 3.0, "seconds_a_pair": 1.0}


def test_a_case_without_memory_is_a_finding(monkeypatch):
    def out_of_memory(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. Details")

    monkeypatch.setattr(rehearsal, "on_the_cpu", out_of_memory)
    row = rehearsal.rehearse(TINY_CASES[0], tiny=True)
    assert row["out_of_memory"] == "CUDA out of memory" and row["predicted_gb"] > 0
