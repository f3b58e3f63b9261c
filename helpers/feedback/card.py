"""The card of pairs that a run made: how they came to be, and what was dropped where.

print(funnel_table(steps))
text = run_card("truth", prompts, pipeline, settings, pairs, steps, log)     # its README.md
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass

from helpers.feedback.pairing import length_of
from helpers.feedback.stages import as_json, name_of, settings_of
from helpers.setup.hub import TAGS

SHOWN = 20  # errors


@dataclass(frozen=True)
class Step:
    """What went into a stage, and how many were dropped for what; the others came out."""

    stage: str
    unit: str
    entered: int
    dropped: dict[str, int]


def funnel_table(steps: list[Step]) -> str:
    """A Markdown table, a line for each stage and for each further reason; readable as it is."""
    lines = []
    for step in steps:
        reasons = [f"{count:,} {reason}" for reason, count in step.dropped.items() if count] or [""]
        left = step.entered - sum(step.dropped.values())
        lines.append((step.stage, step.unit, f"{step.entered:,}", f"{left:,}", reasons[0]))
        lines += [("", "", "", "", reason) for reason in reasons[1:]]
    return _table(("stage", "of", "in", "out", "dropped"), lines)


def run_card(name, prompts, pipeline, settings, pairs, steps, log) -> str:
    """The README.md of a run's pairs (a Dataset); `log`: what its stages gave, item by item."""
    least = settings.least_image_score
    floor = "" if least is None else f", with a score of {least:g} or more"
    digest = hashlib.sha256(as_json([asdict(p) for p in prompts], "a prompt").encode()).hexdigest()
    limits = {name: value for name, value in asdict(settings.filters).items() if value is not None}
    times = "once" if settings.samples == 1 else f"{settings.samples} times"
    errors = [line["error"] for line in log if "error" in line]
    skipped = f"{len(errors):,} items were skipped because of an error:\n\n" if errors else ""
    skipped += "\n".join(f"- {error}" for error in errors[:SHOWN])
    if len(errors) > SHOWN:
        skipped += f"\n- and {len(errors) - SHOWN:,} more, in `items.jsonl`"
    counts = Counter(
        (side, json.loads(text)[side]["answerer"])
        for text in pairs["origin_split"]
        for side in ("chosen", "rejected")
    )
    chosen = [  # an answerer that always loses teaches its style
        (by, f"{counts['chosen', by]:,}", f"{counts['rejected', by]:,}")
        for by in sorted({by for _, by in counts})
    ]
    head = "\n".join(f"- {tag}" for tag in (*TAGS, "synthetic"))
    answerers = "\n".join(f"   - {_described(stage)}" for stage in pipeline.answerers)
    return f"""---
license: unknown
task_categories:
- image-text-to-text
tags:
{head}
configs:
- config_name: default
  data_files: pairs.parquet
---
# {name}

{len(pairs):,} preference pairs for Direct Preference Optimization of a vision language model, in
RLAIF-V's columns: `image`, `question`, `chosen`, `rejected`, and where they came from. Made by
`helpers.feedback.pipeline`; nobody looked at them one by one.

## How every pair came to be

1. **Prompts**: {len(prompts)}, digest {digest[:16]}.
2. **Pictures**: {settings.candidates} for each prompt, by {_described(pipeline.generator)}.
3. **Image reward**: {_described(pipeline.image_reward)}.
   Pictures of each prompt that went on: the best {settings.keep}{floor}.
4. **Answerers**: each was asked {times} about every picture.
{answerers}
5. **Answer reward**: {_described(pipeline.answer_reward)}.
6. **Pairing**: {_described(pipeline.pairing)}.
7. **Filters**: ties, empty answers and equal texts went, and by these limits
   {_listed(limits)}.

**Seeds**: the run's seed is {settings.seed}. Each item has a seed of its own, of the run's seed,
the stage and the item's key. Stages were called on {settings.batch_size} items at a time.

**Of each pair** `origin_split` holds, as JSON: the prompt, what the generator knew of the picture,
its key, seed and score; and of both answers key, answerer, seed, score and what the score was made
of. All candidates, answers and scores, also those that made no pair, are in `items.jsonl`.

## What was dropped where

{funnel_table(steps)}

{skipped or "No item was skipped because of an error."}

## Who was chosen

{_table(("answerer", "chosen", "rejected"), chosen)}

**Length**: {length_of(pairs)}.

## Limits

A preference here is what the answer reward says, with its mistakes. Licence: that of the generator
and the answerers, which are named above; look them up before you publish.
"""


def _described(stage):
    """`name` (setting value, ...)"""
    settings = settings_of(stage)
    return f"`{name_of(stage)}`" + (f" ({_listed(settings)})" if settings else "")


def _listed(settings):
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items()) or "none"


def _table(head, lines):
    rows = [head, tuple("-" * len(cell) for cell in head), *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
