"""Where the time of a training step goes: seconds measured on trainers, and work by arithmetic.

    times = step_times({"TRL": stock, "ours": shared}, pairs.select(range(32)))
    step_time_bars(times)                                 # of helpers.plots.curves
    vision_flops(smolvlm.shapes(smolvlm.config("256M")), tiles=17)

FLOP are of matrix products: linear layers (arXiv 2001.08361), the patch convolution and attention;
a multiplication and an addition are two. A norm, a softmax or an activation is some hundredths of
them. tests/test_benchmarks.py counts the same with torch's FlopCounterMode.
"""

import copy
import time
from collections import defaultdict
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import nn
from trl import DPOTrainer

from helpers.dpo.shared_images import backbone
from helpers.vlm.memory import text_linears
from helpers.vlm.smolvlm import patches_across, tile_tokens

PARTS = ("prepare", "vision tower", "language model", "head and loss", "backward")


def step_times(
    trainers: dict[str, DPOTrainer], pairs: Dataset, repeats: int = 5
) -> dict[str, dict[str, float]]:
    """Seconds that one step over `pairs` spends in each of PARTS: {name: {part: seconds}}.

    `trainers`: {name: trainer}. prepare: texts and pictures to tensors; vision tower: with its
    connector; backward: all of it, so with checkpointing also what is computed again. Medians over
    `repeats`, in which the trainers take turns, after one that is not counted: what else the
    machine does falls on all alike. Gradients are thrown away and no weight changes.
    """
    rounds = [
        {name: _one_step(trainer, pairs) for name, trainer in trainers.items()}
        for _ in range(repeats + 1)
    ][1:]
    return {
        name: {part: median(one[name][part] for one in rounds) for part in PARTS}
        for name in trainers
    }


def _one_step(trainer, pairs):
    spent, model = defaultdict(float), trainer.model
    base = backbone(model)
    encode = _clock(spent, "vision tower")(base.get_image_features)  # also a decorator
    read = _clock(spent, "language model")(base.get_decoder().forward)
    before = copy.deepcopy(trainer._metrics), trainer._total_train_tokens
    model.train()
    with (
        patch.object(base, "get_image_features", encode),
        patch.object(base.get_decoder(), "forward", read),
    ):
        with _clock(spent, "prepare"):
            batch = trainer._prepare_inputs(trainer.data_collator(list(pairs)))
        with _clock(spent, "forward"), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, batch)
        with _clock(spent, "backward"):
            trainer.accelerator.backward(loss)
    model.zero_grad()
    trainer._metrics, trainer._total_train_tokens = before  # this was no step of the training
    spent["head and loss"] = spent["forward"] - spent["vision tower"] - spent["language model"]
    return spent


@contextmanager
def _clock(spent, part):
    """Adds the seconds within to `spent[part]`; waits for a GPU, where calls return early."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    yield
    wait()
    spent[part] += time.perf_counter() - start


# --- FLOP by formula, of an Idefics3 model, on the meta device or not ----------------------


def vision_flops(model: nn.Module, tiles: int) -> int:
    """Vision tower and connector, forward, for tiles: there each patch attends to all of its tile.

    `model`: with or without an adapter on its language model.
    """
    vision, patches = model.config.vision_config, patches_across(model.config) ** 2  # of a tile
    layers, connector = [], []
    for name, module in model.named_modules():
        if ".vision_model." in f".{name}." and isinstance(module, (nn.Linear, nn.Conv2d)):
            layers.append(module)
        elif ".connector." in f".{name}." and isinstance(module, nn.Linear):
            connector.append(module)
    # Two products, scores and weighted values, of two operations each.
    attention = 4 * patches**2 * vision.hidden_size * vision.num_hidden_layers
    project = linear_flops(connector, tile_tokens(model.config))
    return tiles * (linear_flops(layers, patches) + attention + project)


def text_flops(model: nn.Module, tokens: int, attended: int, predicted: int) -> int:
    """Text model and output layer, forward, the adapter off.

    tokens: how many are read; attended: (query, key) pairs, as `attended_pairs` counts them;
    predicted: tokens, the output layer's positions.
    """
    output = linear_flops([model.get_output_embeddings()], predicted)
    return linear_flops(text_linears(model), tokens) + output + attention_flops(model, attended)


def attention_flops(model: nn.Module, attended: int) -> int:
    """Scores and weighted values, forward, in all layers of the text model."""
    text = model.config.get_text_config()
    return 4 * attended * text.num_attention_heads * text.head_dim * text.num_hidden_layers


def linear_flops(layers: list[nn.Module], positions: int) -> int:
    """Each weight is multiplied and added once for each position."""
    return sum(2 * positions * layer.weight.numel() for layer in layers)


def attended_pairs(before: int, tokens: int) -> int:
    """(query, key) pairs: each of `tokens` attends to itself and to all before it, of which
    `before` come ahead of the first."""
    return tokens * before + tokens * (tokens + 1) // 2
