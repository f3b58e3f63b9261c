"""What a run leaves: its pairs, what was dropped where, and a card that says how they came to be.

print(funnel_table(steps))
write_results(folder, pairs, identity, steps, errors)
"""

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard

from helpers.feedback.filters import length_of
from helpers.feedback.store import write
from helpers.setup.hub import TAGS

SHOWN = 20  # errors


@dataclass(frozen=True)
class Step:
    """What went into a stage, and how many were dropped for what; the others came out."""

    stage: str
    unit: str
    entered: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def left(self):
        return self.entered - sum(self.dropped.values())


def funnel_table(steps):
    """A Markdown table, a line for each stage and for each further reason; readable as it is."""
    lines = []
    for step in steps:
        reasons = [f"{count:,} {reason}" for reason, count in step.dropped.items() if count] or [""]
        lines.append((step.stage, step.unit, f"{step.entered:,}", f"{step.left:,}", reasons[0]))
        lines += [("", "", "", "", reason) for reason in reasons[1:]]
    return _table(("stage", "of", "in", "out", "dropped"), lines)


def write_results(folder, pairs, identity, steps, errors):
    """pairs.parquet, funnel.json and README.md, always the same bytes for the same run."""
    buffer = io.BytesIO()
    pq.write_table(pairs.data.table, buffer, row_group_size=100)  # to_parquet has a bar of its own
    write(folder / "pairs.parquet", buffer.getvalue())
    write(folder / "funnel.json", json.dumps([asdict(step) for step in steps], indent=1).encode())
    card = run_card(folder.name, identity, pairs, steps, errors)
    write(folder / "README.md", str(card).encode())


def run_card(name, identity, pairs, steps, errors):
    """A DatasetCard of raw pairs (a Dataset) made by the run of `identity`.

    `errors`: {(stage, key): sentence} of the items that were skipped.
    """
    drawn, asked = identity["pictures"], identity["answers"]
    least = asked["least_image_score"]
    floor = "" if least is None else f", with a score of {least:g} or more"
    filters = {**identity["answer_scores"], **identity["pairs"]}
    limits = {k: v for k, v in filters.items() if v is not None and not isinstance(v, dict)}
    head = "\n".join(f"- {tag}" for tag in (*TAGS, "synthetic"))
    return DatasetCard(f"""---
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

1. **Prompts**: {drawn["prompts"]}.
2. **Pictures**: {drawn["candidates"]} for each prompt, by {_stage(drawn["generator"])}.
3. **Image reward**: {_stage(identity["image_scores"]["image_reward"])}.
   Pictures of each prompt that went on: the best {asked["keep"]}{floor}.
4. **Answerers**: each was asked {_times(asked["samples"])} about every picture.
{_answerers(asked["answerers"])}
5. **Answer reward**: {_stage(identity["answer_scores"]["answer_reward"])}.
6. **Pairing**: {_stage(identity["pairs"]["pairing"])}.
7. **Filters**: ties, empty answers and equal texts went, and by these limits
   {_settings(limits)}.

**Seeds**: the run's seed is {drawn["seed"]}. Each item has a seed of its own, of the run's seed,
the stage and the item's key. Stages were called on {drawn["batch_size"]} items at a time.

**Of each pair** `origin_split` holds, as JSON: the prompt, what the generator knew of the picture,
its key, seed and score; and of both answers key, answerer, seed, score and what the score was made
of. All candidates, answers and scores, also those that made no pair, are in the parquet files of
`pictures`, `image_scores`, `answers` and `answer_scores`.

## What was dropped where

{funnel_table(steps)}

{_skipped(errors)}

## Who was chosen

{_chosen(pairs)}

**Length**: {length_of(pairs)}.

## Limits

A preference here is what the answer reward says, with its mistakes. Licence: that of the generator
and the answerers, which are named above; look them up before you publish.
""")


def _stage(stage):
    """`name` (setting value, ...)"""
    settings = {key: value for key, value in stage.items() if key != "name"}
    return f"`{stage['name']}`" + (f" ({_settings(settings)})" if settings else "")


def _times(count):
    return "once" if count == 1 else f"{count} times"


def _settings(settings):
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items()) or "none"


def _answerers(answerers):
    stages = ({"name": name, **settings} for name, settings in answerers.items())
    return "\n".join(f"   - {_stage(stage)}" for stage in stages)


def _skipped(errors):
    if not errors:
        return "No item was skipped because of an error."
    lines = [f"{len(errors):,} items were skipped because of an error:", ""]
    lines += [f"- {sentence}" for sentence in list(errors.values())[:SHOWN]]
    if len(errors) > SHOWN:
        lines.append(f"- and {len(errors) - SHOWN:,} more, in `errors.jsonl`")
    return "\n".join(lines)


def _chosen(pairs):
    """How often each answerer was chosen and rejected: one that always loses teaches its style."""
    counts = {side: Counter() for side in ("chosen", "rejected")}
    for text in pairs["origin_split"]:
        told = json.loads(text)
        for side, count in counts.items():
            count[told[side]["answerer"]] += 1
    names = sorted({*counts["chosen"], *counts["rejected"]})
    lines = [(name, *(f"{count[name]:,}" for count in counts.values())) for name in names]
    return _table(("answerer", "chosen", "rejected"), lines)


def _table(head, lines):
    rows = [head, tuple("-" * len(cell) for cell in head), *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
