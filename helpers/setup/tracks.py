"""Tracks: which model, data, precision and sizes fit this machine.

    track = choose("auto")     # or "pocket", "t4", "ampere"
    track = choose("t4", model="HuggingFaceTB/SmolVLM-500M-Instruct")
    print(track)

Lessons never look at the hardware themselves; they ask a track. The pocket track's settings are
measured; those of the GPU tracks are starting points from published recipes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from helpers.setup.machine import precision, this_machine

DATA = Path(__file__).resolve().parents[2] / "data"
OLDEST_GPU = (7, 5)  # what current builds of torch for CUDA still support


class TrackError(ValueError):
    """The track is unknown or cannot run here; the message says what to do."""


@dataclass(frozen=True)
class Track:
    """One way through the course. Sizes are pairs, pixels and tokens.

    `dtype`, `autocast` and `device` belong to the machine and not to the track: `choose` fills
    them in (helpers.setup.machine.precision).
    """

    name: str
    machine: str  # what it is meant for
    model: str  # a folder or a Hub id
    dataset: str  # a folder or a Hub id
    quantize: bool  # load the frozen base in 4 bits (QLoRA)
    image_edge: int | None  # longest edge fed to the model; None keeps the processor's own
    train_pairs: int
    eval_pairs: int
    batch_size: int
    accumulate: int
    eval_batch: int  # pictures at once where nothing is trained: answers, log-probs
    learning_rate: float
    epochs: float
    seeds: int  # runs of each method, where a lesson compares methods
    lora_rank: int
    max_new_tokens: int
    dtype: str = "float32"  # of the frozen weights: "float32", "float16" or "bfloat16"
    autocast: str | None = None  # "fp16" (with a gradient scaler), "bf16" or None
    device: str = "cpu"  # "cpu", "cuda" or "mps"

    def __post_init__(self):
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise TrackError(f"track {self.name!r}: unknown dtype {self.dtype!r}")
        if self.autocast not in (None, "fp16", "bf16"):
            raise TrackError(f"track {self.name!r}: unknown autocast {self.autocast!r}")
        for field in ("train_pairs", "eval_pairs", "batch_size", "accumulate", "lora_rank"):
            if getattr(self, field) < 1:
                raise TrackError(f"track {self.name!r}: {field} must be at least 1")

    @property
    def checkpointing(self):
        """Whether activations are computed twice to save memory: it is not short on pocket."""
        return self.name != "pocket"


TRACKS = {
    track.name: track
    for track in (
        Track(
            name="pocket",
            machine="any CPU, no network",
            model=str(DATA / "pocket" / "model"),
            dataset=str(DATA / "pocket"),
            quantize=False,
            image_edge=None,
            train_pairs=1299,
            eval_pairs=341,
            batch_size=32,
            accumulate=1,
            eval_batch=64,
            learning_rate=8e-5,
            epochs=1,
            seeds=3,
            lora_rank=16,
            max_new_tokens=64,
        ),
        Track(
            name="t4",
            machine="Colab's free T4: 16 GB, no bf16",
            model="HuggingFaceTB/SmolVLM-256M-Instruct",
            dataset="openbmb/RLAIF-V-Dataset",
            quantize=False,
            image_edge=512,  # one tile: a photograph of 640 pixels is not enlarged
            train_pairs=1000,
            eval_pairs=100,
            batch_size=2,
            accumulate=8,
            eval_batch=16,
            learning_rate=1e-5,
            epochs=1,
            seeds=1,
            lora_rank=16,
            max_new_tokens=256,
        ),
        Track(
            name="ampere",
            machine="24 GB and more, bf16",
            model="HuggingFaceTB/SmolVLM-Instruct",
            dataset="openbmb/RLAIF-V-Dataset",
            quantize=True,
            image_edge=384,  # one tile of this model; two across would enlarge 640 pixels to 768
            train_pairs=4000,
            eval_pairs=200,
            batch_size=2,
            accumulate=16,
            eval_batch=16,
            learning_rate=1e-5,
            epochs=1,
            seeds=1,
            lora_rank=32,
            max_new_tokens=256,
        ),
    )
}


def choose(name="auto", model=None, dataset=None, machine=None):
    """The track of that name, with the precision of `machine` (this one if None).

    "auto" picks by compute capability and memory. `model` and `dataset` replace the track's own:
    a Hub id or a folder. Without a GPU a GPU track computes on the CPU in float32, which is for
    trying its code on a small model. Raises TrackError for an unknown name.
    """
    machine = machine or this_machine()
    if name == "auto":
        name = _fitting(machine)
    if name not in TRACKS:
        raise TrackError(f"unknown track {name!r}: choose one of auto, {', '.join(TRACKS)}")
    track = TRACKS[name]
    track = replace(track, model=model or track.model, dataset=dataset or track.dataset)
    if name == "pocket":  # too small to gain from a GPU: float32 on the CPU everywhere
        return track
    chosen = precision(machine, track.quantize)
    return replace(track, dtype=chosen.dtype, autocast=chosen.autocast, device=machine.kind)


def _fitting(machine):
    if machine.kind != "cuda" or machine.capability < OLDEST_GPU or machine.memory_gib < 14:
        return "pocket"
    # A card sold with 24 GB reports about 22 GiB.
    return "ampere" if machine.capability >= (8, 0) and machine.memory_gib >= 20 else "t4"
