"""Chosen and rejected in one row behind their common prompt, which is then read once.

The prompt, picture included, is most of a row: 1,100 of 1,200 tokens for a SmolVLM picture in 17
tiles. Packed, the row of a pair is [prompt, chosen, rejected]; an attention mask keeps the rejected
answer from seeing the chosen one, and its positions go on from the prompt (arXiv 2410.20305). The
hidden states are then laid out as the two rows that the trainer expects:

    with shared_prompts(eye):
        eye(input_ids=ids, attention_mask=mask, prompt_tokens=lengths, ...).last_hidden_state

For models with plain rotary positions and full attention (SmolVLM, LLaVA). Sums run in another
order than unpacked, so results are equal to rounding.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from unittest.mock import patch

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Packing:
    """How 2N rows (chosen, then rejected; prompt first, padding last) become N packed ones.

    P, C, R are the prompt's, chosen's and rejected's tokens; T is the longest P + C + R.
    """

    position: torch.Tensor  # (N, T): the rejected answer's go on from the prompt
    mask: torch.Tensor  # (N, 1, T, T) bool: query sees key
    into: torch.Tensor  # (N, T): where in the pair's two rows, laid end to end, a token stands
    out_of: torch.Tensor  # (2N, L): where in the packed row a token of the unpacked rows stands


PACKED = ("idefics3", "smolvlm", "llava")  # `model_type`s whose rows it was tested on


def why_not_packed(eye):
    """The reason why the rows of this model cannot be packed, in words, or None."""
    text = eye.config.get_text_config()
    if eye.config.model_type not in PACKED:
        return f"{eye.config.model_type} is not among {', '.join(PACKED)}"
    if getattr(text, "sliding_window", None):
        return "its language model attends to a sliding window"
    if text._attn_implementation != "sdpa":
        return f"{text._attn_implementation} attention takes no such mask: load it with sdpa"
    return None


def packing(attention_mask, prompt_tokens):
    """The Packing of (2N, L) rows with `prompt_tokens` (N,) common tokens in front."""
    count, length = len(prompt_tokens), attention_mask.shape[1]
    chosen, rejected = attention_mask.sum(1).view(2, count).tolist()
    into, position, part, back = [], [], [], [[], []]
    for prompt, c, r in zip(prompt_tokens.tolist(), chosen, rejected, strict=True):
        first, second = torch.arange(c), torch.arange(prompt, r)
        into.append(torch.cat([first, length + second]))
        position.append(torch.cat([first, second]))
        part.append(torch.cat([(first >= prompt).long(), torch.full_like(second, 2)]))
        back[0].append(first)
        back[1].append(torch.cat([torch.arange(prompt), second - prompt + c]))
    part = pad_sequence(part, batch_first=True, padding_value=3)
    key, query = part[:, None, None, :], part[:, None, :, None]
    sees = ((key == 0) | (key == query)).tril()
    out_of = pad_sequence([*back[0], *back[1]], batch_first=True)
    out_of = torch.nn.functional.pad(out_of, (0, length - out_of.shape[1]))
    into = pad_sequence(into, batch_first=True, padding_value=-1)
    into = torch.where(into < 0, prompt_tokens.cpu()[:, None], into)  # an answer's, not a picture's
    plan = pad_sequence(position, batch_first=True), sees, into, out_of
    return Packing(*(tensor.to(attention_mask.device) for tensor in plan))


@contextmanager
def shared_prompts(eye):
    """Within, `eye` (a VLM without its head) runs pairs packed when given `prompt_tokens`."""
    forward = eye.forward

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
        both = torch.cat([output.last_hidden_state] * 2)
        where = plan.out_of[..., None].expand(-1, -1, both.shape[-1])
        output.last_hidden_state = both.gather(1, where)
        return output

    with patch.object(eye, "forward", MethodType(packed, eye)):
        yield
