"""Several annotators: how far they agree, which side they lean to, and one dataset of them all.

    votes = read_votes("runs/labels", pairs)              # {annotator: {pair key: Label}}
    print(report(votes))
    conflict_cards(votes, pairs)                          # the pairs on which they differ
    train = to_preferences(votes, pairs)                  # raw columns, for lesson 02 and on
    cohen_kappa(["cat", "dog", "cat"], ["cat", "dog", "dog"]).value

Answers are compared as the answers they are, not as A and B: the sides were shuffled. Where few
pairs all fall one way an interval has no width; that is the bootstrap's limit, not certainty.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Image
from matplotlib.axes import Axes

from helpers.evaluation.intervals import Estimate, estimate, same_length
from helpers.feedback.annotation import (
    ANSWERS,
    OTHER,
    Label,
    LabelError,
    image_key,
    pair_keys,
    read_labels,
)
from helpers.pairs.images import RAW_COLUMNS
from helpers.plots.cards import answer_card

Labels = dict[str, Label]  # one annotator's, by the key of the pair
Picks = dict[str, str]  # by the same key: "chosen", "rejected" or "tie"
Votes = dict[str, Labels]  # by annotator


def read_votes(folder: str | Path, pairs: Dataset) -> Votes:
    """{annotator: {pair key: Label}} of every .jsonl file in a folder, about these raw pairs.

    Raises LabelError, naming the files, when two hold labels under one name, when one is not a
    file of labels or has labels of other pairs, and when there are none.
    """
    votes, files, known = {}, {}, set(pair_keys(pairs))
    for path in sorted(Path(folder).glob("*.jsonl")):
        read = read_labels(path)
        if read.annotator is None:
            print(f"{path} is empty: nobody has labelled anything in it")
            continue
        twin = files.setdefault(read.annotator.casefold(), path)
        if twin != path:
            raise LabelError(
                f"{twin} and {path} are both by {read.annotator!r}: if they are two people, rename "
                "one in the first line of its file; if one is an older copy, remove it"
            )
        if strangers := set(read.labels) - known:
            raise LabelError(
                f"{path} has {len(strangers)} labels of other pairs than these: load the pairs "
                "that were labelled, or take the file out of the folder"
            )
        votes[read.annotator] = read.labels
    if not any(votes.values()):
        raise LabelError(f"there are no labels in {folder}: label some pairs first")
    return votes


def picks_of(labels: Labels) -> Picks:
    """{pair key: "chosen", "rejected" or "tie"} of one annotator, without the skipped pairs."""
    return {key: label.pick for key, label in labels.items() if label.pick != "skip"}


def _picks_by_pair(votes):
    """{pair key: {annotator: pick}}."""
    found = {}
    for name, labels in votes.items():
        for key, pick in picks_of(labels).items():
            found.setdefault(key, {})[name] = pick
    return found


def majority(votes: Votes) -> Picks:
    """{pair key: "chosen", "rejected" or "tie"}: the answer that more annotators picked.

    A vote for a tie is one for neither. Pairs that everybody skipped are left out.
    """
    found = {}
    for key, picks in _picks_by_pair(votes).items():
        count = Counter(picks.values())
        if count["chosen"] == count["rejected"]:
            found[key] = "tie"
        else:
            found[key] = max(ANSWERS, key=count.__getitem__)
    return found


# --- how far they agree ----------------------------------------------------------------------


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    clusters: Sequence[Hashable] | None = None,
) -> Estimate:
    """Cohen's kappa of two annotators' categories for the same items, with its interval.

    (p_o - p_e) / (1 - p_e), where p_o is the share of items on which they agree and p_e their
    agreement by chance if each kept their own shares of the categories (Cohen 1960, Educational
    and Psychological Measurement 20:37). 1 is full agreement, 0 what chance gives; nan where both
    always say one and the same. The interval is the bootstrap's over items, or over `clusters`.
    Raises ValueError for fewer than two items or lists of different lengths.
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
    """Of an array (items, 2) of category numbers."""
    agreed = np.mean(codes[:, 0] == codes[:, 1])
    chance = sum(np.mean(codes == code, axis=0).prod() for code in np.unique(codes))
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)


def agreement(votes: Votes, first: str, second: str) -> tuple[Estimate, Estimate]:
    """Of two annotators on the pairs that both labelled: share of the same picks, Cohen's kappa.

    Kappa's categories are tie and the two answers, in an arbitrary order fixed for each pair. With
    "chosen" and "rejected" as categories two people who are always right would have no kappa:
    there would be one category only, and nothing to agree on beyond chance. Raises ValueError if
    they share fewer than two pairs.
    """
    one, other = (picks_of(votes[name]) for name in (first, second))
    common = [key for key in one if key in other]
    images = [image_key(key) for key in common]

    def category(pick, key):
        chosen_first = int(key[-1], 16) % 2 == 0  # the key is a digest: a coin, the same for both
        return pick if pick == "tie" else (pick == "chosen") == chosen_first

    categories = [[category(picks[key], key) for key in common] for picks in (one, other)]
    try:
        kappa = cohen_kappa(*categories, images)
    except ValueError as error:
        raise ValueError(f"{first} and {second}: {error}") from None
    return estimate([one[key] == other[key] for key in common], clusters=images), kappa


def left_share(labels: Labels) -> Estimate:
    """Position bias: the share of A, the left answer, among one annotator's A and B.

    Half of all pairs have the dataset's chosen answer on the left, so who only looks at the
    answers comes out at one half. Raises ValueError without a single A or B.
    """
    sides = [label.side == "A" for label in labels.values() if label.side]
    if not sides:
        raise ValueError("there is no choice between A and B yet: position bias needs some")
    return estimate(sides)


def accuracy(picks: Picks) -> Estimate:
    """The share of picks (ties do not count) that are the dataset's chosen answer.

    Takes `picks_of` one annotator's labels, or the `majority` of all. Images, not pairs, are the
    units of the interval. Raises ValueError where there are ties alone, or nothing.
    """
    correct = {key: pick == "chosen" for key, pick in picks.items() if pick != "tie"}
    if not correct:
        raise ValueError("there is no choice between A and B yet: there is nothing to be right in")
    return estimate(list(correct.values()), clusters=[image_key(key) for key in correct])


def report(votes: Votes) -> str:
    """Each annotator, the majority, and each two annotators, as lines to print."""
    width = max(len(name) for name in [*votes, "majority"])
    lines = [f"{'':{width}}  pairs  ties  skipped  {'chose A':14}  as in the dataset"]
    for name, labels in votes.items():
        count = Counter(label.pick for label in labels.values())
        lines.append(
            f"{name:{width}}  {len(labels):5}  {count['tie']:4}  {count['skip']:7}  "
            f"{_percent_or_dash(left_share, labels):14}  "
            f"{_percent_or_dash(accuracy, picks_of(labels))}"
        )
    picks = majority(votes)
    ties = list(picks.values()).count("tie")
    right = _percent_or_dash(accuracy, picks)
    lines += [f"{'majority':{width}}  {len(picks):5}  {ties:4}  {'':7}  {'':14}  {right}", ""]
    for first, second in itertools.combinations(votes, 2):
        try:
            same, kappa = agreement(votes, first, second)
        except ValueError as error:
            lines.append(str(error))
            continue
        told = f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
        if math.isnan(kappa.value):
            told = "not defined (both always say the same)"
        lines.append(
            f"{first} and {second}, {same.items} pairs: same answer {_percent(same)}, kappa {told}"
        )
    return "\n".join([*lines, f"They do not all say the same of {len(conflicts(votes))} pairs."])


def _percent_or_dash(figure, labels):
    try:
        return _percent(figure(labels))
    except ValueError:
        return "-"


def _percent(found):
    return f"{100 * found.value:.0f}% [{100 * found.low:.0f}, {100 * found.high:.0f}]"


# --- where they differ, and what they prefer together ----------------------------------------


def conflicts(votes: Votes) -> dict[str, dict[str, str]]:
    """{pair key: {annotator: pick}} where they do not all say the same, the most divided first."""

    def unanimity(item):
        return max(Counter(item[1].values()).values()) / len(item[1])

    divided = [(key, p) for key, p in _picks_by_pair(votes).items() if len(set(p.values())) > 1]
    return dict(sorted(divided, key=unanimity))


def conflict_cards(votes: Votes, pairs: Dataset, most: int = 8) -> list[Axes]:
    """A card for each of the `most` divided pairs, each answer after those who picked it.

    Raises LabelError for votes about other pairs.
    """
    indices, cards = _row_indices(votes, pairs), []
    for key, picks in itertools.islice(conflicts(votes).items(), most):
        row = pairs[indices[key]]
        who = {pick: [] for pick in (*ANSWERS, "tie")}
        for name, pick in picks.items():
            who[pick].append(name)
        answers = {f"{', '.join(who[side]) or 'nobody'} ({side})": row[side] for side in ANSWERS}
        if who["tie"]:
            answers[f"{', '.join(who['tie'])} (tie)"] = "no difference"
        cards.append(answer_card(row["image"], row["question"], answers))
    return cards


def _row_indices(votes, pairs):
    """{pair key: index of its row}. Raises LabelError for votes about other pairs."""
    indices = {key: i for i, key in enumerate(pair_keys(pairs))}
    if strangers := {key for labels in votes.values() for key in labels} - set(indices):
        raise LabelError(
            f"there are votes about {len(strangers)} pairs that are not among these "
            f"{len(indices)}: pass the dataset that was labelled"
        )
    return indices


def to_preferences(votes: Votes, pairs: Dataset) -> Dataset:
    """What the annotators prefer, in the raw columns: chosen is the answer that won.

    Undecided pairs are left out; image bytes are untouched. `origin_split` is JSON: each
    annotator's vote in the words of the row, whether the source agrees, and the source's own
    `origin_split`. Raises LabelError for votes about other pairs or if no pair is left.
    """
    indices, winners, picks = _row_indices(votes, pairs), majority(votes), _picks_by_pair(votes)
    undecoded = pairs.with_format(None).cast_column("image", Image(decode=False))
    merged = [
        _merged_row(undecoded[i], i, winners[key], picks[key])
        for key, i in indices.items()
        if winners.get(key) in ANSWERS
    ]
    if not merged:
        raise LabelError("no pair has an answer that won: label more, or ask more people")
    return Dataset.from_list(merged).cast_column("image", Image())


def _merged_row(source, i, winner, picks):
    loser = OTHER[winner]
    renamed = {winner: "chosen", loser: "rejected", "tie": "tie"}  # a pick, as this row calls it
    about = {
        "votes": {name: renamed[pick] for name, pick in picks.items()},
        "as_in_source": winner == "chosen",
        "source": source.get("origin_split"),
    }
    empty = {"ds_name": "", "origin_dataset": "", "idx": i, "image_path": ""}
    texts = {"chosen": source[winner], "rejected": source[loser]}
    row = {**empty, **source, **texts, "origin_split": json.dumps(about, ensure_ascii=False)}
    return {column: row[column] for column in RAW_COLUMNS}
