"""What goes through the pipeline: items, and the one signature that every stage has.

A stage is a callable `stage(items) -> results`: a list of `Item`s, and one result for each, in the
same order.

    image generator   items without image           -> PIL images in RGB, or `Drawn`s
    image reward      items with image              -> numbers, the higher the better
    answerer          items with image              -> texts
    answer reward     items with image and answer   -> numbers or `Score`s, the higher the better

    def likes_length(items):
        return [len(item.answer.split()) for item in items]

A stage's `name` (or `__name__`) and, where it has them, its `settings` (a dict, JSON throughout)
stand in the run's card, and a run is gone on with only by stages of the same ones. A stage may also
yield its results one by one: each is then kept as soon as it is there, not with its batch. If it
has a `release`, this is called when its last item is done, to free memory for the next stage.

A stage that draws random numbers takes them from `item.seed`, so that a result hangs neither on the
rest of the batch nor on where a run was interrupted. One that samples in batches and returns a list
may seed a batch from the seeds in it: unless a call fails as a whole, the batches of a run are the
same however often it is interrupted. One that yields may not.
"""

import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image

RESERVED = {"prompt", "picture", "chosen", "rejected"}  # in what is told of a pair


class SynthesisError(ValueError):
    """A run cannot go on; the message names the stage and the item. What was made is kept."""


@dataclass(frozen=True)
class Prompt:
    """What a picture is to show, and what is asked about it. `about`: JSON throughout."""

    text: str
    question: str
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("text", "question"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name).strip()):
                raise ValueError(f"a prompt's {name} is {getattr(self, name)!r}: write a sentence")
            as_json(getattr(self, name), f"a prompt's {name}")
        as_json(self.about, "a prompt's `about`")
        if taken := RESERVED & set(self.about):
            raise ValueError(
                f"a prompt's `about` has {min(taken)!r}, under which a pair tells how it came to "
                "be: choose another name"
            )


@dataclass(frozen=True)
class Item:
    """One thing to do. `about`: what the prompt and earlier stages know of it, JSON throughout."""

    key: str  # names it in the run: "7/2" is the picture 2 of prompt 7, "7/2/base/0" an answer
    prompt: str  # what the picture is to show
    question: str  # what is asked about the picture
    seed: int  # of the run's seed, the stage and the key; below 2 ** 31
    image: Image.Image | None = None
    answer: str | None = None
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A picture and what its generator knows about it beyond the pixels, JSON throughout.

    Later stages find this `about` added to that of the prompt.
    """

    image: Image.Image
    about: dict[str, Any] = field(default_factory=dict)


class Score(float):
    """A number that knows what it was made of: `about`, JSON throughout.

    Score(None) says that there was nothing to score. An answer that states no fact has no rejected
    ones either: it is left out, where a 0 would make it the best of all.
    """

    def __new__(cls, value, about=None):
        score = super().__new__(cls, math.nan if value is None else value)
        score.nothing, score.about = value is None, about or {}
        return score


def text_only(reward):
    """The reward, made blind: of each item it is handed question, answer and seed, and a number.

    The picture and `about` are withheld, and so are the prompt, which says what the picture shows,
    and the key, which names the answerer.
    """

    def blind(items):
        hidden = {"prompt": "", "image": None, "about": {}}
        return reward([replace(item, key=str(i), **hidden) for i, item in enumerate(items)])

    blind.name, blind.settings = f"{name_of(reward)} (text only)", settings_of(reward)
    blind.release = partial(release, reward)
    return blind


def name_of(stage):
    """What a stage is called: its `name`, else its `__name__`, else that of its class."""
    if isinstance(stage, partial) and not getattr(stage, "name", None):
        return name_of(stage.func)
    return str(getattr(stage, "name", None) or getattr(stage, "__name__", type(stage).__name__))


def settings_of(stage):
    """A stage's `settings`, {} if it has none; of a functools.partial what it binds, too.

    A model that is bound is no JSON and left out: the stage's own settings name it. Raises
    SynthesisError for settings that are no dict, or no JSON.
    """
    if isinstance(stage, partial):
        bound = {f"argument {i}": value for i, value in enumerate(stage.args)} | stage.keywords
        return settings_of(stage.func) | {k: v for k, v in bound.items() if _is_json(v)}
    settings = getattr(stage, "settings", {})
    if not isinstance(settings, dict):
        raise SynthesisError(f"the settings of {name_of(stage)!r} are {settings!r:.80}, not a dict")
    as_json(settings, f"a setting of {name_of(stage)!r}")
    return dict(settings)


def release(stage):
    """Free what a stage holds, if it has a `release`."""
    if isinstance(stage, partial):
        return release(stage.func)
    getattr(stage, "release", lambda: None)()


def as_json(value, what):
    """One line of JSON, always the same for the same value. Raises SynthesisError naming `what`."""
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a character cannot be
        return text
    except (TypeError, ValueError) as error:
        raise SynthesisError(
            f"{what} is no JSON ({error}): use texts, finite numbers, lists and dicts"
        ) from None


def _is_json(value):
    try:
        as_json(value, "it")
    except SynthesisError:
        return False
    return True
