"""Batched answers of a VLM to questions about pictures, and log-probs of given answers.

    texts = answers(model, processor, images, ["What do you see?"] * len(images))
    logps = answer_logps(model, processor, images, questions, texts)     # (n,), sums over tokens
    odds = yes_no_log_odds(model, processor, images, questions)          # (n,), above 0: yes

Prompts are padded on the left, so the answers of a batch begin at one position. In float32 the
batch changes nothing but the last digits: padding is masked, rotary positions are relative, and the
empty tiles that Idefics3 adds to the smaller pictures of a batch are left out again.

With `folder="runs/06"` the results are also written there, batch by batch, and an interrupted
evaluation goes on where it stopped. A result is found again only by everything that it depends on:
the model's weights, its adapters and which of them are on, the processor, the prompt, the picture's
pixels and the settings. Whatever changes, the key changes, and the result is made anew.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers.pairs.format import turns
from helpers.pairs.images import image_digest
from helpers.setup.storage import Store, key_of
from helpers.vlm.load import model_digest, processor_digest

IGNORED = -100  # the label of a position that is not scored


class Answer(str):
    """A text that knows whether it was `cut`: max_new_tokens came before the token that ends it."""

    def __new__(cls, text: str, cut: bool = False):
        answer = super().__new__(cls, text)
        answer.cut = cut
        return answer


def answers(
    model: nn.Module,
    processor: ProcessorMixin,
    images: Sequence[Image],
    questions: Sequence[str],
    *,
    folder: str | Path | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    bar: tqdm | None = None,
) -> list[Answer]:
    """One answer a question: greedy at temperature 0, else sampled with `seed`.

    `images` (n PIL pictures) and `questions` (n strings). Returns n answers, in order, and warns
    with their number when some were cut. Greedy answers do not depend on `batch_size`. Sampled ones
    do, and with a `folder` each batch has a seed of its own, so that a run which is killed and gone
    on with gives what an uninterrupted one gives. `bar`: a tqdm over several calls, which advances
    by n here. Raises StorageError if the folder cannot be written.
    """
    job = answering(model, processor, images, questions, max_new_tokens, temperature)
    if folder is None:
        torch.manual_seed(seed)
        return warn_of_cut(all_results(job, batch_size, bar), max_new_tokens)

    settings = ["answers", int(max_new_tokens), float(temperature), seed if temperature else None]
    keys = _keys(model, processor, images, job.texts, settings)
    if temperature:  # the same question about the same picture asks for one more sample
        seen = Counter()
        for row, key in enumerate(keys):
            seen[key] += 1
            keys[row] = f"{key}-{seen[key]}"

    def run(rows):
        if temperature:
            torch.manual_seed(int(key_of(*[keys[row] for row in rows])[:15], 16))
        return [[text, text.cut] for text in job.run(rows)]

    found = resumable_results(replace(job, run=run), keys, folder, batch_size, bar)
    return warn_of_cut([Answer(text, cut) for text, cut in found], max_new_tokens)


def answer_logps(
    model: nn.Module,
    processor: ProcessorMixin,
    images: Sequence[Image],
    questions: Sequence[str],
    texts: Sequence[str],
    *,
    folder: str | Path | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Log-prob of each given answer: the sum over its tokens, the closing token included, in nats.

    `images`, `questions`, `texts`: n each. Returns a float tensor (n,) on the CPU. The tokens are
    those that DPOTrainer scores: everything that the chat template puts after the prompt.
    """
    job = scoring(model, processor, images, questions, texts)
    if folder is None:
        return torch.tensor(all_results(job, batch_size))
    keys = _keys(model, processor, images, job.texts, ["logps"])
    return torch.tensor(resumable_results(job, keys, folder, batch_size))


def yes_no_log_odds(
    model: nn.Module,
    processor: ProcessorMixin,
    images: Sequence[Image],
    questions: Sequence[str],
    *,
    folder: str | Path | None = None,
    batch_size: int = 64,
    bar: tqdm | None = None,
) -> Tensor:
    """log p(Yes) - log p(No) as the first word of each answer: one pass, nothing is generated.

    Returns a float tensor (n,) on the CPU; its sigmoid is the probability of yes among the two.
    Of a word in several tokens it is the first that tells Yes from No. Other ways to say it ("yes",
    "There is") are not counted.
    """
    job = probing(model, processor, images, questions)
    if folder is None:
        return torch.tensor(all_results(job, batch_size, bar))
    keys = _keys(model, processor, images, job.texts, ["log odds"])
    return torch.tensor(resumable_results(job, keys, folder, batch_size, bar))


def yes_no_answers(
    model: nn.Module,
    processor: ProcessorMixin,
    images: Sequence[Image],
    questions: Sequence[str],
    **settings: Any,
) -> list[str]:
    """ "yes" or "no" for each question, whichever first word the model finds more likely.

    `settings` (folder, batch_size, bar) are those of `yes_no_log_odds`.
    """
    odds = yes_no_log_odds(model, processor, images, questions, **settings)
    return ["yes" if value > 0 else "no" for value in odds.tolist()]


def warn_of_cut(texts: list[Answer], max_new_tokens: int) -> list[Answer]:
    """The texts as they are; a warning with the number of those that were cut."""
    cut = sum(text.cut for text in texts)
    if cut:
        warnings.warn(
            f"{cut} of {len(texts)} answers were cut at {max_new_tokens} tokens: raise "
            "max_new_tokens",
            stacklevel=3,
        )
    return texts


def sequence_logps(logits: Tensor, labels: Tensor) -> Tensor:
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


# --- jobs: what is done with the rows of a batch -------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Something to find out about n rows, each a picture and a text, in batches of any rows."""

    doing: str  # for the progress bar
    texts: list  # what is read of each row beside its picture, JSON: its key is made of it
    order: list[int]  # rows, longest first
    run: Callable[[list[int]], list]  # rows -> a result for each, on the CPU


def answering(
    model: nn.Module,
    processor: ProcessorMixin,
    images: Sequence[Image],
    questions: Sequence[str],
    max_new_tokens: int,
    temperature: float,
) -> Job:
    """The job of `answers`; a result is an `Answer`."""
    _require_equal("answering", images, questions)
    prompts = [_prompt(processor, question) for question in questions]
    ends = torch.tensor(model.generation_config.eos_token_id).flatten()  # one id, or several

    def run(rows):
        batch = _encode(processor, model, images, prompts, rows)
        with torch.inference_mode():
            tokens = model.generate(
                **batch,
                do_sample=temperature > 0,
                temperature=temperature or None,
                max_new_tokens=max_new_tokens,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
        # generate gives the prompt back, padding included: every answer begins at its end.
        new = tokens[:, batch["input_ids"].shape[1] :].cpu()
        texts = processor.batch_decode(new, skip_special_tokens=True)
        ended = torch.isin(new, ends).any(1).tolist()
        return [Answer(text.strip(), not end) for text, end in zip(texts, ended, strict=True)]

    return Job("answering", prompts, longest_first(processor, images, prompts), run)


def scoring(
    model: nn.Module,
    processor: ProcessorMixin,
    images: Sequence[Image],
    questions: Sequence[str],
    texts: Sequence[str],
) -> Job:
    """The job of `answer_logps`; a result is a float."""
    _require_equal("scoring", images, questions, texts)
    prompts = [_prompt(processor, question) for question in questions]
    wholes = [_conversation(processor, *pair) for pair in zip(questions, texts, strict=True)]

    def run(rows):
        batch = _encode(processor, model, images, wholes, rows)
        completions = [_completion(processor, prompts[row], wholes[row]) for row in rows]
        # One position more than the longest completion: the logits there predict its first token.
        # Those before it are not computed, a vocabulary of floats for each image token.
        keep = 1 + max(map(len, completions))
        ids = batch["input_ids"][:, -keep:]  # (rows, keep), padded on the left
        labels = torch.full_like(ids, IGNORED)
        for row, completion in enumerate(completions):
            labels[row, -len(completion) :] = ids[row, -len(completion) :]
        with torch.inference_mode():
            logits = model(**batch, logits_to_keep=keep).logits
        return sequence_logps(logits.float(), labels).tolist()

    read = list(zip(prompts, wholes, strict=True))
    return Job("scoring", read, longest_first(processor, images, wholes), run)


def probing(
    model: nn.Module, processor: ProcessorMixin, images: Sequence[Image], questions: Sequence[str]
) -> Job:
    """The job of `yes_no_log_odds`; a result is a float."""
    _require_equal("probing", images, questions)
    lead, yes, no = _yes_and_no(processor)
    prompts = [_prompt(processor, question) + lead for question in questions]

    def run(rows):
        batch = _encode(processor, model, images, prompts, rows)
        with torch.inference_mode():  # padded on the left: the last position is never padding
            logits = model(**batch, logits_to_keep=1).logits[:, -1].float()
        return (logits[:, yes] - logits[:, no]).tolist()

    return Job("probing", prompts, longest_first(processor, images, prompts), run)


def _prompt(processor, text):
    return processor.apply_chat_template(turns(text), tokenize=False, add_generation_prompt=True)


def _conversation(processor, question, answer):
    return processor.apply_chat_template(turns(question, answer), tokenize=False)


def _completion(processor, prompt, whole):
    """The ids of all that the chat template puts after the prompt."""
    return processor.tokenizer(whole.removeprefix(prompt), add_special_tokens=False)["input_ids"]


def _yes_and_no(processor):
    """(text, id, id): what an answer Yes or No begins with, and the token that tells which it is.

    SmolVLM has a token for " Yes" and one for " No", and the text is empty. Where a tokenizer
    spells them, both first tokens may be the space, and comparing those would tell nothing.
    """
    prompt = _prompt(processor, "?")
    wholes = [_conversation(processor, "?", word) for word in ("Yes", "No")]
    yes, no = (_completion(processor, prompt, whole) for whole in wholes)
    for place, (y, n) in enumerate(zip(yes, no, strict=False)):
        if y != n:
            return processor.tokenizer.decode(yes[:place]), y, n
    raise ValueError("the tokenizer has the same tokens for Yes and for No: use `answers`")


def _encode(processor, model, images, texts, rows):
    return processor(
        images=[[images[row]] for row in rows],
        text=[texts[row] for row in rows],
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the chat template has put them in
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)


def _require_equal(doing, *columns):
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        got = ", ".join(map(str, lengths))
        raise ValueError(f"{doing} needs as many questions and answers as pictures, got {got}")


# --- batches: longest first, halved when memory runs out, one bar --------------------------------


def longest_first(
    processor: ProcessorMixin, images: Sequence[Image], texts: Sequence[str]
) -> list[int]:
    """The rows by tiles of the picture, then by tokens of the text; equal ones in their order.

    So a batch has little padding and answers that end together, a memory that is too small shows at
    once, and the time left is not promised too low.
    """
    tiles = getattr(processor.image_processor, "get_number_of_image_patches", lambda *size: 0)
    tokens = {text: len(processor.tokenizer.tokenize(text)) for text in set(texts)}
    lengths = [
        (tiles(image.height, image.width, {}), tokens[text])
        for image, text in zip(images, texts, strict=True)
    ]
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def in_batches(
    job: Job, size: int, bar: tqdm | None = None
) -> Iterator[tuple[list[int], list[Any]]]:
    """Yields (rows, results) batch by batch, `size` rows at a time, in the job's order.

    Where a GPU runs out of memory, the batches are halved and the work goes on, with a message;
    torch.cuda.OutOfMemoryError is raised when one row alone is too much. `bar`: a tqdm over several
    jobs, which advances by n; without one the job shows its own.
    """
    done = 0
    own = {"total": len(job.order), "desc": job.doing, "leave": False}
    with nullcontext(bar) if bar is not None else tqdm(**own) as progress:
        while done < len(job.order):
            rows = job.order[done : done + size]
            try:
                results = job.run(rows)
            except torch.cuda.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise torch.cuda.OutOfMemoryError(
                        "not enough memory for one picture at a time: lower the track's "
                        "image_edge or max_new_tokens, or load the model in 4 bits"
                    ) from error
                results = None
            if results is None:  # only now: the error held the memory of the failed batch
                torch.cuda.empty_cache()
                size = len(rows) // 2
                progress.write(f"out of memory with {len(rows)} pictures at once: {size} from here")
                continue
            yield rows, results
            done += len(rows)
            progress.update(len(rows))


def all_results(job: Job, size: int, bar: tqdm | None = None) -> list[Any]:
    """The results of all rows, in the order of the rows."""
    found = {}
    for rows, results in in_batches(job, size, bar):
        found.update(zip(rows, results, strict=True))
    return [found[row] for row in sorted(found)]


def resumable_results(
    job: Job, keys: list[str], folder: str | Path, size: int, bar: tqdm | None = None
) -> list[Any]:
    """The results of all rows, JSON values: read from the folder where their key is in it, else
    made and added to it batch by batch. Of rows with the same key one is done."""
    store = Store(folder)
    missing, distinct = {}, len(set(keys))  # {key: its first row}, in the job's order
    for row in job.order:
        if keys[row] not in store:
            missing.setdefault(keys[row], row)
    if len(missing) < distinct:
        print(f"{distinct - len(missing)} of {distinct} results are in {store.lines}")
    if bar is not None:
        bar.update(len(keys) - len(missing))
    rest = replace(job, order=list(missing.values()))
    for rows, results in in_batches(rest, size, bar):
        store.add({keys[row]: result for row, result in zip(rows, results, strict=True)})
    return [store[key] for key in keys]


def _keys(model, processor, images, texts, settings):
    """One key a row, made of everything that its result depends on."""
    common = [model_digest(model), processor_digest(processor), *settings]
    pixels = [  # a palette picture is its colours, not its indices
        image_digest(image.convert("RGBA") if image.mode == "P" else image) for image in images
    ]
    return [key_of(*common, text, digest) for text, digest in zip(texts, pixels, strict=True)]
