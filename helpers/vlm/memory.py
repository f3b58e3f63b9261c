"""The budget before the run: memory and image tokens of a DPO step, from shapes alone.

    model = smolvlm.shapes(smolvlm.config("256M"))     # shapes only; or those of an AutoConfig
    plan = plan_for(track, tiles=1, text_tokens=30, answer_tokens=150)
    print(table({**ways(model, plan), "this track": budget(model, plan)}))
    print(verdict(model, plan, this_machine()))

What weights need is counted exactly; what a step holds besides is in `vlm.activations`, with
how it was checked. GB are 1e9 bytes, as torch counts allocations; the GPU's own context and the
gaps of torch's allocator come on top, for which a verdict leaves a tenth of the memory free.
"""

from dataclasses import dataclass, fields, replace

from PIL import Image
from torch import nn

from helpers.setup.machine import precision
from helpers.vlm.activations import BYTES, at_the_peak, text_linears
from helpers.vlm.smolvlm import tile_tokens

# A weight in NF4 with double quantisation: 4 bits, one byte for 64 weights, and one float32 for 256
# of those bytes (arXiv 2305.14314).
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
SPARE = 0.1  # share of the memory that a verdict leaves free; a rule of thumb, not measured

WAYS = {
    "full float32": {"rank": None, "dtype": "float32", "autocast": None, "quantize": False},
    "bf16 LoRA": {"dtype": "bfloat16", "autocast": "bf16", "quantize": False},
    "QLoRA": {"dtype": "bfloat16", "autocast": "bf16", "quantize": True},
}


class BudgetError(ValueError):
    """The plan or the model cannot be counted; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """What decides the memory of a step. Tiles and tokens are those of one row of the batch."""

    pairs: int  # on the device at once: the batch size, without accumulation
    tiles: int  # pieces of one picture that the vision tower reads
    text_tokens: int  # of the prompt, without the picture
    answer_tokens: int  # of the longest answer; TRL pads the others to it
    rank: int | None = 16  # of the adapter; None trains every weight beside a second model
    dtype: str = "float32"  # of the base
    autocast: str | None = None  # "fp16", "bf16" or None
    quantize: bool = False
    checkpointing: bool = False  # of activations
    shared: bool = False  # each picture once a pair (helpers.dpo.shared_images), not as TRL does
    device: str = "cpu"

    def __post_init__(self):
        for name in ("pairs", "tiles", "text_tokens", "answer_tokens", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BudgetError(f"{name} is {value}: it must be at least 1")
        if self.dtype not in BYTES:
            raise BudgetError(f"unknown dtype {self.dtype!r}: choose {', '.join(BYTES)}")
        if self.rank is None and (self.quantize or self.dtype != "float32"):
            raise BudgetError(
                "without an adapter (rank=None) the base itself is trained, in float32: set "
                "dtype='float32' and quantize=False, or give a rank"
            )
        if self.rank is None and self.shared:
            raise BudgetError("pictures are shared where the tower is frozen: give a rank")

    @property
    def size(self):
        """Bytes of a number that the towers compute with."""
        return 2 if self.autocast else BYTES[self.dtype]


@dataclass(frozen=True)
class Budget:
    """Bytes at the peak of a step, by part; `image_tokens` of a pair, its picture in both rows."""

    weights: float
    reference: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    image_tokens: int

    @property
    def total(self):
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(field.name for field in fields(Budget) if field.name != "image_tokens")


def plan_for(track, tiles, text_tokens, answer_tokens, **changes):
    """The Plan of a track for pictures and texts of this size; `changes` win."""
    plan = {
        "pairs": track.batch_size,
        "rank": track.lora_rank,
        "dtype": track.dtype,
        "autocast": track.autocast,
        "quantize": track.quantize,
        "checkpointing": track.checkpointing,
        "device": track.device,
    }
    return Plan(
        tiles=tiles, text_tokens=text_tokens, answer_tokens=answer_tokens, **{**plan, **changes}
    )


def budget(model, plan):
    """The Budget of one DPO step with a Plan, from the second step on: AdamW has its moments then.

    `model` is an Idefics3 model (SmolVLM), best on the meta device (smolvlm.shapes); the
    plan says how it will be loaded. Raises BudgetError for another architecture.
    """
    if model.config.model_type != "idefics3":
        raise BudgetError(
            f"{type(model).__name__} is a {model.config.model_type}: this arithmetic is that of "
            "SmolVLM (idefics3); for another model measure one step with one pair"
        )
    base, adapter = base_bytes(model, plan), adapter_weights(model, plan.rank or 0)
    trained = adapter or model.num_parameters()
    activations, logits = at_the_peak(model, plan)
    return Budget(
        weights=base,
        # With an adapter the reference is the same base, the adapter off: nothing is held twice.
        reference=0 if adapter else base,
        adapter=4 * adapter,  # what is trained is float32: weight, gradient, AdamW's two moments
        gradients=4 * trained,
        optimizer=8 * trained,
        activations=activations,
        logits=logits,
        image_tokens=2 * plan.tiles * tile_tokens(model.config),
    )


def ways(model, plan):
    """Budgets, by name, of the same batch trained in three ways: all weights, LoRA, QLoRA.

    The comparison of https://huggingface.co/blog/dpo_vlm, without the second model that the post
    counts for LoRA and that its code does not load.
    """
    rank = plan.rank or 16
    return {n: budget(model, replace(plan, **{"rank": rank, **way})) for n, way in WAYS.items()}


def table(budgets):
    """Text: a column for each of `budgets` (a dictionary by name), a line for each part, in GB."""
    lines = ["GB".ljust(18) + "".join(name.rjust(16) for name in budgets)]
    for part in (*PARTS, "total"):
        cells = (f"{getattr(found, part) / 1e9:16.2f}" for found in budgets.values())
        lines.append(part.ljust(18) + "".join(cells))
    tokens = "".join(f"{found.image_tokens:16d}" for found in budgets.values())
    return "\n".join([*lines, "image tokens/pair".ljust(18) + tokens])


# --- tokens of a picture, weights of a model -----------------------------------------------


def image_tokens(processor, width, height):
    """How many positions a picture of this size (pixels) takes in the prompt: counted, not guessed.

    Only the feature positions count; the row, column and border markers come on top.
    """
    picture = Image.new("RGB", (width, height))
    batch = processor(images=[[picture]], text=[processor.image_token])
    return batch["input_ids"][0].count(processor.image_token_id)


def tiles(processor, width, height):
    """How many tiles an Idefics3Processor makes of a picture of this size (pixels)."""
    return image_tokens(processor, width, height) // processor.image_seq_len


def base_bytes(model, plan):
    """Bytes of the base as loaded. In 4 bits are its linear layers, except the output layer."""
    weights = model.num_parameters()
    linear = sum(
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    )
    small = linear if plan.quantize else 0
    return small * NF4 + (weights - small) * BYTES[plan.dtype]


def adapter_weights(model, rank):
    """How many weights a LoRA adapter on the language model has: rank x (in + out) a layer."""
    return sum(rank * (x.in_features + x.out_features) for x in text_linears(model))


# --- the verdict ---------------------------------------------------------------------------


def verdict(model, plan, machine):
    """Text: does the Plan fit a helpers.setup.machine.Machine, and if not, what to turn down first.

    Each mend comes with the GB it brings on top of those before it, until the plan fits.
    """
    have = machine.memory_gib * 2**30 / 1e9
    need = budget(model, plan).total / 1e9
    room = f"{need:.1f} GB at the peak, {have:.1f} GB on {machine.name}"
    if need <= have * (1 - SPARE):
        return f"It fits: {room}."
    mends = []
    for name, change in _mends(plan, machine).items():
        changed = replace(plan, **change)
        less = budget(model, changed).total / 1e9
        if less < need:
            mends.append(f"{name} ({need - less:.1f} GB less)")
            plan, need = changed, less
        if need <= have * (1 - SPARE):
            break
    end = f"Then it needs {need:.1f} GB."
    if need > have * (1 - SPARE):
        end = f"Even then it needs {need:.1f} GB: take a smaller model."
    todo = f"Turn down, in this order: {', '.join(mends)}. " if mends else ""
    return f"It does not fit: {room}, of which {SPARE:.0%} stay free. {todo}{end}"


def _mends(plan, machine):
    """What to turn down, the cheapest first: the first cost time, the last costs precision."""
    small = precision(machine, quantize=True)
    return {
        "an adapter of rank 16": {"rank": plan.rank or 16},
        "one pair at a time": {"pairs": 1},
        "one tile a picture": {"tiles": 1},
        "activation checkpointing": {"checkpointing": True},
        "a base in 4 bits": {"quantize": True, "dtype": small.dtype, "autocast": small.autocast},
    }
