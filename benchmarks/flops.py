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

from helpers.dpo.timing import (
    attended_pairs,
    attention_flops,
    linear_flops,
    text_flops,
    vision_flops,
)
from helpers.vlm.memory import text_linears


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
    tokens, attended, predicted = distinct(pair)
    base = text_flops(model, tokens, attended, predicted)
    policy = base + adapter(model, tokens, rank)
    back = text_backward(model, tokens, attended, predicted) + adapter_backward(model, tokens, rank)
    return vision_flops(model, pair.tiles) + policy + back + (0 if cached else base)


def answer(model, tiles, prompt, tokens):
    """FLOP of one greedy answer of `tokens` tokens, nothing read twice (a key-value cache)."""
    read = prompt + tokens - 1
    text = text_flops(model, read, attended_pairs(0, read), tokens)
    return vision_flops(model, tiles) + text


def distinct(pair):
    """(tokens read, (query, key) pairs, tokens predicted) of a Pair, the prompt once."""
    answers = pair.chosen - 1, pair.rejected - 1
    attended = attended_pairs(0, pair.prompt)
    attended += sum(attended_pairs(pair.prompt, length) for length in answers)
    # The last token of the prompt predicts the first of both answers.
    return pair.prompt + sum(answers), attended, 1 + sum(answers)


# --- the parts -----------------------------------------------------------------------------


def text_backward(model, tokens, attended, predicted):
    """Gradients of the activations through the frozen text model: one product for each forward one.

    Attention takes four for its two. The first layer's queries, keys and values need none: below
    them are the embeddings, which are frozen.
    """
    output = linear_flops([model.get_output_embeddings()], predicted)
    return linear_flops(inner(model), tokens) + output + 2 * attention_flops(model, attended)


def adapter(model, tokens, rank):
    """Both products of LoRA beside every linear layer of the text model (arXiv 2106.09685)."""
    return sum(2 * tokens * rank * (x.in_features + x.out_features) for x in text_linears(model))


def adapter_backward(model, tokens, rank):
    """The gradients of both its matrices, of what is between them, and of its input."""
    inputs = sum(2 * tokens * rank * layer.in_features for layer in inner(model))
    sizes = sum(x.in_features + 2 * x.out_features for x in text_linears(model))
    return 2 * tokens * rank * sizes + inputs


def inner(model):
    """The linear layers of the text model whose input needs a gradient."""
    first = tuple(f".layers.0.self_attn.{name}_proj" for name in "qkv")
    names = {id(module): name for name, module in model.named_modules()}
    return [x for x in text_linears(model) if not names[id(x)].endswith(first)]
