"""The least floating-point work of a DPO pair and of an answer, by formula from a model's shapes.

    model = smolvlm.shapes(smolvlm.config("256M"))        # no weight in memory
    dpo_pair(model, Pair(tiles=17, prompt=1190, chosen=150, rejected=120), rank=16)

A multiplication and an addition are two operations. Counted are the matrix products: linear layers
(arXiv 2001.08361), the patch convolution and attention; a norm, a softmax or an activation is some
hundredths of them. Every distinct thing is counted once:

- a picture: its tiles through the vision tower and the connector, forward only, as they are frozen;
- a token: the prompt, which chosen and rejected share, once; of an answer all but the last token,
  which is predicted and never read; attention looks back only, so at i tokens for the i-th;
- a predicted token: the output layer there and nowhere else;
- the reference: one forward pass without the adapter, or nothing where its log-probs are kept;
- the backward pass: what autograd needs for the adapter's gradients: through every product to its
  input (not into the frozen weights, and not into the embeddings), and to the adapter's weights.

Nothing is computed again, as checkpointing does, and no padding. Every layer is counted at every
token: that the last one could skip the prompt's queries and its MLP (1/30 of the text model at
most) is not taken off. tests/test_benchmarks.py counts the same with torch's FlopCounterMode.
"""

from dataclasses import dataclass

from torch import nn

from helpers.vlm.memory import text_linears
from helpers.vlm.smolvlm import patches_across, tile_tokens


@dataclass(frozen=True)
class Pair:
    """Lengths in tokens: the prompt with its image tokens, both answers with their closing token.

    `tiles` is 0 where another pair of the batch has the same picture.
    """

    tiles: int
    prompt: int
    chosen: int
    rejected: int


def dpo_pair(model, pair, rank, cached=False):
    """FLOP of one step on a Pair with an adapter of `rank`; `cached`: its reference log-probs are.

    `model` is an Idefics3 model, on the meta device or not, without the adapter.
    """
    read, looked, scored = seen(pair)
    base = language(model, read, looked, scored)
    policy = base + adapter(model, read, rank)
    back = language_backward(model, read, looked, scored) + adapter_backward(model, read, rank)
    return sight(model, pair.tiles) + policy + back + (0 if cached else base)


def answer(model, tiles, prompt, tokens):
    """FLOP of one greedy answer of `tokens` tokens, nothing read twice (a key-value cache)."""
    read = prompt + tokens - 1
    return sight(model, tiles) + language(model, read, looks(0, read), tokens)


def seen(pair):
    """(tokens read, pairs of tokens that attend, tokens predicted) of a Pair, the prompt once."""
    answers = pair.chosen - 1, pair.rejected - 1
    looked = looks(0, pair.prompt) + sum(looks(pair.prompt, length) for length in answers)
    # The last token of the prompt predicts the first of both answers.
    return pair.prompt + sum(answers), looked, 1 + sum(answers)


def looks(before, tokens):
    """Pairs of tokens that attend: each of `tokens` looks at itself and at all before it."""
    return tokens * before + tokens * (tokens + 1) // 2


# --- the parts -----------------------------------------------------------------------------


def sight(model, tiles):
    """Vision tower and connector, forward, for tiles: attention there looks in both directions."""
    vision, patches = model.config.vision_config, patches_across(model.config) ** 2
    layers = parts(model, "vision_model", (nn.Linear, nn.Conv2d))
    attention = 4 * patches**2 * vision.hidden_size * vision.num_hidden_layers
    connector = linear(parts(model, "connector", nn.Linear), tile_tokens(model.config))
    return tiles * (linear(layers, patches) + attention + connector)


def language(model, read, looked, scored):
    """Text model and output layer, forward, the adapter off."""
    layers = linear(text_linears(model), read) + linear([model.get_output_embeddings()], scored)
    return layers + attention(model, looked)


def language_backward(model, read, looked, scored):
    """Gradients of the activations through the frozen text model: one product for each forward one.

    Attention takes four for its two. The first layer's queries, keys and values need none: below
    them are the embeddings, which are frozen.
    """
    layers = linear(inner(model), read) + linear([model.get_output_embeddings()], scored)
    return layers + 2 * attention(model, looked)


def attention(model, looked):
    """Scores and weighted values, forward, in all layers of the text model."""
    text = model.config.get_text_config()
    return 4 * looked * text.num_attention_heads * text.head_dim * text.num_hidden_layers


def adapter(model, read, rank):
    """Both products of LoRA beside every linear layer of the text model (arXiv 2106.09685)."""
    return sum(2 * read * rank * (x.in_features + x.out_features) for x in text_linears(model))


def adapter_backward(model, read, rank):
    """The gradients of both its matrices, of what is between them, and of its input."""
    inputs = sum(2 * read * rank * layer.in_features for layer in inner(model))
    both = sum(2 * read * rank * (x.in_features + 2 * x.out_features) for x in text_linears(model))
    return both + inputs


def inner(model):
    """The linear layers of the text model whose input needs a gradient."""
    first = tuple(f".layers.0.self_attn.{name}_proj" for name in "qkv")
    names = {id(module): name for name, module in model.named_modules()}
    return [x for x in text_linears(model) if not names[id(x)].endswith(first)]


def linear(layers, positions):
    """Each weight is multiplied and added once for each position."""
    return sum(2 * positions * layer.weight.numel() for layer in layers)


def parts(model, where, kind):
    found = [(f".{name}.", module) for name, module in model.named_modules()]
    return [module for name, module in found if f".{where}." in name and isinstance(module, kind)]
