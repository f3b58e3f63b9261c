"""Rehearse the GPU tracks at their real size: peak memory and seconds a pair, beside the budget.

    python -m benchmarks.gpu_rehearsal            # on a GPU: results/gpu_rehearsal.json
    python -m benchmarks.gpu_rehearsal --cpu      # two of them on the CPU: results/cpu_budget.json
    python -m benchmarks.gpu_rehearsal --tiny     # every line on the CPU, in small; stores nothing

SmolVLM-256M, 500M and 2.2B have their published dimensions and random weights, pairs a photograph
of 640 x 480 pixels, and training is the course's own (load_policy, dpo_trainer) with TRL's trainer,
whose memory the budget of lesson 03 predicts. The T4 cases take the precision of a T4 and cap
torch's allocator at what torch reports of its memory; on a real T4 the CUDA context comes out of
that too. Each case has a process of its own, so that one without memory does not end the others;
that is a finding and is stored. Cases that are stored already for this machine are not run again.
"""

import argparse
import platform
from pathlib import Path

import torch
import transformers
import trl

from benchmarks.harness import RESULTS, from_a_child, read_rows, write_rows
from benchmarks.rehearsal import Case, rehearse
from helpers.setup.machine import Machine, precision, this_machine

T4 = Machine("cuda", "Tesla T4", (7, 5), 14.6)
AMPERE = Machine("cuda", "Ampere or newer", (8, 0), 24.0)


def on(machine, size, cap_gib=None, **changes):
    """The Case of a SmolVLM in the precision of a Machine."""
    chosen = precision(machine, changes.get("quantize", False))
    return Case(size, chosen.dtype, chosen.autocast, machine.kind, cap_gib, **changes)


CASES = [
    on(T4, "256M", 14.6),  # the t4 track
    on(T4, "256M", 14.6, checkpointing=False),
    on(T4, "256M", 14.6, edge=2048),
    on(T4, "500M", 14.6),
    on(T4, "500M", 14.6, edge=2048),
    on(T4, "2.2B", 14.6, edge=384),
    on(T4, "2.2B", 14.6, edge=384, quantize=True),
    on(T4, "2.2B", 14.6, edge=1536),
    on(AMPERE, "256M"),
    on(AMPERE, "500M"),
    on(AMPERE, "2.2B", edge=384),
    on(AMPERE, "2.2B", edge=384, quantize=True),  # the ampere track
    on(AMPERE, "2.2B", edge=1536, quantize=True),
]
CPU_CASES = [
    Case("256M", "float32", None, "cpu", None, pairs, edge, checkpointing=kept)
    for pairs, edge in ((1, 512), (2, 512), (1, 1024))
    for kept in (False, True)
]
CPU_CASES += [
    Case("256M", "float32", "bf16", "cpu", None, 1, checkpointing=False),
    Case("256M", "float32", "bf16", "cpu", None, 1, checkpointing=True),
    Case("256M", "bfloat16", "bf16", "cpu", None, 1, checkpointing=False),
    Case("500M", "float32", None, "cpu", None, 1, checkpointing=False),
]
TINY_CASES = [
    Case("256M", "float32", None, "cpu"),
    Case("2.2B", "float32", None, "cpu", edge=768, quantize=True, checkpointing=False),
]


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cpu", action="store_true", help="SmolVLM-256M and 500M on this CPU")
    options.add_argument("--tiny", action="store_true", help="try every line; stores nothing")
    options.add_argument("--out", type=Path, help="where the results go")
    options = options.parse_args(arguments)
    out = options.out or RESULTS / ("cpu_budget.json" if options.cpu else "gpu_rehearsal.json")
    if options.tiny:
        run(TINY_CASES, None, tiny=True)
    elif options.cpu:
        run(CPU_CASES, out, " --cpu")
    elif torch.cuda.is_available():
        run(CASES, out)
    else:
        print("No GPU that torch can use: nothing was rehearsed and nothing written.")


def run(cases, out, flag="", tiny=False):
    """Every case that is not stored yet; the file `out`, if any, is written after each."""
    rows = read_rows(out) if out else []
    done = {(row["case"], row["machine"]) for row in rows}
    for case in cases:
        if (case.name, hardware()) in done:
            continue
        if case.autocast == "bf16" and case.device == "cuda" and this_machine().capability < (8, 0):
            print(f"{case.name}: not run, this GPU computes no bf16", flush=True)
            continue
        found = list(from_a_child(send_rehearsal, case, tiny))[-1]
        rows.append({"case": case.name, "size": case.size, "machine": hardware(), **found})
        print(line(rows[-1]), flush=True)
        if out:
            write_rows(out, rows, command=f"python -m benchmarks.gpu_rehearsal{flag}")


def send_rehearsal(send, case, tiny):
    send(rehearse(case, tiny))


def hardware():
    """This machine and its software, in words."""
    cpu = f" ({platform.machine()})" if this_machine().kind == "cpu" else ""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{this_machine()}{cpu}, {versions}, trl {trl.__version__}"


def line(row):
    if "failed" in row:
        return f"{row['case']}: {row['failed']}"
    predicted = f"predicted {row['predicted_gb']:.2f} GB" if "predicted_gb" in row else ""
    if "out_of_memory" in row:
        return f"{row['case']}: {row['out_of_memory']}; {predicted}".removesuffix("; ")
    pace = f", {row['seconds_a_pair']:.2f} s a pair" if "seconds_a_pair" in row else ""
    measured = f"measured {row['measured_gb']:.2f} GB, {predicted}"
    return f"{row['case']}: {measured}, ratio {row['ratio']:.3f}{pace}"


if __name__ == "__main__":
    main()
