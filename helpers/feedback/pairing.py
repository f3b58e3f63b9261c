"""Which answers become pairs: rules over scored answers.

    pairs, dropped = best_worst(groups)              # PDS-DPO: one pair a picture
    pairs, dropped = rlaifv_pairs(groups, seed=0)    # RLAIF-V: differ by 1, at most 2, length

`groups` has one list of `Scored` answers for each instruction (a picture and its question).
`dropped` counts why considered pairs were not made, so that considered = made + dropped.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scored:
    """An answer and what the answer reward gave it; None: there was nothing to score."""

    key: str
    text: str
    score: float | None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self):
        return len(self.text.split())


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction."""

    chosen: Scored
    rejected: Scored

    @property
    def margin(self):
        return self.chosen.score - self.rejected.score


def best_worst(groups, seed=0):
    """The best answer of each instruction against its worst, whatever lies between them.

    PDS-DPO's rule (arXiv 2412.17417); ties and small margins are left to the filters. Of equally
    good answers the first is the best and the last is the worst. Nothing is random here: `seed` is
    there because every rule has it.
    """
    pairs, dropped = [], Counter()
    for answers in map(_judged, groups):
        if len(answers) < 2:
            dropped["fewer than two answers"] += 1
            continue
        best = max(answers, key=lambda answer: answer.score)
        worst = min(reversed(answers), key=lambda answer: answer.score)
        pairs.append(Pair(best, worst))
    return pairs, dropped


def rlaifv_pairs(groups, seed=0, least=1, most=2, balance=True):
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
    for answers in map(_judged, groups):
        spoken = [answer for answer in answers if answer.words]
        every = [_better_first(a, b) for a, b in combinations(spoken, 2)]
        apart = [pair for pair in every if pair.margin >= least]
        told = [pair for pair in apart if _told_once(pair.chosen) and _told_once(pair.rejected)]
        taken = rng.sample(told, most) if len(told) >= most else told
        dropped[f"scores differ by less than {least}"] += len(every) - len(apart)
        dropped["a fact stated twice"] += len(apart) - len(told)
        dropped[f"more than {most} of an instruction"] += len(told) - len(taken)
        pairs += taken
    kept = balance_length(pairs)[0] if balance else pairs
    dropped["length balance"] += len(pairs) - len(kept)
    return kept, +dropped


def fact_score(accepted):
    """RLAIF-V's score: minus the number of rejected facts; None if there are no facts.

    accepted: a bool for each fact, in the paper's code whether the yes of the model that is asked
    back is more likely than its no (`pair_construction.get_pairs_inner`).
    """
    accepted = list(accepted)
    return sum(map(bool, accepted)) - len(accepted) if accepted else None


def balance_length(pairs):
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
        kept = [pair for pair in pairs if _shorter_by(pair) <= ratio]
        if kept:
            found.append((_gap(kept), float(ratio), kept))
    if not found:
        return [], None
    _, ratio, kept = min(found, key=lambda one: one[0])
    return kept, ratio


def _shorter_by(pair):
    return (pair.rejected.words - pair.chosen.words) / pair.rejected.words


def _gap(pairs):
    """How far the mean numbers of words lie apart, in relation to that of rejected."""
    chosen = sum(pair.chosen.words for pair in pairs) / len(pairs)
    rejected = sum(pair.rejected.words for pair in pairs) / len(pairs)
    return abs(chosen - rejected) / rejected


def _judged(answers):
    return [a for a in answers if a.score is not None and not math.isnan(a.score)]


def _better_first(a, b):
    return Pair(b, a) if a.score < b.score else Pair(a, b)


def _told_once(answer):
    try:
        questions = [question for question, _ in answer.about.get("facts", ())]
    except (TypeError, ValueError):
        raise ValueError(
            f"answer {answer.key} has about['facts'] = {answer.about['facts']!r:.80}: list "
            "(question, accepted) for each of its facts"
        ) from None
    return len(set(questions)) == len(questions)
