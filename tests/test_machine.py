"""Precision follows the compute capability, on stand-ins for the machines that learners have."""

from types import SimpleNamespace

import pytest
import torch

from helpers.setup.machine import Machine, Precision, precision, this_machine

T4 = Machine("cuda", "Tesla T4", (7, 5), 14.6)
L4 = Machine("cuda", "NVIDIA L4", (8, 9), 22.0)
A100 = Machine("cuda", "NVIDIA A100-SXM4-40GB", (8, 0), 39.4)
CPU = Machine("cpu", "CPU", None, 12.7)
APPLE = Machine("mps", "Apple GPU", None, 16.0)


@pytest.mark.parametrize(
    ("machine", "quantize", "dtype", "autocast"),
    [
        (T4, False, "float32", "fp16"),
        (T4, True, "float16", "fp16"),
        (L4, False, "bfloat16", "bf16"),
        (L4, True, "bfloat16", "bf16"),
        (A100, False, "bfloat16", "bf16"),
        (CPU, False, "float32", None),
        (CPU, True, "float32", None),
        (APPLE, False, "float32", None),
    ],
    ids=str,
)
def test_precision_of_each_machine(machine, quantize, dtype, autocast):
    assert precision(machine, quantize) == Precision(dtype, autocast)


def pretend(monkeypatch, cuda=None, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_a_t4_is_read_off_torch_and_its_emulated_bf16_does_not_count(monkeypatch):
    card = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=int(14.6 * 2**30))
    pretend(monkeypatch, cuda=card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    machine = this_machine()
    assert (machine.kind, machine.name, machine.capability) == ("cuda", "Tesla T4", (7, 5))
    assert machine.memory_gib == pytest.approx(14.6)
    assert precision(machine).autocast == "fp16"
    assert str(machine) == "Tesla T4, compute capability 7.5, 14.6 GiB"


@pytest.mark.parametrize(("mps", "kind"), [(True, "mps"), (False, "cpu")])
def test_without_cuda_it_is_apples_gpu_or_the_cpu(monkeypatch, mps, kind):
    pretend(monkeypatch, mps=mps)
    machine = this_machine()
    assert (machine.kind, machine.capability) == (kind, None)
    assert machine.memory_gib > 0
