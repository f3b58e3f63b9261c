"""What lessons measure: object hallucination, yes/no probes, margins, and how sure we are.

    words = plurals(NOUNS)
    result = object_hallucination(captions, [scene.nouns for scene in scenes], NOUNS, words)
    result.chair_s, result.cover
    interval([bool(c.hallucinated) for c in result.per_caption])      # 95%, over images
    interval([(len(c.hallucinated), len(c.mentioned)) for c in result.per_caption], ratio)

Shares are fractions from 0 to 1. A share of nothing (0/0) is nan: a silent model has no
chair_i, and as nan is above and below nothing, silence passes no threshold.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

# --- object hallucination ------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionObjects:
    """The objects of one caption. Mentions keep their order and repeats; the rest are sets."""

    mentioned: tuple[str, ...]
    hallucinated: tuple[str, ...]  # the mentions that are not in the picture
    truth: frozenset[str]
    hits: frozenset[str]  # of the truth
    prone: frozenset[str]  # absent objects that this picture tempts a model to mention
    prone_hits: frozenset[str]


@dataclass(frozen=True)
class Hallucination:
    """Shares over all captions, the counts behind them, and each caption's objects.

    `chair_i` and `chair_s`: arXiv 1809.02156, section 2. `cover` and `cog`: AMBER, arXiv
    2311.07397, section 3, where `chair_s` is called Hal. Read `chair_*` beside `cover`: who says
    little is seldom wrong.
    """

    chair_i: float  # hallucinated_mentions / mentions
    chair_s: float  # hallucinating_captions / captions
    cover: float  # hits / truth_objects
    cog: float  # prone_hits / prone_objects
    mentions: int
    hallucinated_mentions: int
    captions: int
    hallucinating_captions: int
    truth_objects: int
    hits: int
    prone_objects: int
    prone_hits: int
    per_caption: tuple[CaptionObjects, ...]


def object_hallucination(captions, truths, vocabulary, synonyms=None, prone=None):
    """Compare the objects a caption mentions with those in its picture.

    `captions`: texts. `truths`: for each, the objects in the picture. `vocabulary`: the objects
    that are looked for; other words do not count. `synonyms`: word -> object, plurals included
    (see `plurals`). `prone`: for each caption, objects a model is tempted to add; those that are
    in the picture are left out.

    Whole words, in any case, the longest name first, so "dining table" is not a "table". Every
    occurrence is a mention. A negation is a mention too ("no cat"), as in the public code.
    Raises ValueError when lists differ in length or a name is not in the vocabulary.
    """
    _same_length("captions", captions, "truths", truths)
    prone = [()] * len(captions) if prone is None else prone
    _same_length("captions", captions, "prone", prone)
    objects = _object_of(vocabulary, synonyms or {})
    pattern = _any_of(objects)
    per_caption = []
    for row, (caption, truth, tempting) in enumerate(zip(captions, truths, prone, strict=True)):
        if not isinstance(caption, str):
            raise ValueError(f"caption {row} is {caption!r}, not a text.")
        truth = _named(truth, objects, f"the truth of caption {row}")
        tempting = _named(tempting, objects, f"prone of caption {row}") - truth
        mentioned = tuple(objects[_plain(match)] for match in pattern.findall(caption))
        wrong = tuple(name for name in mentioned if name not in truth)
        hits, falls = truth.intersection(mentioned), tempting.intersection(mentioned)
        per_caption.append(CaptionObjects(mentioned, wrong, truth, hits, tempting, falls))
    return _summary(tuple(per_caption))


def _summary(per_caption):
    fields = CaptionObjects.__dataclass_fields__
    total = {name: sum(len(getattr(c, name)) for c in per_caption) for name in fields}
    wrong_captions = sum(bool(c.hallucinated) for c in per_caption)
    return Hallucination(
        chair_i=_share(total["hallucinated"], total["mentioned"]),
        chair_s=_share(wrong_captions, len(per_caption)),
        cover=_share(total["hits"], total["truth"]),
        cog=_share(total["prone_hits"], total["prone"]),
        mentions=total["mentioned"],
        hallucinated_mentions=total["hallucinated"],
        captions=len(per_caption),
        hallucinating_captions=wrong_captions,
        truth_objects=total["truth"],
        hits=total["hits"],
        prone_objects=total["prone"],
        prone_hits=total["prone_hits"],
        per_caption=per_caption,
    )


IRREGULAR = {"person": "people", "man": "men", "woman": "women", "child": "children"}
IRREGULAR |= {"mouse": "mice", "knife": "knives", "goose": "geese", "leaf": "leaves"}


def plurals(vocabulary):
    """Synonyms for the plural of each name: {"dining tables": "dining table", ...}."""
    return {_plural(name): name for name in vocabulary}


def _plural(name):
    first, last = name[: name.rfind(" ") + 1], name.split(" ")[-1]
    if last in IRREGULAR:
        return first + IRREGULAR[last]
    if re.search(r"(s|x|z|ch|sh)$", last):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", last) else name + "s"


def _plain(name):
    """Lower case, words one space apart: "Dining-\\nTable" and "dining table" are one."""
    return " ".join(re.split(r"[\s-]+", name.lower()))


def _object_of(vocabulary, synonyms):
    """{spelling: object} for every name that is looked for."""
    objects = {_plain(name): name for name in vocabulary}
    if not objects:
        raise ValueError("the vocabulary is empty: name the objects to look for.")
    for word, name in synonyms.items():
        if name not in objects.values():
            raise ValueError(
                f"synonym {word!r} stands for {name!r}, which is not in the vocabulary."
            )
        objects.setdefault(_plain(word), name)  # an object's own name beats a synonym
    return objects


def _any_of(names):
    """A pattern for whole words, the longest first: the first alternative that fits wins."""
    names = sorted(names, key=len, reverse=True)
    spellings = (r"[\s-]+".join(map(re.escape, name.split(" "))) for name in names)
    return re.compile(rf"(?<!\w)(?:{'|'.join(spellings)})(?!\w)", re.IGNORECASE)


def _named(names, objects, where):
    if isinstance(names, str):
        raise ValueError(f"{where} is the text {names!r}: pass a collection of names.")
    unknown = sorted(name for name in names if _plain(name) not in objects)
    if unknown:
        raise ValueError(
            f"{where} names {', '.join(unknown)}: add it to the vocabulary or the synonyms."
        )
    return frozenset(objects[_plain(name)] for name in names)


# --- yes/no probes -------------------------------------------------------------------------


@dataclass(frozen=True)
class YesNo:
    """Shares over `n` probes. Read them beside `yes_ratio`, which shows a one-sided answerer."""

    accuracy: float
    precision: float  # nan when the positive answer was never given
    recall: float
    f1: float
    yes_ratio: float
    n: int


def parse_yes_no(answer):
    """A free answer as "yes" or "no", as POPE reads it (arXiv 2305.10355, public code).

    Only the first sentence counts; "No", "no" or "not" as a word means no, and anything else
    means yes, so an empty answer and "NO" are a yes as well.
    """
    if not isinstance(answer, str):
        raise ValueError(f"the answer {answer!r} is not a text.")
    words = re.findall(r"\w+", answer.split(".")[0])
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def yes_no(answers, labels, positive="yes"):
    """Accuracy, precision, recall, F1 and the share of "yes" over probes.

    `answers`: texts, read by `parse_yes_no`. `labels`: "yes" or "no". `positive`: the class that
    precision, recall and F1 speak of: "yes" in POPE, "no" in AMBER. Raises ValueError for lists
    of different length and for labels or `positive` that are neither.
    """
    _same_length("answers", answers, "labels", labels)
    for name, value in [("positive", positive), *((f"label {i}", v) for i, v in enumerate(labels))]:
        if value not in ("yes", "no"):
            raise ValueError(f'{name} is {value!r}: it must be "yes" or "no".')
    given = [parse_yes_no(answer) for answer in answers]
    right = [g == label for g, label in zip(given, labels, strict=True)]
    hits = sum(r and g == positive for r, g in zip(right, given, strict=True))
    claimed, actual = given.count(positive), list(labels).count(positive)
    return YesNo(
        accuracy=_share(sum(right), len(given)),
        precision=_share(hits, claimed),
        recall=_share(hits, actual),
        f1=_share(2 * hits, claimed + actual),
        yes_ratio=_share(given.count("yes"), len(given)),
        n=len(given),
    )


# --- margins -------------------------------------------------------------------------------


def margins(
    policy_chosen_logps,
    policy_rejected_logps,
    reference_chosen_logps=0.0,
    reference_rejected_logps=0.0,
    beta=1.0,
):
    """Each pair's margin, chosen reward minus rejected reward, as an array (n,).

    Arrays or tensors of summed log-probs. Without the reference: how much this model itself
    prefers the chosen answer. Raises ValueError when their lengths differ.
    """
    policy = _array(policy_chosen_logps), _array(policy_rejected_logps)
    reference = _array(reference_chosen_logps), _array(reference_rejected_logps)
    lengths = [values.size for values in policy + reference if values.ndim]
    if len(set(lengths)) > 1:
        raise ValueError(f"the log-probs must have one length, but have {lengths}.")
    return beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))


def preference_accuracy(pair_margins):
    """The share of pairs with a margin strictly above 0.

    A tie counts as wrong, as in TRL's rewards/accuracies: while the policy still is the reference
    every margin is 0, and so is the accuracy.
    """
    pair_margins = _array(pair_margins)
    return _share(int((pair_margins > 0).sum()), len(pair_margins))


# --- how sure we are -----------------------------------------------------------------------


def ratio(rows):
    """Sum of the first column over sum of the second: a statistic for `interval`."""
    over, under = np.asarray(rows).sum(0)
    return _share(over, under)


def interval(values, statistic=np.mean, level=0.95, seed=0, resamples=2000):
    """(low, high): the percentile bootstrap interval of a statistic, the same for the same seed.

    `values`: one number or one row of numbers for each independent item: an image, not each of
    its probes. Raises ValueError when there are none, when one is not a number, or when `level` is
    not between 0 and 1.
    """
    values = _sound("values", values)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1, such as 0.95.")
    rng = np.random.default_rng(seed)
    n = len(values)
    draws = [statistic(values[rng.integers(0, n, n)]) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """The mean of b - a over the same items, its interval, and what went up and down."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    higher: int  # items where b is above a
    lower: int


def paired(a, b, level=0.95, seed=0, resamples=2000):
    """Compare two models on the same items: `a` the base, `b` the tuned one, a number an item.

    p comes from the paired permutation test: under "no difference" each item's difference may as
    well have the other sign. For 0/1 items that is McNemar's exact test, by sampling; its smallest
    value is 1 / (resamples + 1). Raises ValueError as `interval`, and when lengths differ.
    """
    a, b = _sound("a", a), _sound("b", b)
    _same_length("a", a, "b", b)
    differences = b - a
    low, high = interval(differences, level=level, seed=seed, resamples=resamples)
    rng = np.random.default_rng(seed)
    observed = abs(differences.sum())
    flipped = [abs(rng.choice((-1, 1), len(a)) @ differences) for _ in range(resamples)]
    # Sums in another order differ in the last digits: a tie must count as a tie.
    extreme = sum(value >= observed - 1e-9 * (1 + observed) for value in flipped)
    return Paired(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=(extreme + 1) / (resamples + 1),
        n=len(a),
        higher=int((differences > 0).sum()),
        lower=int((differences < 0).sum()),
    )


def _share(part, whole):
    return float(part / whole) if whole else math.nan


def _same_length(name, values, other_name, others):
    if len(values) != len(others):
        raise ValueError(
            f"{name} and {other_name} must go together, but there are {len(values)} and "
            f"{len(others)} of them."
        )


def _array(values):
    """float64, also from a tensor of any precision, on any device, with or without gradient."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=float)


def _sound(name, values):
    values = _array(values)
    if not values.size:
        raise ValueError(f"{name} is empty: there is nothing to estimate from.")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name}[{row}] is not a finite number: {values[row]}.")
    return values
