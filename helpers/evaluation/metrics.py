"""What lessons measure: object hallucination, yes/no probes, margins.

    result = object_hallucination(captions, [scene.nouns for scene in scenes], NOUNS)
    result.chair_s, result.cover
    estimate([bool(c.hallucinated) for c in result.per_caption])      # 95%, over images
    estimate([(len(c.hallucinated), len(c.mentioned)) for c in result.per_caption], ratio)

Shares are fractions from 0 to 1. A share of nothing (0/0) is nan: a silent model has no
chair_i, and as nan is above and below nothing, silence passes no threshold.

`helpers.evaluation.amber` scores AMBER's own files, `tools.score` those of AMBER and POPE.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers.evaluation import objects
from helpers.evaluation.intervals import array, same_length, share
from helpers.world.scenes import ASSOCIATES, NOUNS, Scene

# --- object hallucination ------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionObjects:
    """The objects of one caption. Mentions keep their order and repeats; the rest are sets."""

    mentioned: tuple[str, ...]
    hallucinated: tuple[str, ...]  # the mentions that are not in the picture
    truth: frozenset[str]
    true_positives: frozenset[str]  # objects of the truth that are mentioned
    prone: frozenset[str]  # absent objects that this picture tempts a model to mention
    prone_mentioned: frozenset[str]


@dataclass(frozen=True)
class Hallucination:
    """Shares over all captions, the counts behind them, and each caption's objects.

    `chair_i` and `chair_s`: arXiv 1809.02156, section 2. `cover` and `cog`: AMBER, arXiv
    2311.07397, section 3, where `chair_s` is called Hal. Read `chair_*` beside `cover`: who says
    little is seldom wrong.
    """

    chair_i: float  # hallucinated_mentions / mentions
    chair_s: float  # hallucinating_captions / captions
    cover: float  # true_positives / truth_objects
    cog: float  # prone_mentioned / prone_objects
    mentions: int
    hallucinated_mentions: int
    captions: int
    hallucinating_captions: int
    truth_objects: int
    true_positives: int
    prone_objects: int
    prone_mentioned: int
    per_caption: tuple[CaptionObjects, ...]


def object_hallucination(
    captions: Sequence[str],
    truths: Sequence[Collection[str]],
    vocabulary: Iterable[str],
    synonyms: dict[str, str] | None = None,
    prone: Sequence[Collection[str]] | None = None,
    ignore: Iterable[str] = (),
) -> Hallucination:
    """Compare the objects a caption mentions with those in its picture.

    `captions`: texts. `truths`: for each, the objects in the picture. `vocabulary`: the objects
    that are looked for; other words do not count. `synonyms`: word -> object. `prone`: for each
    caption, objects a model is tempted to add; those that are in the picture are left out.
    `ignore`: phrases that name none of the objects, though a part of them does ("train track").

    Whole words and plurals, in any case, the longest name first: see `objects.mentions`. Every
    occurrence is a mention, also a negated one ("no cat"), as in the public programs. Raises
    ValueError when lists differ in length or a name is not in the vocabulary.
    """
    same_length("captions", captions, "truths", truths)
    prone = [()] * len(captions) if prone is None else prone
    same_length("captions", captions, "prone", prone)
    names = objects.spellings(vocabulary, synonyms)
    listed = names | {objects.plain(phrase): None for phrase in ignore}  # None: no object
    per_caption = []
    for row, (caption, truth, tempting) in enumerate(zip(captions, truths, prone, strict=True)):
        if not isinstance(caption, str):
            raise ValueError(f"caption {row} is {caption!r}, not a text.")
        truth = _named(truth, names, f"the truth of caption {row}")
        tempting = _named(tempting, names, f"prone of caption {row}") - truth
        mentioned = tuple(mention.name for mention in objects.mentions(caption, listed))
        per_caption.append(
            CaptionObjects(
                mentioned=mentioned,
                hallucinated=tuple(name for name in mentioned if name not in truth),
                truth=truth,
                true_positives=truth.intersection(mentioned),
                prone=tempting,
                prone_mentioned=tempting.intersection(mentioned),
            )
        )
    return summary(per_caption)


def _named(given: Collection[str], names: dict[str, str | None], where: str) -> frozenset[str]:
    """The objects that the names stand for."""
    if isinstance(given, str):
        raise ValueError(f"{where} is the text {given!r}: pass a collection of names.")
    unknown = sorted(name for name in given if objects.plain(name) not in names)
    if unknown:
        raise ValueError(
            f"{where} names {', '.join(unknown)}: add it to the vocabulary or the synonyms."
        )
    return frozenset(names[objects.plain(name)] for name in given)


def summary(per_caption: Sequence[CaptionObjects]) -> Hallucination:
    """Counts over captions, and the shares that they make."""
    fields = CaptionObjects.__dataclass_fields__
    total = {name: sum(len(getattr(c, name)) for c in per_caption) for name in fields}
    hallucinating = sum(bool(c.hallucinated) for c in per_caption)
    return Hallucination(
        chair_i=share(total["hallucinated"], total["mentioned"]),
        chair_s=share(hallucinating, len(per_caption)),
        cover=share(total["true_positives"], total["truth"]),
        cog=share(total["prone_mentioned"], total["prone"]),
        mentions=total["mentioned"],
        hallucinated_mentions=total["hallucinated"],
        captions=len(per_caption),
        hallucinating_captions=hallucinating,
        truth_objects=total["truth"],
        true_positives=total["true_positives"],
        prone_objects=total["prone"],
        prone_mentioned=total["prone_mentioned"],
        per_caption=tuple(per_caption),
    )


def scene_hallucination(captions: Sequence[str], scenes: Sequence[Scene]) -> Hallucination:
    """`object_hallucination` of captions of scenes of the pocket world, with the exact truth.

    What a scene makes a model prone to say are the absent associates of its contexts.
    """
    truths = [scene.nouns for scene in scenes]
    prone = [{ASSOCIATES[n] for n in truth if n in ASSOCIATES} for truth in truths]
    return object_hallucination(captions, truths, NOUNS, objects.plurals(NOUNS), prone)


def chair(
    captions: Sequence[str], truths: Sequence[Collection[str]], words: objects.Words
) -> Hallucination:
    """`object_hallucination` of photographs under CHAIR's counting rules (arXiv 1809.02156).

    `truths`: for each caption, the objects outlined in its picture and those that its reference
    captions name. `words`: `objects.chair_words` of CHAIR's list, which is theirs: download it.
    """
    texts = [objects.without_toilet_seats(caption) for caption in captions]
    known = (words.vocabulary, words.synonyms)
    return object_hallucination(texts, truths, *known, ignore=words.ignore)


# --- yes/no probes -------------------------------------------------------------------------


@dataclass(frozen=True)
class YesNo:
    """Shares over `n` probes, and the counts behind them.

    Read them beside `yes_ratio`, which shows a one-sided answerer, and `disputed`: the answers that
    were taken for the contrary of what they say first.
    """

    accuracy: float  # correct / n
    precision: float  # true_positives / predicted_positives; nan if that answer was never given
    recall: float  # true_positives / positives
    f1: float
    yes_ratio: float
    n: int
    correct: int
    true_positives: int  # positive answers where the label is positive
    predicted_positives: int  # positive answers
    positives: int  # positive labels
    disputed: int


def parse_yes_no(answer: str) -> str:
    """A free answer as "yes" or "no", exactly as POPE reads it (arXiv 2305.10355, public code).

    Only what stands before the first full stop counts. Commas are dropped and the rest is cut at
    spaces; "No", "no" or "not" among the pieces means no, and anything else means yes. So an empty
    answer, "NO", "No!" and "There isn't one" are a yes. That is the benchmark, and figures are
    compared under it; `YesNo.disputed` counts how often it matters.
    """
    if not isinstance(answer, str):
        raise ValueError(f"the answer {answer!r} is not a text.")
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def opinion(answer: str) -> str | None:
    """What an answer says first, "yes" or "no", in any spelling; None when it says neither."""
    found = re.search(r"\b(?:(yes)|no|nope|not|cannot)\b|n['\u2019]t\b", answer, re.I)
    return found and ("yes" if found.group(1) else "no")


Parse = Callable[[str], str | None]


def yes_no(
    answers: Sequence[str],
    labels: Sequence[str],
    positive: str = "yes",
    parse: Parse = parse_yes_no,
) -> YesNo:
    """Accuracy, precision, recall, F1 and the share of "yes" over probes.

    `labels`: "yes" or "no". `positive`: the class that precision, recall and F1 speak of: "yes" in
    POPE, "no" in AMBER. `parse`: an answer -> "yes", "no" or None for neither, which is wrong
    whatever the label. Raises ValueError for lists of different length and for labels or
    `positive` that are neither.
    """
    rows = probe_rows(answers, labels, positive, parse)
    correct, true_positives, predicted_positives, positives = rows.sum(0).tolist()
    given = [parse(answer) for answer in answers]
    return YesNo(
        accuracy=share(correct, len(rows)),
        precision=share(true_positives, predicted_positives),
        recall=share(true_positives, positives),
        f1=f1(rows),
        yes_ratio=share(given.count("yes"), len(rows)),
        n=len(rows),
        correct=correct,
        true_positives=true_positives,
        predicted_positives=predicted_positives,
        positives=positives,
        disputed=sum(opinion(a) not in (None, g) for a, g in zip(answers, given, strict=True)),
    )


def probe_rows(
    answers: Sequence[str],
    labels: Sequence[str],
    positive: str = "yes",
    parse: Parse = parse_yes_no,
) -> np.ndarray:
    """An array (n, 4) of 0 and 1: correct, true positive, predicted positive, positive.

    Arguments and errors as `yes_no`. Rows are what a bootstrap draws: `interval(rows[:, 0])` of
    accuracy, `interval(rows, f1)`.
    """
    same_length("answers", answers, "labels", labels)
    for name, value in [("positive", positive), *((f"label {i}", v) for i, v in enumerate(labels))]:
        if value not in ("yes", "no"):
            raise ValueError(f'{name} is {value!r}: it must be "yes" or "no".')
    given = np.array([parse(answer) for answer in answers], dtype=object)  # of None, too
    truth = np.array(list(labels), dtype=object)
    predicted, actual = given == positive, truth == positive
    return np.stack([given == truth, predicted & actual, predicted, actual], axis=1).astype(int)


def f1(rows: np.ndarray) -> float:
    """The harmonic mean of precision and recall, from `probe_rows`: a statistic for `interval`."""
    _, true_positives, predicted_positives, positives = np.asarray(rows).sum(0)
    if not true_positives:
        return share(0, predicted_positives + positives)
    precision, recall = true_positives / predicted_positives, true_positives / positives
    return float(2 * precision * recall / (precision + recall))


# --- margins -------------------------------------------------------------------------------


def margins(
    policy_chosen_logps: Any,
    policy_rejected_logps: Any,
    reference_chosen_logps: Any = 0.0,
    reference_rejected_logps: Any = 0.0,
    beta: float = 1.0,
) -> np.ndarray:
    """Each pair's margin, chosen reward minus rejected reward, as an array (n,).

    Arrays or tensors (n,) of summed log-probs. Without the reference: how much this model itself
    prefers the chosen answer. Raises ValueError when their lengths differ.
    """
    policy = array(policy_chosen_logps), array(policy_rejected_logps)
    reference = array(reference_chosen_logps), array(reference_rejected_logps)
    lengths = [values.size for values in policy + reference if values.ndim]
    if len(set(lengths)) > 1:
        raise ValueError(f"the log-probs must have one length, but have {lengths}.")
    return beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))


def preference_accuracy(pair_margins: Any) -> float:
    """The share of pairs with a margin strictly above 0.

    A tie counts as wrong, as in TRL's rewards/accuracies: while the policy is the reference every
    margin is 0, and so is the accuracy.
    """
    pair_margins = array(pair_margins)
    return share(int((pair_margins > 0).sum()), len(pair_margins))
