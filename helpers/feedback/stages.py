"""What goes through the pipeline, and how a stage is called: nothing twice, every fault named.

A stage is a callable `stage(items) -> results`: a list of `Item`s, and one result for each, in the
same order.

    image generator   items without image           -> PIL images in RGB, or `Drawn`s
    image reward      items with image              -> numbers, the higher the better
    answerer          items with image              -> texts
    answer reward     items with image and answer   -> numbers or `Score`s, the higher the better

    def likes_length(items):
        return [len(item.answer.split()) for item in items]

Its `name` (or `__name__`) and, where it has them, its `settings` (a dict, JSON throughout) stand in
the card of the pairs and in the key under which its results are kept: whatever changes a result
belongs into one of them. A stage may yield its results: each is then kept as soon as it is there.
If it has a `release`, this is called after its last item, to free memory for the next stage.

Random numbers come from `item.seed`, so that a result depends neither on the rest of the batch nor
on where a run was interrupted. A stage that samples a whole batch at once says so by
`by_batch = True` and seeds the batch from the seeds in it: its results are then kept for exactly
that batch. Such a stage returns a list, it does not yield.
"""

import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from helpers.setup.storage import Store, key_of
from helpers.vlm.load import ModelError

ROLES = {
    "pictures": "image generator",
    "image_scores": "image reward",
    "answers": "answerer",
    "answer_scores": "answer reward",
}
RESERVED = {"prompt", "picture", "chosen", "rejected"}  # in what `origin_split` tells of a pair


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

    def __new__(cls, value: float | None, about: dict[str, Any] | None = None):
        score = super().__new__(cls, math.nan if value is None else value)
        score.nothing, score.about = value is None, about or {}
        return score


def text_only(reward: Callable) -> Callable:
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


# --- what is known of a stage --------------------------------------------------------------------


def name_of(stage: Callable) -> str:
    """What a stage is called: its `name`, else its `__name__`, else that of its class."""
    if isinstance(stage, partial) and not getattr(stage, "name", None):
        return name_of(stage.func)
    return str(getattr(stage, "name", None) or getattr(stage, "__name__", type(stage).__name__))


def settings_of(stage: Callable) -> dict[str, Any]:
    """A stage's `settings`, {} if it has none; of a functools.partial what it binds, too.

    A model that is bound is no JSON and left out: the stage's own settings name it. Raises
    SynthesisError for settings that are no dict, or no JSON.
    """
    if isinstance(stage, partial):
        settings = settings_of(stage.func)
        bound = {f"argument {i}": value for i, value in enumerate(stage.args)} | stage.keywords
        for name, value in bound.items():
            with suppress(SynthesisError):
                as_json(value, name)
                settings[name] = value
        return settings
    settings = getattr(stage, "settings", {})
    if not isinstance(settings, dict):
        raise SynthesisError(f"the settings of {name_of(stage)!r} are {settings!r:.80}, not a dict")
    as_json(settings, f"a setting of {name_of(stage)!r}")
    return dict(settings)


def release(stage: Callable) -> None:
    """Free what a stage holds, if it (or what a functools.partial binds) has a `release`."""
    getattr(getattr(stage, "func", stage), "release", lambda: None)()


def as_json(value: Any, what: str) -> str:
    """One line of JSON, always the same for the same value. Raises SynthesisError naming `what`."""
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a character cannot be
        return text
    except (TypeError, ValueError) as error:
        raise SynthesisError(
            f"{what} is no JSON ({error}): use texts, finite numbers, lists and dicts"
        ) from None


def seed_of(seed: int | str, kind: str, key: str) -> int:
    """The seed of one item: of the run's seed, the kind of stage and the key; below 2 ** 31."""
    text = as_json([seed, kind, key], "the run's seed")
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) % 2**31


# --- calling a stage: nothing twice, nothing lost, every fault named -----------------------------


@dataclass
class Calls:
    """What is needed to call a stage on its items and to keep what it gives.

    `read(result)` makes a JSON value of a result or raises Fault. `ready(item)` is the item with
    its picture, which is loaded only when its batch comes.
    """

    kind: str  # of ROLES
    stage: Callable
    read: Callable
    ready: Callable
    store: Store
    batch_size: int
    on_error: str  # "stop", or "skip": keep the error in place of a value, and go on

    def values(self, items: list[Item], pictures: list[str | None]) -> dict[str, dict]:
        """{item's key: value, or {"error": sentence}}, in the order of the items.

        `pictures`: the digest of each item's picture. A value is kept under a key of this, of all
        that the item holds, and of the stage's name and settings: what is kept is not done again,
        and a stage with nothing left to do is not called. Errors that were skipped are tried again
        when on_error is "stop". Raises SynthesisError at the first error if on_error is "stop",
        and always when a stage cannot read its model (ModelError).
        """
        self.who = f"the {ROLES[self.kind]} {name_of(self.stage)!r}"
        stage = [self.kind, name_of(self.stage), settings_of(self.stage)]
        keys = [key_of(stage, asdict(i), p) for i, p in zip(items, pictures, strict=True)]
        starts = range(0, len(items), self.batch_size)
        if getattr(self.stage, "by_batch", False):  # then the others in the batch count, too
            batches = [keys[start : start + self.batch_size] for start in starts]
            keys = [key_of(key, batch) for batch in batches for key in batch]
        self.keys = {item.key: key for item, key in zip(items, keys, strict=True)}
        again = self.on_error == "stop"
        done = {key for key in keys if key in self.store}
        done -= {key for key in done if again and "error" in self.store[key]}
        bar = tqdm(desc=self.kind.replace("_", " "), total=len(items), initial=len(done),
                   leave=False, disable=len(done) == len(items))  # fmt: skip
        try:
            with bar:
                for start in starts:
                    batch = items[start : start + self.batch_size]
                    if left := [item for item in batch if self.keys[item.key] not in done]:
                        self._call(left)
                        bar.update(len(left))
        finally:
            release(self.stage)
        return {item: self.store[key] for item, key in self.keys.items()}

    def _call(self, items):
        """One call of the stage; if it fails as a whole, one for each item that it left undone."""
        left = list(items)
        try:
            for results in _results(self.stage, [self.ready(item) for item in items]):
                self._keep(left[: len(results)], results)
                del left[: len(results)]
        except ModelError as error:  # no item is at fault, so that none can be skipped
            kept = f"What was made before is kept in {self.store.folder}"
            raise SynthesisError(f"{self.who}: {str(error).removesuffix('.')}. {kept}") from error
        except _Failed as failure:
            if len(items) == 1:
                self._keep(items, [Fault(str(failure))])
                return
            warnings.warn(
                f"{self.who} failed on the {len(items)} items {items[0].key} to {items[-1].key} at "
                f"once ({failure}): those it left undone are done one by one",
                stacklevel=3,
            )
            for item in left:
                self._call([item])

    def _keep(self, items, results):
        """Keep the results that are sound, then tell of the others."""
        values, errors = {}, {}
        for item, result in zip(items, results, strict=True):
            try:
                if isinstance(result, Fault):
                    raise result
                values[self.keys[item.key]] = self.read(result)
            except Fault as fault:
                error = f"{self.who} on item {item.key} (prompt {item.prompt!r:.80}): {fault}"
                error = error.encode(errors="replace").decode()  # it may quote half a character
                errors[self.keys[item.key]] = {"error": error}
        kept = values if self.on_error == "stop" else values | errors
        try:
            if kept:
                self.store.add(kept)
        except OSError as error:
            raise SynthesisError(
                f"cannot write {self.store.lines} ({error.strerror or error}): make room or mend "
                "it, and run again; what was made before is kept"
            ) from error
        if errors and self.on_error == "stop":
            raise SynthesisError(
                f"{next(iter(errors.values()))['error']}. What was made before is kept in "
                f'{self.store.folder}: mend it and run again, or set on_error="skip" to go on '
                "without such items"
            )


class _Failed(Exception):
    """A call failed as a whole; the message tells how."""


def _results(stage, items):
    """Yields lists of results: all at once, or one by one from a stage that yields."""
    try:
        results, count = stage(items), 0
        if results is None or isinstance(results, (str, bytes, dict, set, frozenset)):
            raise TypeError(f"it returned {results!r:.80}, not a list of results")
        if hasattr(results, "__next__") and len(items) > 1:
            for count, result in enumerate(results, 1):
                if count <= len(items):
                    yield [result]
        else:
            results = list(results)
            count = len(results)
            if count == len(items):
                yield results
        if count != len(items):
            raise ValueError(f"it returned {count} results for {len(items)} items")
    except ModelError:
        raise
    except Exception as error:  # a stage may raise anything
        raise _Failed(f"{type(error).__name__}: {error}"[:300]) from error


# --- what is a result ----------------------------------------------------------------------------


class Fault(ValueError):
    """What a stage gave for an item is no result; the message says what it is instead."""


def read_picture(result: Any) -> tuple[bytes, dict[str, Any]]:
    """(PNG file, what its generator knows) of a generator's result; raises Fault."""
    drawn = result if isinstance(result, Drawn) else Drawn(result)
    image, about = drawn.image, _about(drawn.about)
    if not isinstance(image, Image.Image):
        raise Fault(f"it gave {_shown(image)}, not a PIL image")
    if image.mode != "RGB":
        raise Fault(f"its picture has mode {image.mode}, not RGB: convert it")
    if taken := RESERVED & set(about):
        raise Fault(f"its `about` has {min(taken)!r}, which has a meaning: choose another name")
    buffer = io.BytesIO()
    try:  # without what the picture's own file said: the same bytes for the same pixels
        Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, "PNG")
    except Exception as error:  # a file that is cut off shows only here
        raise Fault(f"its picture cannot be saved ({error})") from None
    return buffer.getvalue(), about


def read_text(result: Any) -> dict[str, Any]:
    """{"answer": ...} of an answerer's result; raises Fault."""
    if not isinstance(result, str):
        raise Fault(f"it gave {_shown(result)}, not a text")
    try:
        result.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"its text cannot be written ({error.reason})") from None
    return {"answer": str(result)}


def read_score(result: Any) -> dict[str, Any]:
    """{"score", "about"} of a reward's result; a score of None for Score(None). Raises Fault."""
    about = _about(result.about if isinstance(result, Score) else {})
    if isinstance(result, Score) and result.nothing:
        return {"score": None, "about": about}
    try:
        if isinstance(result, (str, bytes)):
            raise TypeError
        value = float(result)
    except Exception:  # arrays and tensors of several numbers raise kinds of their own
        raise Fault(f"it gave {_shown(result)}, not a number") from None
    if not math.isfinite(value):
        raise Fault(f"it gave {value}, not a finite number")
    return {"score": value, "about": about}


def _about(about):
    if not isinstance(about, dict):
        raise Fault(f"its `about` is {_shown(about)}, not a dict")
    try:
        return json.loads(as_json(about, "its `about`"))
    except SynthesisError as error:
        raise Fault(str(error)) from None


def _shown(value):
    """In one line, and short."""
    shown = " ".join(repr(value).split())[:60]
    return "None" if value is None else f"a {type(value).__name__} ({shown})"
