"""What a run is a run of: its parts, its settings, and the identity by which it is known again.

parts = Parts(generator, image_reward, [answerer, another], answer_reward)
settings = Settings(candidates=4, samples=2, filters=Filters(least_margin=1))
run_identity(prompts, parts, settings)     # {stage: {setting: value}}, JSON throughout
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from helpers.feedback.filters import Filters
from helpers.feedback.items import Prompt, SynthesisError, as_json, name_of, settings_of
from helpers.feedback.pairing import best_worst

ANSWER_FILTERS = ("least_words", "most_words", "repeats")  # these decide what is scored


@dataclass(frozen=True)
class Parts:
    """The stages of a run, and the rule that makes pairs (`helpers.feedback.pairing`)."""

    generator: Callable
    image_reward: Callable
    answerers: list[Callable]
    answer_reward: Callable
    pairing: Callable = best_worst

    def __post_init__(self):
        stages = [self.generator, self.image_reward, *self.answerers, self.answer_reward]
        for stage in [*stages, self.pairing]:
            if not callable(stage):
                raise ValueError(f"{stage!r:.80} is no stage: pass something that can be called")
        names = Counter(map(name_of, self.answerers))
        if not names:
            raise ValueError("there is no answerer: pass one at least")
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two answerers are called {twice[0]!r}: give one another `name`")


@dataclass(frozen=True)
class Settings:
    """What a run does with its parts."""

    seed: int = 0
    candidates: int = 4  # pictures drawn for each prompt
    keep: int = 1  # of them, the best ones, are asked about
    least_image_score: float | None = None  # and only those with this score or more
    samples: int = 1  # answers of each answerer to each picture
    filters: Filters = field(default_factory=Filters)
    size: tuple[int, int] | None = None  # width, height; None: that of the first picture
    image_format: str = "PNG"  # or "JPEG", at quality 95; later stages see what was saved
    batch_size: int = 32  # items in one call of a stage
    on_error: str = "stop"  # or "skip": note the item in errors.jsonl and go on

    def __post_init__(self):
        for name in ("candidates", "keep", "samples", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} is {value!r}: set it to a whole number, 1 or more")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}: set it to a whole number")
        if self.size is not None and not _is_size(self.size):
            raise ValueError(f"size is {self.size!r}: set it to (width, height) in pixels")
        for name, known in (("image_format", ("PNG", "JPEG")), ("on_error", ("stop", "skip"))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}: set it to {known[0]!r} or {known[1]!r}")


def run_identity(prompts, parts, settings):
    """{stage: {setting: value}}: what each stage's results hang on beside those of earlier stages.

    How to go on after an error is not among them. Raises SynthesisError for prompts that are none,
    or for one answer to each picture, which makes no pair.
    """
    require_prompts(prompts)
    if len(parts.answerers) * settings.samples < 2:
        raise SynthesisError(
            "one answerer with one sample gives no two answers to compare: raise samples, or pass "
            "another answerer"
        )
    filters = asdict(settings.filters)
    return {
        "pictures": {
            "prompts": f"{len(prompts)}, digest {prompts_digest(prompts)}",
            "generator": _stage(parts.generator),
            **{n: getattr(settings, n) for n in ("seed", "candidates", "size", "image_format")},
            "batch_size": settings.batch_size,
        },
        "image_scores": {"image_reward": _stage(parts.image_reward)},
        "answers": {
            "answerers": {name_of(stage): settings_of(stage) for stage in parts.answerers},
            "order": [name_of(stage) for stage in parts.answerers],  # it decides between ties
            **{n: getattr(settings, n) for n in ("keep", "least_image_score", "samples")},
        },
        "answer_scores": {
            "answer_reward": _stage(parts.answer_reward),
            **{name: filters[name] for name in ANSWER_FILTERS},
        },
        "pairs": {
            "pairing": _stage(parts.pairing),
            **{name: value for name, value in filters.items() if name not in ANSWER_FILTERS},
        },
    }


def _is_size(size):
    return (
        isinstance(size, (tuple, list))
        and len(size) == 2
        and all(isinstance(edge, int) and edge >= 1 for edge in size)
    )


def require_prompts(prompts):
    if not prompts:
        raise SynthesisError("there are no prompts: pass a list of Prompt(text, question)")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise SynthesisError(
                f"prompt {i} is a {type(prompt).__name__}: make it a Prompt(text, question)"
            )


def prompts_digest(prompts):
    """A fingerprint of the prompts in their order."""
    texts = as_json([asdict(prompt) for prompt in prompts], "a prompt")
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def seed_of(seed, kind, key):
    """The seed of one item: of the run's seed, the kind of stage and the key; below 2 ** 31."""
    text = as_json([seed, kind, key], "the run's seed")
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) % 2**31


def _stage(stage):
    return {"name": name_of(stage), **settings_of(stage)}
