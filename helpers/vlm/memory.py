"""The budget before the run: memory and image tokens of a DPO step, from shapes alone.

    model = smolvlm.shapes(smolvlm.config("256M"))     # shapes only; or those of an AutoConfig
    plan = plan_for(track, tiles=1, text_tokens=30, answer_tokens=150)
    print(table({**ways(model, plan), "this track": budget(model, plan)}))
    print(verdict(model, plan, this_machine()))

What weights need is counted exactly. What a step holds besides follows from how TRL 1.16 runs it:
the policy reads chosen and rejected, two rows a pair with the picture in both, and holds what its
backward pass needs; the reference reads the same rows and holds nothing; then the backward pass.
Memory peaks where all that is held meets the largest piece of work: a tile of logits, or one block
of a tower. On the CPU this meets the record of torch's allocator (`python -m
benchmarks.gpu_rehearsal --cpu`); a GPU's kernels, autocast and allocator have not been measured.

GB are 1e9 bytes, as torch counts allocations; the GPU's own context and the gaps of torch's
allocator come on top, for which a verdict leaves a tenth of the memory free.
"""

import re
from dataclasses import dataclass, fields, replace

from PIL import Image
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from helpers.setup.machine import Machine, precision
from helpers.setup.tracks import Track
from helpers.vlm.load import TEXT_LINEARS
from helpers.vlm.smolvlm import patches_across, tile_tokens

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# A weight in NF4 with double quantisation: 4 bits, one byte for 64 weights, and one float32 for 256
# of those bytes (arXiv 2305.14314).
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
SPARE = 0.1  # share of the memory that a verdict leaves free; a rule of thumb, not measured
# TRL never holds all logits: it projects this many positions and vocabulary entries at a time.
TILE_POSITIONS, TILE_ENTRIES = 4096, 32768
CPU_COPIES = 7  # float32 copies of the tile where TRL has no Triton kernel, so on the CPU


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
    def size(self) -> int:
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
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(field.name for field in fields(Budget) if field.name != "image_tokens")


def plan_for(track: Track, tiles: int, text_tokens: int, answer_tokens: int, **changes) -> Plan:
    """The Plan of a track for pictures and texts of this size; `changes` win."""
    names = ("dtype", "autocast", "quantize", "checkpointing", "device")
    plan = {name: getattr(track, name) for name in names}
    plan |= {"pairs": track.batch_size, "rank": track.lora_rank, "tiles": tiles}
    plan |= {"text_tokens": text_tokens, "answer_tokens": answer_tokens}
    return Plan(**{**plan, **changes})


def budget(model: PreTrainedModel, plan: Plan) -> Budget:
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
    activations, logits = _at_the_peak(model, plan)
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


def ways(model: PreTrainedModel, plan: Plan) -> dict[str, Budget]:
    """Budgets, by name, of the same batch trained in three ways: all weights, LoRA, QLoRA.

    The comparison of https://huggingface.co/blog/dpo_vlm, without the second model that the post
    counts for LoRA and that its code does not load.
    """
    float32 = replace(plan, rank=None, dtype="float32", autocast=None, quantize=False)
    lora = replace(plan, rank=plan.rank or 16, dtype="bfloat16", autocast="bf16", quantize=False)
    plans = {"full float32": float32, "bf16 LoRA": lora, "QLoRA": replace(lora, quantize=True)}
    return {name: budget(model, way) for name, way in plans.items()}


def table(budgets: dict[str, Budget]) -> str:
    """A column for each of the budgets, by name, a line for each part, in GB."""
    lines = ["GB".ljust(18) + "".join(name.rjust(16) for name in budgets)]
    for part in (*PARTS, "total"):
        cells = (f"{getattr(found, part) / 1e9:16.2f}" for found in budgets.values())
        lines.append(part.ljust(18) + "".join(cells))
    tokens = "".join(f"{found.image_tokens:16d}" for found in budgets.values())
    return "\n".join([*lines, "image tokens/pair".ljust(18) + tokens])


def verdict(model: PreTrainedModel, plan: Plan, machine: Machine) -> str:
    """Does the Plan fit the machine, and if not, what to turn down first?

    Each mend comes with the GB it brings on top of those before it, until the plan fits.
    """
    have = machine.memory_gib * 2**30 / 1e9
    need = budget(model, plan).total / 1e9
    room = f"{need:.1f} GB at the peak, {have:.1f} GB on {machine.name}"
    if need <= have * (1 - SPARE):
        return f"It fits: {room}."
    small, todo = precision(machine, quantize=True), []
    for name, change in {  # the cheapest first: the first cost time, the last costs precision
        "an adapter of rank 16": {"rank": plan.rank or 16},
        "one pair at a time": {"pairs": 1},
        "one tile a picture": {"tiles": 1},
        "activation checkpointing": {"checkpointing": True},
        "a base in 4 bits": {"quantize": True, "dtype": small.dtype, "autocast": small.autocast},
    }.items():
        changed = replace(plan, **change)
        less = budget(model, changed).total / 1e9
        if less < need:
            todo.append(f"{name} ({need - less:.1f} GB less)")
            plan, need = changed, less
        if need <= have * (1 - SPARE):
            end = f"Then it needs {need:.1f} GB."
            break
    else:
        end = f"Even then it needs {need:.1f} GB: take a smaller model."
    order = f"Turn down, in this order: {', '.join(todo)}. " if todo else ""
    return f"It does not fit: {room}, of which {SPARE:.0%} stay free. {order}{end}"


# --- tokens of a picture, weights of a model -----------------------------------------------------


def image_tokens(processor: ProcessorMixin, width: int, height: int) -> int:
    """How many positions a picture of this size (pixels) takes in the prompt: counted, not guessed.

    Only the feature positions count; the row, column and border markers come on top.
    """
    picture = Image.new("RGB", (width, height))
    batch = processor(images=[[picture]], text=[processor.image_token])
    return batch["input_ids"][0].count(processor.image_token_id)


def tiles(processor: ProcessorMixin, width: int, height: int) -> int:
    """How many tiles an Idefics3Processor makes of a picture of this size (pixels)."""
    return image_tokens(processor, width, height) // processor.image_seq_len


def base_bytes(model: PreTrainedModel, plan: Plan) -> float:
    """Bytes of the base as loaded. In 4 bits are its linear layers, except the output layer."""
    weights, small = model.num_parameters(), 0
    if plan.quantize:
        linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        small = sum(layer.weight.numel() for name, layer in linear if name != "lm_head")
    return small * NF4 + (weights - small) * BYTES[plan.dtype]


def text_linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that an adapter sits on."""
    return [layer for name, layer in model.named_modules() if re.fullmatch(TEXT_LINEARS, name)]


def adapter_weights(model: PreTrainedModel, rank: int) -> int:
    """How many weights a LoRA adapter on the language model has: rank x (in + out) a layer."""
    return sum(rank * (x.in_features + x.out_features) for x in text_linears(model))


# --- what a step holds besides -------------------------------------------------------------------
# From trl/trainer/dpo_trainer.py, trl/kernels/chunked_logprob.py, transformers/models/idefics3.


def _at_the_peak(model, plan):
    """(activations, logits) in bytes."""
    text, vision = model.config.text_config, model.config.vision_config
    rows = 2 * plan.pairs  # chosen and rejected
    # Each tile stands between two markers.
    length = plan.tiles * (tile_tokens(model.config) + 2) + plan.text_tokens + plan.answer_tokens
    tokens = rows * length
    read = (plan.pairs if plan.shared else rows) * plan.tiles  # tiles that the tower reads at once
    patches = read * patches_across(model.config) ** 2

    # Chosen and rejected differ in length, so there is an attention mask: SDPA makes numbers of the
    # one of bools in every layer anew.
    layer = tokens * _text_layer(text, plan) + rows * length**2 * plan.size
    work = tokens * 3 * text.intermediate_size * plan.size  # gradients inside the MLP
    if plan.checkpointing:  # only the input of each block is held; one block is made again
        held = text.num_hidden_layers * tokens * text.hidden_size
        if not plan.shared:
            held += vision.num_hidden_layers * patches * vision.hidden_size
        held, work = held * BYTES[plan.dtype], work + layer
    else:
        held = text.num_hidden_layers * layer
        if plan.rank is None:  # a frozen vision tower holds nothing, a trained one does
            block = (8 * vision.hidden_size + 2 * vision.intermediate_size) * plan.size
            held += vision.num_hidden_layers * patches * block
    pixels = read * vision.image_size**2 * (3 * 4 + 8)  # float32 colours, int64 mask
    held += pixels
    if plan.autocast and not plan.quantize and plan.dtype == "float32":
        # Autocast reuses its 16-bit copy of a trained weight only; backward needs those of frozen
        # ones, which stay with their layer.
        copies = 2 * sum(linear.weight.numel() for linear in text_linears(model))
        held += copies / text.num_hidden_layers if plan.checkpointing else copies

    if plan.device == "cuda":  # only the answers are scored, and the kernel works in place
        logits = min(rows * plan.answer_tokens, TILE_POSITIONS) * TILE_ENTRIES * plan.size
    else:  # TRL's scores every position on a CPU
        scored = rows * plan.answer_tokens if plan.shared else tokens
        copies = CPU_COPIES * 4 * min(text.vocab_size, TILE_ENTRIES)
        logits = min(scored, TILE_POSITIONS) * (TILE_ENTRIES * plan.size + copies)

    sight = patches * _vision_work(vision, plan)
    # A block's work and a tile of logits are never alive together: the larger one counts.
    if plan.shared:  # and the tower is done before the language model holds anything
        return max(held + max(0, work - logits), pixels + sight - logits), logits
    return held + max(0, max(work, sight) - logits), logits


def _text_layer(text, plan):
    """Bytes for each token that a decoder layer holds for its backward pass."""
    width, heads = text.hidden_size, text.num_attention_heads * text.head_dim
    norms = 2 * width * 4  # inputs of the two RMSNorms, which compute in float32
    attention = 4 * heads  # queries, keys and values repeated for every query head, output
    mlp = 4 * text.intermediate_size  # gate, SiLU of it, up, their product
    if plan.rank is None:
        inputs = 4 * width  # of the linear layers, and of the norms' own weights
    elif plan.autocast and not plan.quantize:  # casts the input of each adapter anew
        inputs = 5 * width + heads + 7 * plan.rank
    else:  # one input for q, k, v and one for gate, up
        inputs = 2 * width + 7 * plan.rank
    return norms + plan.size * (attention + mlp + inputs)


def _vision_work(vision, plan):
    """Bytes for each patch while one block of the vision tower is worked on."""
    width, inner = vision.hidden_size, vision.intermediate_size
    if plan.shared or not plan.checkpointing:  # a pass without gradients
        return 2 * width * 4 + 2 * inner * plan.size  # residual, norm, MLP before and after GELU
    # TRL's hooks on every embedding send gradients through the frozen tower too: two norms and the
    # residual's gradient; queries, keys, values, output; the MLP's inside and its two gradients.
    return 3 * width * 4 + (4 * width + 3 * inner) * plan.size
