"""A stage with weights: loaded at its first call, let go by `release`, never from a pickle.

    class Likes(Part):
        name, batch_size = "likes", 8

        def load(self):                              # a tuple
            return (whole(CLIPModel, Weights("me/clip"), "cpu"),)

        def results(self, items, model):             # one for each item, in order
            return self.run(in_order(items, lambda some: ...), items)

Whoever runs stages one after another calls a stage's `release()` before the next one loads, so that
a machine needs room for one model at a time.
"""

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from helpers.setup.hub import first_line
from helpers.setup.machine import this_machine
from helpers.vlm.answers import Job, all_results, in_batches
from helpers.vlm.load import ModelError


class PartError(ValueError):
    """A stage has no result for an item; the message names the item and says what to do."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint: a folder, or a Hub id at a `revision` (None: the newest).

    `variant` is what file names say about the precision, "fp16" in model.fp16.safetensors.
    """

    name: str
    revision: str | None = None
    variant: str | None = None

    def __str__(self):
        return f"{public(self.name)}@{self.revision}" if self.revision else public(self.name)


def public(name):
    """A Hub id as it is; a folder without the path to it, as names go into cards."""
    return Path(name).resolve().name if Path(name).is_dir() else str(name)


def short(name):
    """A name without its owner, for the keys and titles of a run."""
    return public(name).rsplit("/", 1)[-1]


def accelerator():
    """What this machine computes on: "cuda", "mps" or "cpu"."""
    return this_machine().kind


class Part:
    """A stage that holds weights; the module's docstring shows what a part defines."""

    remedy = "use a smaller model"  # when one item alone is too much for the memory
    loaded = None  # an instance's tuple, while it holds one

    def __call__(self, items):
        if not items:
            return []
        if self.loaded is None:
            self.loaded = self.load()
        return self.results(items, *self.loaded)

    def release(self):
        """Free the memory; another call loads the weights again."""
        self.loaded = None
        gc.collect()  # an error's traceback may hold the weights in a cycle
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def run(self, job, items):
        """The job's results as a list; its row i is about items[i]."""
        return all_results(self._naming(job, items), self.batch_size, silent())

    def stream(self, job, items):
        """The results one by one, as soon as their batch is done, of a job that keeps the order."""
        for _, results in in_batches(self._naming(job, items), self.batch_size, silent()):
            yield from results

    def _naming(self, job, items):
        """The job, naming the item that is too large to be done alone."""

        def run(rows):
            try:
                return job.run(rows)
            except torch.cuda.OutOfMemoryError as error:
                if len(rows) > 1:
                    raise  # helpers.vlm.answers halves the batch and goes on
                raise PartError(
                    f"item {items[rows[0]].key}: not enough memory for {self.name}, even for one "
                    f"item at a time: {self.remedy}"
                ) from error

        return replace(job, run=run)


def silent():
    """A bar that does not show: the run has one of its own."""
    return tqdm(disable=True)


def in_order(items, results):
    """A Job over items in their order; `results` maps some of them to a list."""
    rows = list(range(len(items)))
    prompts = [item.prompt for item in items]
    return Job("stage", prompts, rows, lambda some: results([items[row] for row in some]))


def require(items, *names):
    """Raises PartError for an item that an earlier stage has not come to."""
    for item in items:
        for name in names:
            if getattr(item, name) is None:
                raise PartError(f"item {item.key} has no {name}: run the stages before this one")


# --- reading -------------------------------------------------------------------------------


def read(weights, load):
    """What `load(name, revision=...)` gives, and any failure of it as one sentence (ModelError)."""
    try:
        return load(weights.name, revision=weights.revision)
    except Exception as error:  # every library below has exceptions of its own
        raise ModelError(
            f"{weights.name} cannot be read ({type(error).__name__}: {first_line(error)}): check "
            "the name, the network, and that the checkpoint has safetensors: pickled weights "
            "(.bin, .pt, .ckpt) are never loaded"
        ) from error


def whole(kind, weights, device):
    """A transformers model in float32: rewards are compared in their last digits.

    kind: a class with `from_pretrained`. What a checkpoint lacks, transformers fills with random
    numbers and a warning, such as the head of a language model that is taken for a reward model;
    here that is a ModelError.
    """
    how = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, info = read(weights, lambda name, **at: kind.from_pretrained(name, **at, **how))
    if info["missing_keys"]:
        raise ModelError(
            f"{weights.name} has no {min(info['missing_keys'])}: it was not trained as a "
            f"{type(model).__name__}, choose another checkpoint"
        )
    return model.to(device)
