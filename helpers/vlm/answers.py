"""Batched answers of a VLM to questions about pictures, and log-probs of given answers.

texts = answers(model, processor, images, ["What do you see?"] * len(images))
logps = answer_logps(model, processor, images, questions, texts)     # (n,), sums over tokens
odds = yes_no_log_odds(model, processor, images, questions)          # (n,), above 0: yes

Prompts are padded on the left, so the answers of a batch begin at one position. In float32 the
batch changes nothing but the last digits: padding is masked, rotary positions are relative, and the
empty tiles that Idefics3 adds to the smaller pictures of a batch are left out again.
"""

import warnings

import torch

from helpers.pairs.format import turns
from helpers.vlm.batches import Job, all_results, longest_first

IGNORED = -100  # the label of a position that is not scored


class Answer(str):
    """A text that knows whether it was `cut`: max_new_tokens came before the token that ends it."""

    def __new__(cls, text, cut=False):
        answer = super().__new__(cls, text)
        answer.cut = cut
        return answer


def answers(
    model,
    processor,
    images,
    questions,
    *,
    batch_size=64,
    max_new_tokens=64,
    temperature=0.0,
    seed=0,
    bar=None,
):
    """One answer a question: greedy at temperature 0, else sampled with `seed`.

    `images` (n PIL pictures) and `questions` (n strings). Returns n `Answer`s, in order, and warns
    with their number when some were cut. Sampled answers depend on `batch_size`, greedy ones do
    not. `bar`: a tqdm over several calls, which advances by n here.
    """
    torch.manual_seed(seed)
    job = answering(model, processor, images, questions, max_new_tokens, temperature)
    return warn_of_cut(all_results(job, batch_size, bar), max_new_tokens)


def answer_logps(model, processor, images, questions, texts, *, batch_size=32, bar=None):
    """Log-prob of each given answer: the sum over its tokens, the closing token included.

    `images`, `questions`, `texts`: n each. Returns a float tensor (n,) on the CPU. The tokens are
    those that DPOTrainer scores: everything that the chat template puts after the prompt.
    """
    job = scoring(model, processor, images, questions, texts)
    return torch.tensor(all_results(job, batch_size, bar))


def yes_no_log_odds(model, processor, images, questions, *, batch_size=64, bar=None):
    """log p(Yes) - log p(No) as the first word of each answer: one pass, nothing is generated.

    Returns a float tensor (n,) on the CPU; its sigmoid is the probability of yes among the two.
    Of a word in several tokens it is the first that tells Yes from No. Other ways to say it ("yes",
    "There is") are not counted.
    """
    job = probing(model, processor, images, questions)
    return torch.tensor(all_results(job, batch_size, bar))


def yes_no_answers(model, processor, images, questions, *, batch_size=64, bar=None):
    """ "yes" or "no" for each question, whichever first word the model finds more likely."""
    size = {"batch_size": batch_size, "bar": bar}
    odds = yes_no_log_odds(model, processor, images, questions, **size)
    return ["yes" if value > 0 else "no" for value in odds.tolist()]


def warn_of_cut(texts, max_new_tokens):
    """The texts as they are; a warning with the number of those that were cut."""
    cut = sum(text.cut for text in texts)
    if cut:
        warnings.warn(
            f"{cut} of {len(texts)} answers were cut at {max_new_tokens} tokens: raise "
            "max_new_tokens",
            stacklevel=3,
        )
    return texts


# --- jobs ----------------------------------------------------------------------------------


def answering(model, processor, images, questions, max_new_tokens, temperature):
    """The job of `answers`; a result is an `Answer`."""
    _require_equal("answering", images, questions)
    prompts = [_prompt(processor, question) for question in questions]
    sampling = {"do_sample": temperature > 0, "temperature": temperature or None}
    tokenizer = processor.tokenizer
    ends = torch.tensor(model.generation_config.eos_token_id).flatten()  # one id, or several

    def run(rows):
        batch = _encode(processor, model, images, prompts, rows)
        with torch.inference_mode():
            tokens = model.generate(
                **batch,
                **sampling,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokens[:, batch["input_ids"].shape[1] :].cpu()
        texts = processor.batch_decode(new, skip_special_tokens=True)
        ended = torch.isin(new, ends).any(1).tolist()
        return [Answer(text.strip(), not end) for text, end in zip(texts, ended, strict=True)]

    return Job("answering", prompts, longest_first(processor, images, prompts), run)


def scoring(model, processor, images, questions, texts):
    """The job of `answer_logps`; a result is a float."""
    _require_equal("scoring", images, questions, texts)
    prompts = [_prompt(processor, question) for question in questions]
    wholes = [_conversation(processor, *pair) for pair in zip(questions, texts, strict=True)]

    def run(rows):
        batch = _encode(processor, model, images, wholes, rows)
        completions = [_completion(processor, prompts[row], wholes[row]) for row in rows]
        keep = 1 + max(map(len, completions))  # logits before the first of them are not needed
        labels = _labels(batch["input_ids"], completions)[:, -keep:]
        with torch.inference_mode():
            logits = model(**batch, logits_to_keep=keep).logits
        return sequence_logps(logits.float(), labels).tolist()

    return Job("scoring", prompts, longest_first(processor, images, wholes), run)


def probing(model, processor, images, questions):
    """The job of `yes_no_log_odds`; a result is a float."""
    _require_equal("probing", images, questions)
    lead, *words = _yes_and_no(processor)
    prompts = [_prompt(processor, question) + lead for question in questions]

    def run(rows):
        batch = _encode(processor, model, images, prompts, rows)
        with torch.inference_mode():  # padded on the left: the last position is never padding
            logits = model(**batch, logits_to_keep=1).logits[:, -1].float()
        return (logits[:, words[0]] - logits[:, words[1]]).tolist()

    return Job("probing", prompts, longest_first(processor, images, prompts), run)


# --- prompts, batches, labels --------------------------------------------------------------


def _prompt(processor, question):
    return processor.apply_chat_template(
        turns(question), tokenize=False, add_generation_prompt=True
    )


def _conversation(processor, question, answer):
    return processor.apply_chat_template(turns(question, answer), tokenize=False)


def _yes_and_no(processor):
    """(text, id, id): what an answer Yes or No begins with, and the token that tells which it is.

    SmolVLM has a token for " Yes" and one for " No", and the text is empty. Where a tokenizer
    spells them, both first tokens may be the space, and comparing those would tell nothing.
    """
    prompt = _prompt(processor, "?")
    yes, no = (
        _completion(processor, prompt, _conversation(processor, "?", word))
        for word in ("Yes", "No")
    )
    for place, (y, n) in enumerate(zip(yes, no, strict=False)):
        if y != n:
            return processor.tokenizer.decode(yes[:place]), y, n
    raise ValueError("the tokenizer has the same tokens for Yes and for No: use `answers`")


def _completion(processor, prompt, whole):
    """The ids of all that the chat template puts after the prompt."""
    return processor.tokenizer(whole.removeprefix(prompt), add_special_tokens=False)["input_ids"]


def _encode(processor, model, images, texts, rows):
    return processor(
        images=[[images[row]] for row in rows],
        text=[texts[row] for row in rows],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)


def _labels(ids, completions):
    """`ids` (n, length, padded on the left) with -100 everywhere but on the completions."""
    labels = torch.full_like(ids, IGNORED)
    for row, completion in enumerate(completions):
        labels[row, -len(completion) :] = ids[row, -len(completion) :]
    return labels


def _require_equal(doing, *columns):
    lengths = [str(len(column)) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{doing}: as many questions and answers as pictures are needed, got "
            f"{', '.join(lengths)}"
        )


# --- log-probs ----------------------------------------------------------------------------------


def sequence_logps(logits, labels):
    """Log-probs of the labels, summed over each row's scored positions.

    `logits` (n, length, vocabulary), `labels` (n, length) with -100 where nothing is scored
    (prompt, image, padding). The logits at one position predict the token at the next, so labels
    are compared with the logits one position earlier; a label at position 0 is predicted by
    nothing and never counts. Computed in float32 or better, whatever the model's precision.

    Returns (n,). Raises ValueError when the shapes do not belong together, or when a row has no
    scored position: its loss would be a silent ln 2 with no gradient.
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} do not fit labels of shape "
            f"{tuple(labels.shape)}: pass (n, length, vocabulary) and (n, length), both unshifted."
        )
    labels = labels[:, 1:]
    scored = labels != IGNORED
    silent = (~scored.any(dim=1)).nonzero().flatten().tolist()
    if silent:
        raise ValueError(
            f"row(s) {silent} have no scored token: every label after the first is {IGNORED}. Was "
            "the answer cut off by max_length, or masked with the prompt?"
        )
    logps = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # gather needs a valid index everywhere, so -100 becomes token 0 and is masked out again.
    index = labels.masked_fill(~scored, 0).unsqueeze(-1)
    return logps.gather(-1, index).squeeze(-1).where(scored, 0.0).sum(-1)
