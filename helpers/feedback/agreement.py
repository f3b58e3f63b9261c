"""What several annotators said: how far they agree, which side they lean to, how often right.

    votes = read_votes("runs/labels", pairs)          # from helpers.feedback.votes
    print(report(votes))
    cohen_kappa(["cat", "dog", "cat"], ["cat", "dog", "dog"]).value

Answers are compared as the answers they are, not as A and B: the sides were shuffled. Where few
pairs all fall one way an interval has no width; that is the bootstrap's limit, not certainty.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from helpers.evaluation.intervals import Estimate, estimate, same_length, share
from helpers.feedback.labels import picture_of
from helpers.feedback.votes import conflicts, picks_of, verdicts

# --- how far they agree --------------------------------------------------------------------


def cohen_kappa(first, second, clusters=None):
    """Cohen's kappa of two annotators' categories for the same items, with its interval.

    (p_o - p_e) / (1 - p_e), where p_e is the agreement by chance of two who keep their own shares
    of each category (Cohen 1960, Educational and Psychological Measurement 20:37). 1 is full
    agreement, 0 what chance gives; nan where both always say one and the same. The interval is
    the bootstrap's over items, or over `clusters`. Raises ValueError for fewer than two items.
    """
    same_length("first", first, "second", second)
    if len(first) < 2:
        raise ValueError(
            f"the two have {len(first)} labelled pairs in common: kappa needs two at least, and "
            "says little below twenty"
        )
    names = {name: code for code, name in enumerate(dict.fromkeys([*first, *second]))}
    codes = [(names[a], names[b]) for a, b in zip(first, second, strict=True)]
    return estimate(codes, _kappa, clusters=clusters)


def _kappa(codes):
    """Of an array (items, 2)."""
    agreed = np.mean(codes[:, 0] == codes[:, 1])
    chance = sum(np.mean(codes == code, axis=0).prod() for code in np.unique(codes))
    return share(agreed - chance, 1 - chance)


@dataclass(frozen=True)
class Agreement:
    """Two annotators on the pairs that both labelled: share of the same picks, Cohen's kappa."""

    first: str
    second: str
    same: Estimate
    kappa: Estimate


def agreement(votes, first, second):
    """The `Agreement` of two annotators. Raises ValueError if they share fewer than two pairs.

    Kappa's categories are the two answers in an arbitrary order fixed for each pair, and tie. With
    "chosen" and "rejected" as categories two people who are always right would have none: there
    would be one category only, and nothing to agree on beyond chance.
    """
    one, other = (picks_of(votes[name]) for name in (first, second))
    common = [key for key in one if key in other]
    pictures = [picture_of(key) for key in common]
    try:
        kappa = cohen_kappa(_coded(one, common), _coded(other, common), pictures)
    except ValueError as error:
        raise ValueError(f"{first} and {second}: {error}") from None
    same = estimate([one[key] == other[key] for key in common], clusters=pictures)
    return Agreement(first, second, same, kappa)


def _coded(picks, keys):
    """For each pair "tie", or whether the pick is the answer that the pair's name calls first."""
    return [
        picks[key] if picks[key] == "tie" else (picks[key] == "chosen") == _chosen_first(key)
        for key in keys
    ]


def _chosen_first(key):
    return int(key[-1], 16) % 2 == 0


def left_share(labels):
    """Position bias: the share of A, the left answer, among one annotator's A and B.

    Half of all pairs have the dataset's chosen answer on the left, so who only looks at the
    answers comes out at one half. Raises ValueError without a single A or B.
    """
    sides = [label.side == "A" for label in labels.values() if label.side]
    if not sides:
        raise ValueError("there is no choice between A and B yet: position bias needs some")
    return estimate(sides)


def accuracy(picks):
    """The share of picks ({pair: pick}; ties do not count) that are the dataset's chosen answer.

    Takes `picks_of` one annotator's labels, or the `verdicts` of all. Pictures, not pairs, are the
    units. Raises ValueError where there are ties alone, or nothing.
    """
    right = {key: pick == "chosen" for key, pick in picks.items() if pick != "tie"}
    if not right:
        raise ValueError("there is no choice between A and B yet: there is nothing to be right in")
    return estimate(list(right.values()), clusters=[picture_of(key) for key in right])


# --- the report ----------------------------------------------------------------------------


def report(votes):
    """Each annotator, the majority, and each two annotators, as lines to print."""
    width = max(len(name) for name in [*votes, "majority"])
    lines = [f"{'':{width}}  pairs  ties  skipped  {'chose A':14}  as in the dataset"]
    for name, labels in votes.items():
        count = Counter(label.pick for label in labels.values())
        lines.append(
            f"{name:{width}}  {len(labels):5}  {count['tie']:4}  {count['skip']:7}  "
            f"{_told(left_share, labels):14}  {_told(accuracy, picks_of(labels))}"
        )
    found = verdicts(votes)
    ties = list(found.values()).count("tie")
    right = _told(accuracy, found)
    lines.append(f"{'majority':{width}}  {len(found):5}  {ties:4}  {'':7}  {'':14}  {right}")
    return "\n".join([*lines, "", *_pairwise(votes)])


def _pairwise(votes):
    for first, second in itertools.combinations(votes, 2):
        try:
            both = agreement(votes, first, second)
        except ValueError as error:
            yield str(error)
            continue
        yield (
            f"{first} and {second}, {both.same.items} pairs: same answer {_percent(both.same)}, "
            f"kappa {_number(both.kappa)}"
        )
    yield f"They do not all say the same of {len(conflicts(votes))} pairs."


def _told(figure, said):
    try:
        return _percent(figure(said))
    except ValueError:
        return "-"


def _percent(found):
    return f"{100 * found.value:.0f}% [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _number(found):
    if np.isnan(found.value):
        return "not defined (both always say the same)"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
