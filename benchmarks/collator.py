"""Making a batch: TRL's collator, which processes each picture twice, and the one that does once.

    contest = build({"edge": 2048, "picture": [640, 640], "pairs": 2}, folder)

SmolVLM-256M's processor, photographs as decoded pixels, conversations in. `benchmarks.bench` runs
it. The least floating-point work is one scale and one shift of each colour value of each tile; what
takes the time is resizing, which counts in whole numbers, and moving bytes.
"""

from functools import partial

from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from benchmarks.harness import Case, Contest, Side
from benchmarks.rehearsal import TILES, photograph_pairs
from helpers.dpo.shared_images import EachImageOnce
from helpers.vlm import pocket, smolvlm
from helpers.vlm.load import limit_edge

COLLATORS = {"TRL": DataCollatorForVisionPreference, "shared": EachImageOnce}
SOURCES = ("benchmarks/collator.py", "helpers/dpo/*.py")


def cases():
    settings = {"picture": [640, 640], "pairs": 2}
    return [
        Case(f"collator_{name}", f"Collator, {name.replace('_', ' ')}", build,
             {**settings, "edge": edge}, SOURCES, rounds=9, seconds=2, unit="a pair")
        for name, edge in TILES.items()
    ]  # fmt: skip


def build(settings, folder):
    """The Contest of both collators on the same rows; `folder` is not needed."""
    processor = smolvlm.processor("256M", pocket.build_tokenizer(), pocket.CHAT_TEMPLATE)
    limit_edge(processor, settings["edge"])
    rows = list(photograph_pairs(settings["pairs"], tuple(settings["picture"])))
    make = {name: partial(batch, kind(processor), rows) for name, kind in COLLATORS.items()}
    pixels = make["shared"]()["pixel_values"]
    sides = {
        name: Side(run, items=len(rows), flop=2 * pixels.numel() / len(rows))
        for name, run in make.items()
    }
    megabytes = {name: round(run()["pixel_values"].nbytes / 1e6, 1) for name, run in make.items()}
    notes = {"pairs": len(rows), "tiles": pixels.shape[1], "MB of pixels in a batch": megabytes}
    return Contest(sides, notes=notes)


def batch(collator, rows):
    return collator([dict(row) for row in rows])  # it changes the rows
