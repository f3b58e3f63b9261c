"""How fast are the answers? One at a time, in batches, longest first; probes without generating.

    OMP_NUM_THREADS=1 python -m benchmarks.generation      # 3.5 minutes of CPU time

Every way does the same items of the pocket world in the same process, in turn, several rounds; a
ratio compares two ways of one round, so that a neighbour on the same machine slows both. Reported
are medians over the rounds and [lowest, highest]. Writes benchmarks/results/generation.json.
`benchmarks.bench` runs the same ways of one kind as a Contest of benchmarks.side_by_side.

The items: `captions` of 1,000 scenes; `mixed`, as many captions and generated answers to probes in
random order; and 1,000 `probes`, generated or read off the first token.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm.auto import tqdm

from benchmarks import flops
from benchmarks.side_by_side import CLOCKS, Contest, Side, processor_name, spread, timed
from helpers.evaluation.metrics import parse_yes_no
from helpers.pairs.format import turns
from helpers.vlm import pocket, smolvlm
from helpers.vlm.answers import answering, answers, yes_no_answers
from helpers.world import scenes as world

RESULTS = Path(__file__).parent / "results" / "generation.json"
TOKENS = 64


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--items", type=int, default=1000)
    options.add_argument("--alone", type=int, default=200, help="items done one at a time")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--out", type=Path, default=RESULTS)
    options = options.parse_args()
    model, processor = pocket.load()
    rounds = [one_round(model, processor, options) for _ in tqdm(range(options.rounds))]
    report = {
        "command": "OMP_NUM_THREADS=1 python -m benchmarks.generation "
        f"--items {options.items} --alone {options.alone} --rounds {options.rounds} "
        f"--batch-size {options.batch_size}",
        "machine": f"{processor_name()}, {torch.get_num_threads()} torch threads, "
        f"torch {torch.__version__}",
        **summary(rounds),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def one_round(model, processor, options):
    """({kind of items: {way: items per second}}, {kind: {way: how many answers are the same}})"""
    rates, same = {}, {}
    for kind, (images, asked) in items(options.items).items():
        ways = ways_of(kind, model, processor, images, asked, options)
        found = {way: paced(run) for way, run in ways.items()}
        rates[kind] = {way: rate for way, (_, rate) in found.items()}
        same[kind] = agreement({way: texts for way, (texts, _) in found.items()})
    return rates, same


def ways_of(kind, model, processor, images, asked, options):
    few, size = slice(0, options.alone), options.batch_size
    given = model, processor, images, asked
    ways = {
        "one at a time": lambda: by_hand(model, processor, images[few], asked[few]),
        "in batches": lambda: in_order(*given, size),
        "longest first": lambda: answers(*given, batch_size=size, max_new_tokens=TOKENS),
    }
    if kind == "probes":
        ways["first token"] = lambda: yes_no_answers(*given, batch_size=size)
    return ways


def items(count):
    """Pictures and questions, the same in every round."""
    scenes = world.sample_scenes(count, "iid", "test", seed="generation")
    pictures, rng = [world.draw(scene) for scene in scenes], random.Random(0)
    probes = [rng.choice(world.probes(scene)).question for scene in scenes]
    mixed = [rng.choice((world.DESCRIBE, probe)) for probe in probes]
    return {
        "captions": (pictures, [world.DESCRIBE] * count),
        "mixed": (pictures, mixed),
        "probes": (pictures, probes),
    }


def by_hand(model, processor, images, asked):
    """As a model's card shows it: one prompt, no padding, `generate`, decode."""
    texts = []
    for image, question in zip(images, asked, strict=True):
        prompt = processor.apply_chat_template(
            turns(question), tokenize=False, add_generation_prompt=True
        )
        batch = processor(images=[image], text=[prompt], return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=TOKENS,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return texts


def in_order(model, processor, images, asked, size):
    """The helper's batches, but as the items come and not by length."""
    job = answering(model, processor, images, asked, TOKENS, temperature=0)
    rows = range(len(images))
    return [text for start in rows[::size] for text in job.run(rows[start : start + size])]


def paced(run):
    """(texts, {clock: items per second})"""
    texts, seconds = timed(run)
    return texts, {clock: len(texts) / value for clock, value in seconds.items()}


def agreement(found):
    """{way: on how many items its answer is that of "longest first"}"""
    counts = {}
    for way, texts in found.items():
        reference = found["longest first"][: len(texts)]
        if way == "first token":
            reference = [parse_yes_no(text) for text in reference]
        same = sum(a == b for a, b in zip(texts, reference, strict=True))
        counts[way] = f"{same} of {len(texts)}"
    return counts


def summary(rounds):
    compared = {
        "captions": [("longest first", "one at a time")],
        "mixed": [("longest first", "one at a time"), ("longest first", "in batches")],
        "probes": [("first token", "longest first"), ("first token", "one at a time")],
    }
    rates = [rate for rate, _ in rounds]
    return {
        "items_per_second": {
            kind: {
                way: {clock: spread([r[kind][way][clock] for r in rates]) for clock in CLOCKS}
                for way in ways
            }
            for kind, ways in rates[0].items()
        },
        "times_as_fast": {
            f"{kind}: {fast} / {slow}": {
                clock: spread([r[kind][fast][clock] / r[kind][slow][clock] for r in rates])
                for clock in CLOCKS
            }
            for kind, pairs in compared.items()
            for fast, slow in pairs
        },
        "same_answers": rounds[0][1],
    }


# --- as a Contest --------------------------------------------------------------------------


def build(settings, folder):
    """The Contest of the ways to answer the items of one `kind`; `folder` is not needed."""
    options = SimpleNamespace(**settings)
    model, processor = pocket.load()
    images, asked = items(options.items)[options.kind]
    ways = ways_of(options.kind, model, processor, images, asked, options)
    read = prompt_tokens(processor, images, asked)
    said = [len(processor.tokenizer(text)["input_ids"]) + 1 for text in ways["longest first"]()]
    sides = {}
    for way, run in ways.items():
        count = options.alone if way == "one at a time" else options.items
        new = [1 if way == "first token" else min(length, TOKENS) for length in said[:count]]
        sides[way] = Side(run, items=count, flop=mean_work(model.config, read[:count], new))
    return Contest(sides, notes={"items": options.items, "one at a time": options.alone})


def prompt_tokens(processor, images, asked):
    texts = [
        processor.apply_chat_template(turns(q), tokenize=False, add_generation_prompt=True)
        for q in asked
    ]
    batch = processor(images=[[image] for image in images], text=texts, padding=True)
    return [sum(mask) for mask in batch["attention_mask"]]


def mean_work(config, read, new):
    """The least FLOP of an answer, the mean over prompts of `read` and answers of `new` tokens."""
    shapes, sizes = smolvlm.shapes(config), Counter(zip(read, new, strict=True))
    return sum(n * flops.answer(shapes, 1, *size) for size, n in sizes.items()) / len(read)


if __name__ == "__main__":
    main()
