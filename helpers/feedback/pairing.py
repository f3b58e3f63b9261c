"""Which answers become pairs: rules over scored answers, filters, and whether length decides.

    pairs, dropped = best_worst(groups)              # PDS-DPO: one pair a picture
    pairs, dropped = rlaifv_pairs(groups, seed=0)    # RLAIF-V: differ by 1, at most 2, length
    pairs, dropped = sound_pairs(pairs, Filters(least_margin=1, most_times_longer=2))
    print(length_of(rows))                           # chosen is longer in 8 of 10 pairs ...

`groups` has one list of `Scored` answers for each instruction (a picture and its question).
`dropped` counts why considered pairs were not made, so that considered = made + dropped.

Of PDS-DPO's ten published pairs three have a rejected answer of at most one word, and the chosen
answer is longer in eight; its code has no filter after the best and the worst are taken.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from helpers.evaluation.intervals import mcnemar
from helpers.pairs.images import rows


@dataclass(frozen=True)
class Scored:
    """An answer and what the answer reward gave it; None: there was nothing to score."""

    key: str
    text: str
    score: float | None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction."""

    chosen: Scored
    rejected: Scored

    @property
    def margin(self) -> float:
        return self.chosen.score - self.rejected.score


Groups = Sequence[Sequence[Scored]]


# --- rules ---------------------------------------------------------------------------------------


def best_worst(groups: Groups, seed: int = 0) -> tuple[list[Pair], Counter]:
    """The best answer of each instruction against its worst, whatever lies between them.

    PDS-DPO's rule (arXiv 2412.17417); ties and small margins are left to the filters. Of equally
    good answers the first is the best and the last is the worst. Nothing is random here: `seed` is
    there because every rule has it.
    """
    pairs, dropped = [], Counter()
    for answers in map(_with_score, groups):
        if len(answers) < 2:
            dropped["fewer than two answers"] += 1
            continue
        best = max(answers, key=lambda answer: answer.score)
        worst = min(reversed(answers), key=lambda answer: answer.score)
        pairs.append(Pair(best, worst))
    return pairs, dropped


def rlaifv_pairs(
    groups: Groups, seed: int = 0, least: float = 1, most: int = 2, balance: bool = True
) -> tuple[list[Pair], Counter]:
    """RLAIF-V's public rule (arXiv 2405.17220; code at RLHF-V/RLAIF-V, folder utils).

    As `utils/get_preference_pairs.py` and `utils/get_pairs_filter_shorten.py` compute it:

    1. every two answers of an instruction whose scores differ by `least` or more make a pair
       (`pair_construction.get_pair_data`, `pair_data_judge`);
    2. pairs with an answer in which two facts became one question are left out: there the questions
       are keys of a dict, and their number must be that of the facts (`get_pair_data`). Where
       `about["facts"]` lists (question, accepted), the same is done here;
    3. at most `most` of an instruction are drawn (`sample_pair_data`): the same ones as there after
       `random.seed(seed)`, if the answers come in the same order;
    4. the length filter over all that are left (`balance_length`), unless `balance` is False.

    Answers without a score or without words are left out first: there, an answer without facts has
    no score, and an empty rejected one ends in a ZeroDivisionError. Samples that say the same stay,
    as there; in a run, `Filters(repeats=True)` lets them come this far.
    """
    rng, pairs, dropped = random.Random(seed), [], Counter()
    for answers in map(_with_score, groups):
        spoken = [answer for answer in answers if answer.words]
        every = [
            Pair(b, a) if a.score < b.score else Pair(a, b) for a, b in combinations(spoken, 2)
        ]
        apart = [pair for pair in every if pair.margin >= least]
        once = [pair for pair in apart if _told_once(pair.chosen) and _told_once(pair.rejected)]
        taken = rng.sample(once, most) if len(once) >= most else once
        dropped[f"scores differ by less than {least}"] += len(every) - len(apart)
        dropped["a fact stated twice"] += len(apart) - len(once)
        dropped[f"more than {most} of an instruction"] += len(once) - len(taken)
        pairs += taken
    kept = balance_length(pairs)[0] if balance else pairs
    dropped["length balance"] += len(pairs) - len(kept)
    return kept, +dropped


def fact_score(accepted: Iterable[bool]) -> int | None:
    """RLAIF-V's score: minus the number of rejected facts; None if there are no facts.

    accepted: a bool for each fact, in the paper's code whether the yes of the model that is asked
    back is more likely than its no (`pair_construction.get_pairs_inner`).
    """
    accepted = list(accepted)
    return sum(map(bool, accepted)) - len(accepted) if accepted else None


def balance_length(pairs: list[Pair]) -> tuple[list[Pair], float | None]:
    """(kept pairs, ratio): RLAIF-V's length filter, so that chosen is not shorter on average.

    A pair goes when its chosen answer is shorter than its rejected one by more than `ratio` of the
    latter's words, or is the same text. Of 0.00, 0.02, ... 0.98 the ratio is the first with which
    the mean lengths of chosen and rejected come closest, in relation to that of rejected
    (`get_pairs_filter_shorten.cal_pair_search_difflen`). A ratio that leaves nothing is passed over
    (there, a ZeroDivisionError); if all do, ([], None).
    """
    pairs = [pair for pair in pairs if pair.chosen.text.strip() != pair.rejected.text.strip()]
    found = []
    for ratio in np.arange(0, 1, 0.02):
        kept = [
            pair
            for pair in pairs
            if (pair.rejected.words - pair.chosen.words) / pair.rejected.words <= ratio
        ]
        if kept:
            chosen = sum(pair.chosen.words for pair in kept) / len(kept)
            rejected = sum(pair.rejected.words for pair in kept) / len(kept)
            found.append((abs(chosen - rejected) / rejected, float(ratio), kept))
    if not found:
        return [], None
    _, ratio, kept = min(found, key=lambda one: one[0])
    return kept, ratio


def _with_score(answers):
    return [a for a in answers if a.score is not None and not math.isnan(a.score)]


def _told_once(answer):
    try:
        questions = [question for question, _ in answer.about.get("facts", ())]
    except (TypeError, ValueError):
        raise ValueError(
            f"answer {answer.key} has about['facts'] = {answer.about['facts']!r:.80}: list "
            "(question, accepted) for each of its facts"
        ) from None
    return len(set(questions)) == len(questions)


# --- filters -------------------------------------------------------------------------------------


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


def sound_answers(texts: Iterable[str], filters: Filters) -> list[str | None]:
    """Why each answer to one instruction goes, or None, in their order."""
    seen, reasons = set(), []
    for text in texts:
        same = " ".join(text.split())
        repeated = "repeated" if same in seen and not filters.repeats else None
        reasons.append(_text_fault(text, filters) or repeated)
        seen.add(same)
    return reasons


def sound_pairs(pairs: Iterable[Pair], filters: Filters) -> tuple[list[Pair], Counter]:
    """(pairs that pass, Counter of why the others do not); the first reason counts."""
    kept, dropped = [], Counter()
    for pair in pairs:
        if reason := _pair_fault(pair, filters):
            dropped[reason] += 1
        else:
            kept.append(pair)
    return kept, dropped


def _pair_fault(pair, filters):
    """Why a pair is no good, or None."""
    if not pair.margin > 0:
        return "tie"
    if pair.margin < filters.least_margin:
        return f"margin below {filters.least_margin:g}"
    for answer in (pair.chosen, pair.rejected):
        if reason := _text_fault(answer.text, filters):
            return reason
    if pair.chosen.text.split() == pair.rejected.text.split():
        return "same text"
    short, long = sorted((pair.chosen.words, pair.rejected.words))
    if filters.most_times_longer is not None and long > filters.most_times_longer * short:
        return f"more than {filters.most_times_longer:g} times as long"
    if filters.most_words_longer is not None and long - short > filters.most_words_longer:
        return f"more than {filters.most_words_longer} words longer"
    return None


def _text_fault(text, filters):
    if not any(map(str.isalnum, text)):  # nor does a full stop or an invisible character answer
        return "empty"
    words = len(text.split())
    if words < filters.least_words:
        return f"under {filters.least_words} words"
    if filters.most_words is not None and words > filters.most_words:
        return f"over {filters.most_words} words"
    return None


# --- does length decide? -------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """How often the chosen answer is the longer one, in words."""

    longer: int
    shorter: int
    same: int
    chosen_words: float  # means
    rejected_words: float

    @property
    def n(self) -> int:
        return self.longer + self.shorter + self.same

    @property
    def p(self) -> float:
        """Of so uneven a split if longer and shorter were equally likely: the exact sign test."""
        return mcnemar(self.longer, self.shorter)

    @property
    def suspect(self) -> bool:
        """Longer far more often than chance, and in three of four pairs or more."""
        return self.p < 0.05 and self.longer >= 0.75 * self.n

    def __str__(self):
        return (
            f"chosen is longer in {self.longer} of {self.n} pairs and shorter in {self.shorter} "
            f"({self.chosen_words:.1f} against {self.rejected_words:.1f} words on average; sign "
            f"test p = {self.p:.2g})" + (": length decides too often" if self.suspect else "")
        )


def length_of(pairs) -> Lengths:
    """`Lengths` of raw rows (a dataset, or dicts with `chosen` and `rejected`). No rows: zeros."""
    words = np.array(
        [[len(row[side].split()) for side in ("chosen", "rejected")] for row in rows(pairs)]
    ).reshape(-1, 2)
    more = np.sign(words[:, 0] - words[:, 1]).tolist()
    means = words.mean(0).tolist() if len(words) else (0.0, 0.0)
    return Lengths(more.count(1), more.count(-1), more.count(0), *means)
