"""What is no good as an answer or as a pair, and whether length decides what is chosen.

    kept, dropped = sound_pairs(pairs, Filters(least_margin=1, most_times_longer=2))
    kept, dropped = sift(raw, Filters(least_words=3))     # a dataset that somebody else made
    print(length_of(kept))                                # chosen is longer in 8 of 10 pairs ...

Of PDS-DPO's ten published pairs three have a rejected answer of at most one word, and the chosen
answer is longer in eight; its code has no filter after the best and the worst are taken.
"""

from collections import Counter
from dataclasses import dataclass

from helpers.evaluation.intervals import mcnemar
from helpers.feedback.pairing import Scored
from helpers.pairs.images import digests_of, rows


@dataclass(frozen=True)
class Filters:
    """What goes. None: no limit. A tie, an empty answer and two equal texts never make a pair."""

    least_words: int = 1  # of an answer
    most_words: int | None = None  # of an answer
    repeats: bool = False  # True keeps answers that an earlier one about the picture gave already
    least_margin: float = 0.0  # in units of the answer reward
    most_times_longer: float | None = None  # words of the longer answer by those of the shorter
    most_words_longer: int | None = None  # words of the longer answer minus those of the shorter

    def __post_init__(self):
        limits = {"least_words": 1, "most_words": self.least_words, "least_margin": 0,
                  "most_times_longer": 1, "most_words_longer": 0}  # fmt: skip
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # `not`: NaN is no limit either
                raise ValueError(f"{name} is {value}: set it to {least} or more")


def sound_answers(texts, filters):
    """[reason or None] for the answers to one instruction, in their order."""
    seen, reasons = set(), []
    for text in texts:
        same = _plain(text)
        reasons.append(_word_fault(same, filters))
        if reasons[-1] is None and same in seen and not filters.repeats:
            reasons[-1] = "repeated"
        seen.add(same)
    return reasons


def sound_pairs(pairs, filters):
    """(pairs that pass, Counter of why the others do not); the first reason counts."""
    reasons = [pair_fault(pair, filters) for pair in pairs]
    kept = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    return kept, Counter(filter(None, reasons))


def pair_fault(pair, filters):
    """Why a pair is no good, or None."""
    if not pair.margin > 0:
        return "tie"
    if pair.margin < filters.least_margin:
        return f"margin below {filters.least_margin:g}"
    return text_fault(pair.chosen, pair.rejected, filters)


def text_fault(chosen, rejected, filters):
    """What two `Scored` texts tell of why they make no pair, or None."""
    for answer in (chosen, rejected):
        if reason := _word_fault(answer.text, filters):
            return reason
    if _plain(chosen.text) == _plain(rejected.text):
        return "same text"
    short, long = sorted((chosen.words, rejected.words))
    if filters.most_times_longer is not None and long > filters.most_times_longer * short:
        return f"more than {filters.most_times_longer:g} times as long"
    if filters.most_words_longer is not None and long - short > filters.most_words_longer:
        return f"more than {filters.most_words_longer} words longer"
    return None


def sift(dataset, filters):
    """(dataset, Counter of dropped): the rows of raw pairs that the text filters pass.

    For pairs that come without scores, such as published ones: margins are not looked at. A row
    with the image, question and answers of an earlier one goes too, unless `repeats` is True; one
    that prefers the other of the same two answers always does.
    """
    seen, reasons = set(), []
    for row in rows(dataset):
        reasons.append(text_fault(*_unscored(row), filters))
        asked, two = (*digests_of(row), row["question"]), (row["chosen"], row["rejected"])
        if reasons[-1] is None and (asked, two[::-1]) in seen:
            reasons[-1] = "the reverse of an earlier one"
        if reasons[-1] is None and (asked, two) in seen and not filters.repeats:
            reasons[-1] = "repeated"
        seen.add((asked, two))
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    return dataset.select(kept), Counter(filter(None, reasons))


def _unscored(row):
    """(chosen, rejected) of a raw row; what is no text is an empty one."""
    texts = (row["chosen"], row["rejected"])
    return tuple(Scored("", text if isinstance(text, str) else "", None) for text in texts)


def _word_fault(text, filters):
    if not any(map(str.isalnum, text)):  # nor does a full stop or an invisible character answer
        return "empty"
    words = len(text.split())
    if words < filters.least_words:
        return f"under {filters.least_words} words"
    if filters.most_words is not None and words > filters.most_words:
        return f"over {filters.most_words} words"
    return None


def _plain(text):
    return " ".join(text.split())


# --- does length decide? -------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """How often the chosen answer is the longer one, in words."""

    longer: int
    shorter: int
    same: int
    chosen_words: float  # means
    rejected_words: float

    @property
    def n(self):
        return self.longer + self.shorter + self.same

    @property
    def p(self):
        """Of so uneven a split if longer and shorter were equally likely: the exact sign test."""
        return mcnemar(self.longer, self.shorter)

    def __str__(self):
        return (
            f"chosen is longer in {self.longer} of {self.n} pairs and shorter in {self.shorter} "
            f"({self.chosen_words:.1f} against {self.rejected_words:.1f} words on average; sign "
            f"test p = {self.p:.2g})" + (": length decides too often" if self.suspect else "")
        )

    @property
    def suspect(self):
        """Longer far more often than chance, and in three of four pairs or more."""
        return self.p < 0.05 and self.longer >= 0.75 * self.n


def length_of(pairs):
    """`Lengths` of raw rows (a dataset, or dicts with `chosen` and `rejected`). No rows: zeros."""
    words = [tuple(answer.words for answer in _unscored(row)) for row in rows(pairs)]
    n = max(1, len(words))
    return Lengths(
        longer=sum(chosen > rejected for chosen, rejected in words),
        shorter=sum(chosen < rejected for chosen, rejected in words),
        same=sum(chosen == rejected for chosen, rejected in words),
        chosen_words=sum(chosen for chosen, _ in words) / n,
        rejected_words=sum(rejected for _, rejected in words) / n,
    )
