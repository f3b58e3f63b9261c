"""What a DPO step holds besides weights: the arithmetic behind `helpers.vlm.memory`.

    kept, logits = at_the_peak(model, plan)      # bytes; a Plan of helpers.vlm.memory

How TRL 1.16 runs a step: the policy reads chosen and rejected, two rows a pair with the picture in
both, and keeps what its backward pass needs; the reference reads the same rows and keeps nothing;
then the backward pass. Memory peaks where all that is kept meets the largest piece of work: a tile
of logits, or one block of a tower. Where pictures are shared (dpo.shared_images) the tower has
half the rows, keeps nothing, and only answers are scored. Read from trl/trainer/dpo_trainer.py,
trl/kernels/chunked_logprob.py and transformers/models/idefics3. On the CPU it meets the record of
torch's allocator (`python -m benchmarks.gpu_rehearsal --cpu`); a GPU's kernels, autocast and
allocator have not been measured.
"""

import re

from helpers.vlm.load import TEXT_LINEARS
from helpers.vlm.smolvlm import patches_across, tile_tokens

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# TRL never holds all logits: it projects this many positions and vocabulary entries at a time.
TILE_POSITIONS, TILE_ENTRIES = 4096, 32768
CPU_COPIES = 7  # float32 copies of the tile where TRL has no Triton kernel, so on the CPU


def at_the_peak(model, plan):
    """(activations, logits) in bytes. `model` is an Idefics3 model, on the meta device or not."""
    text, vision = model.config.text_config, model.config.vision_config
    rows = 2 * plan.pairs  # chosen and rejected
    # Each tile stands between two markers.
    per_picture = plan.tiles * (tile_tokens(model.config) + 2)
    tokens = rows * (per_picture + plan.text_tokens + plan.answer_tokens)
    seen = (plan.pairs if plan.shared else rows) * plan.tiles  # tiles that the tower reads at once
    patches = seen * patches_across(model.config) ** 2

    layer = tokens * text_layer(text, plan) + _mask(rows, tokens, plan)
    work = tokens * 3 * text.intermediate_size * plan.size  # gradients inside the MLP
    if plan.checkpointing:  # only the input of each block is kept; one block is made again
        kept = text.num_hidden_layers * tokens * text.hidden_size
        if not plan.shared:
            kept += vision.num_hidden_layers * patches * vision.hidden_size
        kept, work = kept * BYTES[plan.dtype], work + layer
    else:
        kept = text.num_hidden_layers * layer
        if plan.rank is None:  # a frozen vision tower keeps nothing, a trained one does
            kept += vision.num_hidden_layers * patches * vision_block(vision, plan)
    pixels = seen * vision.image_size**2 * (3 * 4 + 8)  # float32 colours, int64 mask
    kept += pixels + cast_copies(model, plan)

    logits = logits_tile(text, plan, rows, tokens)
    sight = patches * vision_work(vision, plan)
    # A block's work and a tile of logits are never alive together: the larger one counts.
    if plan.shared:  # and the tower is done before the language model keeps anything
        return max(kept + max(0, work - logits), pixels + sight - logits), logits
    return kept + max(0, max(work, sight) - logits), logits


def text_layer(text, plan):
    """Bytes for each token that a decoder layer keeps for its backward pass."""
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


def _mask(rows, tokens, plan):
    """Bytes of a layer's attention mask: chosen and rejected differ in length, so there is one.

    It is kept as bool once, and SDPA makes numbers of it in every layer anew.
    """
    return rows * (tokens // rows) ** 2 * plan.size


def vision_block(vision, plan):
    """Bytes for each patch that a trained block of the vision tower keeps."""
    return (8 * vision.hidden_size + 2 * vision.intermediate_size) * plan.size


def vision_work(vision, plan):
    """Bytes for each patch while one block of the vision tower is worked on."""
    width, inner = vision.hidden_size, vision.intermediate_size
    if (
        plan.shared or not plan.checkpointing
    ):  # a pass without gradients: residual, norm, MLP before and after GELU
        return 2 * width * 4 + 2 * inner * plan.size
    # TRL's hooks on every embedding send gradients through the frozen tower too: two norms and the
    # residual's gradient; queries, keys, values, output; the MLP's inside and its two gradients.
    return 3 * width * 4 + (4 * width + 3 * inner) * plan.size


def cast_copies(model, plan):
    """Bytes of the 16-bit copies of float32 weights that autocast makes and backward needs.

    Autocast reuses its copy of a trained weight only; that of a frozen one stays with its layer.
    """
    if not plan.autocast or plan.quantize or plan.dtype != "float32":
        return 0
    copies = 2 * sum(layer.weight.numel() for layer in text_linears(model))
    return copies / model.config.text_config.num_hidden_layers if plan.checkpointing else copies


def logits_tile(text, plan, rows, tokens):
    """Bytes of the tile of logits in the backward pass, with what is made from it."""
    if plan.device == "cuda":  # only the answers are scored, and the kernel works in place
        return min(rows * plan.answer_tokens, TILE_POSITIONS) * TILE_ENTRIES * plan.size
    copies = CPU_COPIES * 4 * min(text.vocab_size, TILE_ENTRIES)
    scored = rows * plan.answer_tokens if plan.shared else tokens  # TRL's scores all on a CPU
    return min(scored, TILE_POSITIONS) * (TILE_ENTRIES * plan.size + copies)


def text_linears(model):
    """The linear layers that an adapter sits on."""
    return [layer for name, layer in model.named_modules() if re.fullmatch(TEXT_LINEARS, name)]
