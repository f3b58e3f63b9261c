"""Chosen and rejected in one row behind their common prompt, which is then read once.

The prompt, picture included, is most of a row: 1,100 of 1,200 tokens for a SmolVLM picture in 17
tiles. Packed, the row of a pair is [prompt, chosen, rejected]; an attention mask keeps the rejected
answer from attending to the chosen one, and its positions go on from the prompt (arXiv 2410.20305).
The hidden states are then laid out as the two rows that the trainer expects:

    with shared_prompts(base):      # base: a VLM without its output layer
        base(input_ids=ids, attention_mask=mask, prompt_tokens=lengths, ...).last_hidden_state

For models with plain rotary positions and full attention (SmolVLM, LLaVA). Sums run in another
order than unpacked, so results are equal to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Packing:
    """How 2N rows (chosen, then rejected; prompt first, padding last) become N packed ones.

    P, C, R are the prompt's, chosen's and rejected's tokens; T is the longest P + C + R.
    """

    position: Tensor  # (N, T): the rejected answer's go on from the prompt
    mask: Tensor  # (N, 1, T, T) bool: query attends to key
    into: Tensor  # (N, T): where in the pair's two rows, laid end to end, a token stands
    out_of: Tensor  # (2N, L): where in the packed row a token of the unpacked rows stands


PACKED = ("idefics3", "smolvlm", "llava")  # `model_type`s whose rows it was tested on


def why_not_packed(base: nn.Module) -> str | None:
    """The reason why the rows of this model cannot be packed, in words, or None."""
    text = base.config.get_text_config()
    if base.config.model_type not in PACKED:
        return f"{base.config.model_type} is not among {', '.join(PACKED)}"
    if getattr(text, "sliding_window", None):
        return "its language model attends to a sliding window"
    if text._attn_implementation != "sdpa":
        return f"{text._attn_implementation} attention takes no such mask: load it with sdpa"
    return None


def packing(attention_mask: Tensor, prompt_tokens: Tensor) -> Packing:
    """The Packing of (2N, L) rows with `prompt_tokens` (N,) common tokens in front."""
    count, length = len(prompt_tokens), attention_mask.shape[1]
    chosen, rejected = attention_mask.sum(1).view(2, count).tolist()
    into, position, segment, chosen_at, rejected_at = [], [], [], [], []
    for prompt, c, r in zip(prompt_tokens.tolist(), chosen, rejected, strict=True):
        first, second = torch.arange(c), torch.arange(prompt, r)  # c and r count the prompt, too
        into.append(torch.cat([first, length + second]))
        position.append(torch.cat([first, second]))
        # 0 for the prompt, 1 for the chosen answer, 2 for the rejected one
        segment.append(torch.cat([(first >= prompt).long(), torch.full_like(second, 2)]))
        chosen_at.append(first)
        rejected_at.append(torch.cat([torch.arange(prompt), second - prompt + c]))
    segment = pad_sequence(segment, batch_first=True, padding_value=3)
    key, query = segment[:, None, None, :], segment[:, None, :, None]
    mask = ((key == 0) | (key == query)).tril()
    out_of = pad_sequence([*chosen_at, *rejected_at], batch_first=True)
    out_of = nn.functional.pad(out_of, (0, length - out_of.shape[1]))
    into = pad_sequence(into, batch_first=True, padding_value=-1)
    # Padding repeats an answer's token: one of a picture would want features.
    into = torch.where(into < 0, prompt_tokens.cpu()[:, None], into)
    plan = pad_sequence(position, batch_first=True), mask, into, out_of
    return Packing(*(tensor.to(attention_mask.device) for tensor in plan))


@contextmanager
def shared_prompts(base: nn.Module) -> Iterator[None]:
    """Within, `base` (a VLM without its head) runs pairs packed when given `prompt_tokens`."""
    forward = base.forward

    def packed(self, input_ids, attention_mask, prompt_tokens=None, **inputs):
        if prompt_tokens is None:
            return forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        plan = packing(attention_mask, prompt_tokens)
        inputs.pop("position_ids", None)  # None, from a forward with all logits
        pairs = torch.cat(input_ids.chunk(2), 1)  # (N, 2L)
        output = forward(
            input_ids=pairs.gather(1, plan.into),
            attention_mask=plan.mask,
            position_ids=plan.position,
            **inputs,
        )
        both = torch.cat([output.last_hidden_state] * 2)  # (2N, T, width)
        where = plan.out_of[..., None].expand(-1, -1, both.shape[-1])
        output.last_hidden_state = both.gather(1, where)
        return output

    with patch.object(base, "forward", MethodType(packed, base)):
        yield
