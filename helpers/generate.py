"""Batched answers of a VLM to questions about pictures, and log-probs of given answers.

texts = answers(model, processor, images, ["What do you see?"] * len(images))
logps = answer_logps(model, processor, images, questions, texts)     # (n,), sums over tokens
"""

import torch
from tqdm.auto import tqdm

from helpers.messages import turns
from helpers.objectives import sequence_logps


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
):
    """One answer a question: greedy at temperature 0, else sampled with `seed`.

    `images` (n PIL pictures) and `questions` (n strings). Returns n strings, in order. Prompts are
    padded on the left, so the answers of a batch begin at the same position.
    """
    torch.manual_seed(seed)
    sampling = {"do_sample": temperature > 0, "temperature": temperature or None}
    texts = []
    for pictures, asked in _batches("answering", batch_size, images, questions):
        batch = _encode(processor, model, pictures, [_prompt(processor, q) for q in asked])
        with torch.inference_mode():
            tokens = model.generate(
                **batch,
                **sampling,
                max_new_tokens=max_new_tokens,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
        texts += processor.batch_decode(
            tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return [text.strip() for text in texts]


def answer_logps(model, processor, images, questions, texts, *, batch_size=32):
    """Log-prob of each given answer: the sum over its tokens, the closing token included.

    `images`, `questions`, `texts`: n each. Returns a float tensor (n,) on the CPU. The tokens are
    those that DPOTrainer scores: everything that the chat template puts after the prompt.
    """
    sums = []
    for pictures, asked, given in _batches("scoring", batch_size, images, questions, texts):
        prompts = [_prompt(processor, q) for q in asked]
        wholes = [_conversation(processor, q, text) for q, text in zip(asked, given, strict=True)]
        batch = _encode(processor, model, pictures, wholes)
        labels = _completion_labels(processor.tokenizer, batch["input_ids"], prompts, wholes)
        with torch.inference_mode():
            logits = model(**batch).logits
        sums.append(sequence_logps(logits.float(), labels).cpu())
    return torch.cat(sums)


def yes_no_answers(model, processor, images, questions, *, batch_size=64):
    """ "yes" or "no" for each question, whichever first token the model finds more likely."""
    vocabulary = processor.tokenizer
    yes, no = (_first_token(vocabulary, word) for word in ("Yes", "No"))
    chosen = []
    for pictures, asked in _batches("probing", batch_size, images, questions):
        batch = _encode(processor, model, pictures, [_prompt(processor, q) for q in asked])
        with torch.inference_mode():  # padded on the left: the last position is never padding
            logits = model(**batch, logits_to_keep=1).logits[:, -1]
        chosen += ["yes" if y > n else "no" for y, n in logits[:, [yes, no]].tolist()]
    return chosen


# --- prompts, batches, labels --------------------------------------------------------------


def _prompt(processor, question):
    return processor.apply_chat_template(
        turns(question), tokenize=False, add_generation_prompt=True
    )


def _conversation(processor, question, answer):
    return processor.apply_chat_template(turns(question, answer), tokenize=False)


def _first_token(tokenizer, word):
    """The id that begins an answer with `word`, after the template's "Assistant:"."""
    before = tokenizer("Assistant:", add_special_tokens=False)["input_ids"]
    return tokenizer(f"Assistant: {word}", add_special_tokens=False)["input_ids"][len(before)]


def _batches(doing, size, *columns):
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise ValueError(
            f"{doing}: as many questions and answers as pictures are needed, got "
            f"{', '.join(str(len(column)) for column in columns)}"
        )
    for start in tqdm(range(0, len(columns[0]), size), desc=doing, leave=False):
        yield tuple(column[start : start + size] for column in columns)


def _encode(processor, model, pictures, texts):
    return processor(
        images=[[picture] for picture in pictures],
        text=texts,
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)


def _completion_labels(tokenizer, ids, prompts, wholes):
    """`ids` (n, length, padded on the left) with -100 everywhere but on the completions."""
    labels = torch.full_like(ids, -100)
    for row, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        completion = tokenizer(whole.removeprefix(prompt), add_special_tokens=False)["input_ids"]
        labels[row, -len(completion) :] = ids[row, -len(completion) :]
    return labels
