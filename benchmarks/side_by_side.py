"""Two ways of doing one thing, in turn: their times, the ratio of each round, the memory they take.

    contest = Contest({"TRL": Side(stock_step), "shared": Side(our_step)})
    peaks = warm_up(contest)
    rounds = [one_round(contest, i) for i in range(5)]
    times_as_fast(rounds, "shared", "TRL", "wall")     # one ratio a round

A ratio compares two times of one round and of one process, so that a neighbour on the same machine
slows both; every other round goes through the sides backwards. "wall" is what a clock on the wall
shows, "cpu" leaves out what a neighbour had of the core and says nothing about a GPU.
"""

import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

CLOCKS = ("wall", "cpu")
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
SQUARE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # edge of the matrices that show the peak


@dataclass(frozen=True)
class Side:
    """One way. Times and work are given for one of the `items` that a `run()` does."""

    run: Callable  # what it returns is kept with its round if it is a number, such as a loss
    items: int = 1
    prepare: Callable | None = None  # timed apart, such as making the batch that `run` works on
    warm_up: Callable | None = None  # before the first round; `run` where there is none
    held: int = 0  # bytes on the device before a run: weights, a batch
    measure_memory: bool = False  # of the warm-up: what torch allocates, so not what numpy holds
    flop: float | None = None  # the least floating-point work of one item; None: not counted

    def __post_init__(self):
        if self.items < 1:
            raise ValueError(f"a side does {self.items} items: it must do at least one")


@dataclass(frozen=True)
class Contest:
    """What is compared, ready to run; the first side is what the others beat."""

    sides: dict[str, Side]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of the products
    notes: dict = field(default_factory=dict)  # what the sides work on, for the reader


def warm_up(contest):
    """Runs each side once; {side: peak memory in GB} of those that are to be measured."""
    peaks = {}
    for name, side in contest.sides.items():
        first = side.warm_up or side.run
        if side.measure_memory:
            peaks[name] = (side.held + extra_memory(first, contest.device)) / 1e9
        else:
            first()
    return peaks


def one_round(contest, index):
    """One turn of every side, backwards in every other round.

    {"peak": FLOP/s by `peak_flops`, side: {"wall" and "cpu": seconds an item, "value", "prepare"}}
    """
    names = list(contest.sides)[:: 1 if index % 2 == 0 else -1]
    turns = {name: one_turn(contest.sides[name], contest.device) for name in names}
    return {
        "peak": peak_flops(contest.device, contest.dtype),
        **{name: turns[name] for name in contest.sides},
    }


def one_turn(side, device):
    found = {}
    if side.prepare:
        found["prepare"] = an_item(side, timed(side.prepare, device)[1])
    value, taken = timed(side.run, device)
    found |= an_item(side, taken)
    return {**found, "value": value} if isinstance(value, float) else found


def an_item(side, taken):
    return {clock: value / side.items for clock, value in taken.items()}


def timed(run, device="cpu"):
    """(what `run()` returned, {clock: seconds})"""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    synchronize(device)
    return value, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(rounds, side, clock, prepared=False):
    """The seconds an item of a side, one a round; with those of `prepare` if `prepared`."""
    turns = [found[side] for found in rounds]
    return [turn[clock] + (turn["prepare"][clock] if prepared else 0) for turn in turns]


def times_as_fast(rounds, side, base, clock, prepared=False):
    """One ratio for each round: the seconds of `base` by those of `side`."""
    taken = (seconds(rounds, name, clock, prepared) for name in (base, side))
    return [slow / fast for slow, fast in zip(*taken, strict=True)]


def spread(values, digits=2):
    """The median and [lowest, highest], in words."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# --- the machine ---------------------------------------------------------------------------


def steady_clock(device):
    """The clock that a neighbour on the machine disturbs least."""
    return "wall" if device == "cuda" else "cpu"


def peak_flops(device, dtype=torch.float32, tries=3):
    """FLOP/s of a product of two large square matrices, by `steady_clock`: the most this machine
    is seen to do."""
    edge, clock = SQUARE[device], steady_clock(device)
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    left @ right  # the first one starts the threads and chooses a kernel
    return 2 * edge**3 / min(timed(lambda: left @ right, device)[1][clock] for _ in range(tries))


def hardware():
    """The GPU if there is one, the processor, and how many threads torch uses, in words."""
    processor = f"{processor_name()}, {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        return processor
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.1f} GiB; {processor}"


def processor_name():
    """What Linux calls the processor; its architecture elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else f"{platform.machine()}, {cores()} cores"


def cores():
    return os.cpu_count() or 1


def versions():
    """{library: version} of what decides the times, and Python's."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


# --- memory --------------------------------------------------------------------------------


def extra_memory(run, device):
    """The most bytes that `run()` has at a time on the device, beyond what was there before."""
    if device != "cuda":
        return allocated(run)[0]
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def allocated(run):
    """(peak, at the end): bytes that `run()` allocated on the CPU beyond what was there before.

    From the profiler's record of every call of torch's allocator: the temporaries inside a kernel
    count too, which a list of living tensors would miss. What numpy holds does not.
    """
    gc.collect()  # or what is left from earlier would be freed, and subtracted, during the run
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak, live
