"""What this machine can compute in: its kind, compute capability and memory, and the precision.

    machine = this_machine()       # Machine(kind="cuda", name="Tesla T4", capability=(7, 5), ...)
    precision(machine)             # Precision(dtype="float32", autocast="fp16")

The rule is the compute capability, never `torch.cuda.is_bf16_supported()`: that counts emulation
and says yes on a T4, where training in emulated bf16 crawls.
"""

from dataclasses import dataclass

import psutil
import torch

BF16_SINCE = (8, 0)  # Ampere; the tensor cores of a T4 (7.5) know fp16 only


@dataclass(frozen=True)
class Machine:
    """The accelerator that training would use, or the CPU. Memory in GiB, as torch reports it."""

    kind: str  # "cuda", "mps" or "cpu"
    name: str
    capability: tuple[int, int] | None  # CUDA only
    memory_gib: float

    def __str__(self):
        known = "compute capability {}.{}, ".format(*self.capability) if self.capability else ""
        return f"{self.name}, {known}{self.memory_gib:.1f} GiB"


@dataclass(frozen=True)
class Precision:
    """`dtype` of the frozen weights as loaded; `autocast` of the forward pass: "fp16" comes with a
    gradient scaler. What is trained is float32 always."""

    dtype: str
    autocast: str | None


def this_machine():
    """The first CUDA GPU that torch sees, or Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Machine("cuda", card.name, (card.major, card.minor), card.total_memory / 2**30)
    memory_gib = psutil.virtual_memory().total / 2**30
    if torch.backends.mps.is_available():  # shares its memory with the CPU
        return Machine("mps", "Apple GPU", None, memory_gib)
    return Machine("cpu", "CPU", None, memory_gib)


def precision(machine, quantize=False):
    """The Precision for a machine; `quantize` says that the frozen base is held in 4 bits.

    Below compute capability 8.0 the weights stay float32 and autocast computes in fp16: fp16
    weights overflow where bf16 ones did not, and a small model has room. A base in 4 bits
    computes in float16 there. Without CUDA everything is float32.
    """
    if machine.kind != "cuda":
        return Precision("float32", None)
    if machine.capability >= BF16_SINCE:
        return Precision("bfloat16", "bf16")
    return Precision("float16" if quantize else "float32", "fp16")
