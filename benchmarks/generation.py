"""How fast are the answers? One at a time, in batches, longest first; probes without generating.

    OMP_NUM_THREADS=1 python -m benchmarks.generation      # 3.5 minutes of CPU time

Runs three cases of `benchmarks.bench`, with its options. Every way does the same items of the
pocket world; the number below the table is how many of its answers are those of "longest first".

The items: `captions` of 1,000 scenes; `mixed`, as many captions and generated answers to probes in
random order; and 1,000 `probes`, generated or read off the first token.
"""

import operator
import random
import sys
from collections import Counter

import torch

from benchmarks import flops
from benchmarks.harness import Case, Contest, Side
from helpers.evaluation.metrics import parse_yes_no
from helpers.pairs.format import turns
from helpers.vlm import pocket, smolvlm
from helpers.vlm.answers import answering, answers, yes_no_answers
from helpers.world import scenes as world

TOKENS = 64
ALONE, FIRST_TOKEN = "one at a time", "first token"
SOURCES = ("benchmarks/generation.py", "helpers/vlm/*.py")


def cases():
    settings = {"items": 1000, "alone": 200, "batch_size": 64}
    asked = {"captions": "captions", "mixed": "captions and answers to probes", "probes": "probes"}
    return [
        Case(kind, f"Pocket model, {what}", build, {**settings, "kind": kind}, SOURCES,
             rounds=5, seconds=25, unit="an answer")
        for kind, what in asked.items()
    ]  # fmt: skip


def build(settings, folder):
    """The Contest of the ways to answer `items` of one `kind`; `folder` is not needed.

    One at a time only the first `alone` items are answered.
    """
    model, processor = pocket.load()
    images, asked = items(settings["items"])[settings["kind"]]
    size, few = settings["batch_size"], slice(0, settings["alone"])
    given = model, processor, images, asked
    ways = {
        ALONE: lambda: by_hand(model, processor, images[few], asked[few]),
        "in batches": lambda: in_order(*given, size),
        "longest first": lambda: answers(*given, batch_size=size, max_new_tokens=TOKENS),
    }
    reference = ways["longest first"]()
    if settings["kind"] == "probes":
        ways[FIRST_TOKEN] = lambda: yes_no_answers(*given, batch_size=size)
    read = prompt_tokens(processor, images, asked)
    said = [len(processor.tokenizer(text)["input_ids"]) + 1 for text in reference]
    sides = {}
    for way, run in ways.items():
        count = settings["alone"] if way == ALONE else settings["items"]
        new = [1 if way == FIRST_TOKEN else min(length, TOKENS) for length in said[:count]]
        expected = map(parse_yes_no, reference) if way == FIRST_TOKEN else reference
        sides[way] = Side(
            lambda run=run, said=list(expected): float(sum(map(operator.eq, run(), said))),
            items=count,
            flop=mean_work(model.config, read[:count], new),
        )
    notes = {"items": settings["items"], ALONE: settings["alone"]}
    return Contest(sides, notes=notes, value="answers as longest first")


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
        prompt = prompt_of(processor, question)
        batch = processor(images=[image], text=[prompt], return_tensors="pt")
        padding = processor.tokenizer.pad_token_id
        with torch.inference_mode():
            tokens = model.generate(
                **batch, do_sample=False, max_new_tokens=TOKENS, pad_token_id=padding
            )
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return texts


def in_order(model, processor, images, asked, size):
    """The helper's batches, but as the items come and not by length."""
    job = answering(model, processor, images, asked, TOKENS, temperature=0)
    rows = range(len(images))
    return [text for start in rows[::size] for text in job.run(rows[start : start + size])]


def prompt_of(processor, question):
    messages = turns(question)
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prompt_tokens(processor, images, asked):
    texts = [prompt_of(processor, question) for question in asked]
    batch = processor(images=[[image] for image in images], text=texts, padding=True)
    return [sum(mask) for mask in batch["attention_mask"]]


def mean_work(config, read, new):
    """The least FLOP of an answer, the mean over prompts of `read` and answers of `new` tokens."""
    shapes, sizes = smolvlm.shapes(config), Counter(zip(read, new, strict=True))
    return sum(n * flops.answer(shapes, 1, *size) for size, n in sizes.items()) / len(read)


if __name__ == "__main__":
    from benchmarks import bench

    bench.main(["--only", *(case.name for case in cases()), *sys.argv[1:]])
