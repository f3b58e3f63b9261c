"""The harness: a thing beside what it beats, in alternating rounds, kept round by round.

    contest = Contest({"TRL": Side(stock_step), "shared": Side(our_step)})
    peaks = warm_up(contest)
    rounds = [one_round(contest, i) for i in range(5)]
    times_as_fast(rounds, "shared", "TRL", "wall")     # one ratio a round

    record = Record(case, Store("runs/bench"))         # with the rounds that are there already
    for found in from_a_child(rounds_of, case, len(record.rounds), folder, log="case.log"):
        record.add(**found)

A ratio compares two times of one round and of one process, so that a neighbour on the same machine
slows both; every other round goes through the sides backwards. "wall" is what a clock on the wall
shows, "cpu" leaves out what a neighbour had of the core and says nothing about a GPU. A record is
kept under all that its times depend on: the settings, the machine, the versions of the libraries
and the code that is measured. When one of them changes, the case is measured anew. Comments and
docstrings are not code. `benchmarks.bench` runs the cases, `benchmarks.report` shows them.
"""

import ast
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from helpers.setup.storage import Store, key_of, write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CLOCKS = ("wall", "cpu")
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
HEAVY = ["benchmarks.dpo_step", "benchmarks.generation"]  # imports all that takes seconds
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


@dataclass(frozen=True)
class Contest:
    """What is compared, ready to run; the first side is what the others beat."""

    sides: dict[str, Side]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of the products
    notes: dict = field(default_factory=dict)  # what the sides work on, for the reader
    value: str = "losses"  # what the numbers are that `run` returns


def warm_up(contest: Contest) -> dict[str, float]:
    """Runs each side once; {side: peak memory in GB} of those that are to be measured."""
    peaks = {}
    for name, side in contest.sides.items():
        first = side.warm_up or side.run
        if side.measure_memory:
            peaks[name] = (side.held + extra_memory(first, contest.device)) / 1e9
        else:
            first()
    return peaks


def one_round(contest: Contest, index: int) -> dict:
    """One turn of every side, backwards in every other round.

    {"peak": FLOP/s by `peak_flops`, side: {"wall" and "cpu": seconds an item, "value", "prepare"}}
    """
    names = list(contest.sides)[:: 1 if index % 2 == 0 else -1]
    turns = {name: one_turn(contest.sides[name], contest.device) for name in names}
    return {
        "peak": peak_flops(contest.device, contest.dtype),
        **{name: turns[name] for name in contest.sides},
    }


def one_turn(side: Side, device: str) -> dict:
    found = {}
    if side.prepare:
        taken = timed(side.prepare, device)[1]
        found["prepare"] = {clock: value / side.items for clock, value in taken.items()}
    value, taken = timed(side.run, device)
    found |= {clock: seconds / side.items for clock, seconds in taken.items()}
    return {**found, "value": value} if isinstance(value, float) else found


def timed(run: Callable, device: str = "cpu") -> tuple[object, dict[str, float]]:
    """(what `run()` returned, {clock: seconds})"""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    wait()
    return value, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def seconds(rounds: list[dict], side: str, clock: str, prepared: bool = False) -> list[float]:
    """The seconds an item of a side, one a round; with those of `prepare` if `prepared`."""
    turns = [found[side] for found in rounds]
    return [turn[clock] + (turn["prepare"][clock] if prepared else 0) for turn in turns]


def times_as_fast(
    rounds: list[dict], side: str, base: str, clock: str, prepared: bool = False
) -> list[float]:
    """One ratio for each round: the seconds of `base` by those of `side`."""
    taken = (seconds(rounds, name, clock, prepared) for name in (base, side))
    return [slow / fast for slow, fast in zip(*taken, strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """The median and [lowest, highest], in words."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# --- the machine ---------------------------------------------------------------------------


def steady_clock(device: str) -> str:
    """The clock that a neighbour on the machine disturbs least."""
    return "wall" if device == "cuda" else "cpu"


def peak_flops(device: str, dtype: torch.dtype = torch.float32, tries: int = 3) -> float:
    """FLOP/s of a product of two large square matrices, by `steady_clock`: the most this machine
    is seen to do."""
    edge, clock = SQUARE[device], steady_clock(device)
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    left @ right  # the first one starts the threads and chooses a kernel
    return 2 * edge**3 / min(timed(lambda: left @ right, device)[1][clock] for _ in range(tries))


def hardware() -> str:
    """The GPU if there is one, the processor, and how many threads torch uses, in words."""
    info = Path("/proc/cpuinfo")  # Linux's; elsewhere the processor's architecture has to do
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = f"{names[0] if names else platform.machine()}, {len(names) or os.cpu_count()} cores"
    processor += f", {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        return processor
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.1f} GiB; {processor}"


def versions() -> dict[str, str]:
    """{library: version} of what decides the times, and Python's."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


# --- memory --------------------------------------------------------------------------------


def extra_memory(run: Callable, device: str) -> int:
    """The most bytes that `run()` has at a time on the device, beyond what was there before."""
    if device != "cuda":
        return allocated(run)[0]
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def allocated(run: Callable) -> tuple[int, int]:
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


# --- cases and their records ---------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row of the results: what is measured, and how its Contest is built."""

    name: str  # for --only, and of the log
    title: str
    build: Callable  # build(settings, folder) -> Contest; a function of a module
    settings: dict  # JSON: all that decides what is measured
    sources: tuple[str, ...]  # patterns of the files whose code is measured, from ROOT
    rounds: int = 5
    seconds: float = 10.0  # expected for a round on the CPU, for the time left
    unit: str = "a run"  # what one item is


class Record:
    """What is known of a Case on this machine: `found`, stored whenever something is added.

    `rounds`: as `one_round` gives them; `memory_gb`, `flop`, `notes` and `sides`, the first of
    which is what the others beat; `failed`: why a case has fewer rounds than it should.
    """

    def __init__(self, case: Case, store: Store):
        about = identity(case)
        self.store, self.key = store, key_of(case.name, about)
        self.found = {"name": case.name, "title": case.title, "unit": case.unit, **about}
        self.found |= store[self.key] if self.key in store else {"rounds": []}

    @property
    def rounds(self) -> list[dict]:
        return self.found["rounds"]

    def add(self, round: dict | None = None, **facts) -> None:
        """Keep a round, or facts about the case, at once."""
        if round:
            self.rounds.append(round)
        self.found |= facts
        self.store.add({self.key: self.found})


def identity(case: Case) -> dict:
    """All that the times of a case depend on, as a JSON object."""
    return {
        "settings": case.settings,
        "machine": hardware(),
        "versions": versions(),
        "code": code_of("benchmarks/harness.py", *case.sources),
    }


def code_of(*patterns: str) -> str:
    """A digest of the program in the files that match, whatever their comments say."""
    return key_of([code(path) for pattern in patterns for path in sorted(ROOT.glob(pattern))])[:16]


def code(path: Path) -> str:
    """The program in a Python file without what does not run: comments, docstrings, line breaks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not is_text(one)]
    return ast.dump(tree)


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def read_rows(file: Path) -> list[dict]:
    """The rows of a file of results; none if it is not there."""
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []


def write_rows(file: Path, rows: list[dict], **about) -> None:
    """Replace a file of results at once: {**about, "rows": rows}."""
    text = json.dumps({**about, "rows": rows}, indent=1) + "\n"
    write_whole(file, text.encode())


# --- a process for each case ---------------------------------------------------------------


def from_a_child(work: Callable, *given, log: Path | str = os.devnull) -> Iterator[dict]:
    """What `work(send, *given)` sends from a new process, as it comes.

    A process that has no memory left, is killed or raises ends alone, and the last thing yielded is
    {"failed": why}; its memory is all its own. `log`: the file that gets all it prints.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(HEAVY)  # imported once for all children
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_the_child, args=(work, given, str(log), sender))
    child.start()
    sender.close()  # or the end of the child would not be seen
    try:
        while True:
            yield receiver.recv()
    except EOFError:
        child.join()
        if child.exitcode:
            yield {"failed": f"its process died (exit code {child.exitcode}); is there memory?"}
    finally:
        child.terminate()
        child.join()


def _in_the_child(work, given, log, pipe):
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        work(pipe.send, *given)
    except Exception as error:
        traceback.print_exc()
        words = str(error).strip().splitlines() or [""]
        pipe.send({"failed": f"{type(error).__name__}: {words[0]}"})


def rounds_of(send: Callable, case: Case, have: int, folder: str) -> None:
    """Build a case's Contest in `folder` and send its facts, then the rounds after `have`."""
    contest = case.build(case.settings, folder)
    send(
        {
            "sides": list(contest.sides),
            "device": contest.device,
            "notes": contest.notes,
            "value": contest.value,
            "flop": {name: side.flop for name, side in contest.sides.items()},
            "memory_gb": warm_up(contest),
        }
    )
    for index in range(have, case.rounds):
        send({"round": one_round(contest, index)})
