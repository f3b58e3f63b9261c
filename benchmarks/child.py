"""A case of benchmarks.bench in a process of its own, which says what it finds as it finds it.

    for found in told_by_a_child(case, have=2, folder=folder, log="case.log"):
        record.add(**found)       # first the facts, then a round at a time, or {"failed": why}

A process that has no memory left, is killed or raises ends alone; its memory is all its own.
"""

import multiprocessing
import os
import traceback

from benchmarks.side_by_side import one_round, warm_up

HEAVY = ["benchmarks.dpo_step", "benchmarks.generation"]  # imports all that takes seconds


def told_by_a_child(case, have, folder, log):
    """What a new process says of the case; `have` rounds are there already.

    `folder`: an empty one to work in. `log`: the file that gets all it prints.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(HEAVY)  # imported once for all children
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(case, have, folder, str(log), sender))
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


def tell(case, have, folder, log, pipe):
    """In the child: build, warm up, and send the facts, then each round that is missing."""
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        contest = case.build(case.settings, folder)
        pipe.send({**facts(contest), "memory_gb": warm_up(contest)})
        for index in range(have, case.rounds):
            pipe.send({"round": one_round(contest, index)})
    except Exception as error:
        traceback.print_exc()
        words = str(error).strip().splitlines() or [""]
        pipe.send({"failed": f"{type(error).__name__}: {words[0]}"})


def facts(contest):
    return {
        "sides": list(contest.sides),
        "device": contest.device,
        "notes": contest.notes,
        "flop": {name: side.flop for name, side in contest.sides.items()},
    }
