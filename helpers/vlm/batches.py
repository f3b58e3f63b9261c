"""Work on pictures and texts in batches: longest first, halved when memory runs out, one bar.

job = Job("answering", prompts, longest_first(processor, images, prompts), run)
for rows, results in in_batches(job, 64):    # run([7, 2, ...]) -> a result for each row
    ...
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Job:
    """Something to find out about n rows, each a picture and a prompt, in batches of any rows."""

    doing: str  # for the progress bar
    prompts: list[str]  # all that stands before the answers
    order: list[int]  # rows, longest first
    run: Callable  # a list of rows -> a list of results, on the CPU


def longest_first(processor, images, texts):
    """The rows by tiles of the picture, then by tokens of the text; equal ones in their order.

    So a batch has little padding and answers that end together, a memory that is too small shows at
    once, and the time left is not promised too low.
    """
    tiles = getattr(processor.image_processor, "get_number_of_image_patches", lambda *size: 0)
    sizes = [tiles(image.height, image.width, {}) for image in images]
    tokens = {text: len(processor.tokenizer.tokenize(text)) for text in set(texts)}
    lengths = [(size, tokens[text]) for size, text in zip(sizes, texts, strict=True)]
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def in_batches(job, size, bar=None):
    """Yields (rows, results) batch by batch, `size` rows at a time, in the job's order.

    Where a GPU runs out of memory, the batches are halved and the work goes on, with a message;
    torch.cuda.OutOfMemoryError is raised when one row alone is too much. `bar`: a tqdm over several
    jobs, which advances by n; without one the job shows its own.
    """
    if bar is None:
        bar = tqdm(total=len(job.order), desc=job.doing, leave=False)
    else:
        bar = nullcontext(bar)  # the caller closes it
    done = 0
    with bar as progress:
        while done < len(job.order):
            rows = job.order[done : done + size]
            results = _if_it_fits(job.run, rows)
            if results is None:
                torch.cuda.empty_cache()
                size = len(rows) // 2
                progress.write(f"out of memory with {len(rows)} pictures at once: {size} from here")
                continue
            yield rows, results
            done += len(rows)
            progress.update(len(rows))


def all_results(job, size, bar=None):
    """The results of all rows, in the order of the rows."""
    found = {}
    for rows, results in in_batches(job, size, bar):
        found.update(zip(rows, results, strict=True))
    return [found[row] for row in sorted(found)]


def _if_it_fits(run, rows):
    """None when it does not. (While the error lives, it holds the memory of the failed batch.)"""
    try:
        return run(rows)
    except torch.cuda.OutOfMemoryError as error:
        if len(rows) > 1:
            return None
        raise torch.cuda.OutOfMemoryError(
            "not enough memory for one picture at a time: lower the track's image_edge or "
            "max_new_tokens, or load the model in 4 bits"
        ) from error
