"""Tracks: which model, data, precision and sizes fit this machine.

    track = choose("auto")     # or "pocket", "t4", "ampere"
    print(track)

Lessons never look at the hardware themselves; they ask a track. Only the pocket track has been
measured so far; the numbers of the GPU tracks are starting points from published recipes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parent.parent / "data"


class TrackError(ValueError):
    """The track is unknown or cannot run here; the message says what to do."""


@dataclass(frozen=True)
class Track:
    """One way through the course. Sizes are pairs, pixels and tokens."""

    name: str
    machine: str
    model: str  # a folder or a Hub id
    dataset: str  # a folder or a Hub id
    dtype: str  # of the weights: "float32", "float16" or "bfloat16"
    quantize: bool  # load the frozen base in 4 bits (QLoRA)
    image_edge: int | None  # longest edge fed to the model; None keeps the processor's own
    train_pairs: int
    eval_pairs: int
    batch_size: int
    accumulate: int
    learning_rate: float
    epochs: float
    lora_rank: int
    max_new_tokens: int

    def __post_init__(self):
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise TrackError(f"track {self.name!r}: unknown dtype {self.dtype!r}")
        for field in ("train_pairs", "eval_pairs", "batch_size", "accumulate", "lora_rank"):
            if getattr(self, field) < 1:
                raise TrackError(f"track {self.name!r}: {field} must be at least 1")

    @property
    def bf16(self):
        return self.dtype == "bfloat16"

    @property
    def fp16(self):
        """Mixed precision with a gradient scaler: what a GPU without bf16 needs."""
        return self.name == "t4"


TRACKS = {
    track.name: track
    for track in (
        Track(
            name="pocket",
            machine="any CPU, no network",
            model=str(DATA / "pocket" / "model"),
            dataset=str(DATA / "pocket"),
            dtype="float32",
            quantize=False,
            image_edge=None,
            train_pairs=1299,
            eval_pairs=341,
            batch_size=32,
            accumulate=1,
            learning_rate=8e-5,
            epochs=1,
            lora_rank=16,
            max_new_tokens=64,
        ),
        Track(
            name="t4",
            machine="Colab's free T4: 16 GB, no bf16",
            model="HuggingFaceTB/SmolVLM-256M-Instruct",
            dataset="openbmb/RLAIF-V-Dataset",
            dtype="float32",  # with LoRA and fp16 autocast: fp16 weights cannot be unscaled
            quantize=False,
            image_edge=512,
            train_pairs=1000,
            eval_pairs=100,
            batch_size=2,
            accumulate=8,
            learning_rate=1e-5,
            epochs=1,
            lora_rank=16,
            max_new_tokens=256,
        ),
        Track(
            name="ampere",
            machine="24 GB and more, bf16",
            model="HuggingFaceTB/SmolVLM-Instruct",
            dataset="openbmb/RLAIF-V-Dataset",
            dtype="bfloat16",
            quantize=True,
            image_edge=768,
            train_pairs=4000,
            eval_pairs=200,
            batch_size=2,
            accumulate=16,
            learning_rate=1e-5,
            epochs=1,
            lora_rank=32,
            max_new_tokens=256,
        ),
    )
}


def choose(name="auto"):
    """The track of that name; "auto" picks by what this machine has.

    By compute capability and memory, never by `torch.cuda.is_bf16_supported()`, which counts
    emulation and so says yes on a T4. Raises TrackError for an unknown name.
    """
    if name == "auto":
        name = _fitting()
    if name not in TRACKS:
        raise TrackError(f"unknown track {name!r}: choose one of auto, {', '.join(TRACKS)}")
    return TRACKS[name]


def _fitting():
    if not torch.cuda.is_available():
        return "pocket"
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / 2**30
    if properties.major >= 8 and gib >= 22:
        return "ampere"
    return "t4" if gib >= 14 else "pocket"
