"""A folder of annotators' files becomes one dataset, and the pairs they disagree on are shown.

    votes = read_votes("runs/labels", pairs)          # every annotator's file in the folder
    conflict_cards(votes, pairs)                      # the pairs on which they do not say the same
    train = to_preferences(votes, pairs)              # raw columns, for lesson 02 and on

How far they agree is for `helpers.feedback.agreement` to say.
"""

import itertools
import json
from collections import Counter
from pathlib import Path

from datasets import Dataset, Image

from helpers.feedback.labels import ANSWERS, LabelError, pair_keys, read_labels
from helpers.pairs.images import RAW_COLUMNS
from helpers.plots.cards import answer_card


def read_votes(folder, pairs):
    """{annotator: {pair: Label}} of every .jsonl file in a folder, about these raw pairs.

    Raises LabelError, naming the files, when two hold labels under one name, when one is not a
    file of labels or has labels of other pairs, and when there are none.
    """
    votes, files, known = {}, {}, set(pair_keys(pairs))
    for path in sorted(Path(folder).glob("*.jsonl")):
        read = read_labels(path)
        if read.annotator is None:
            print(f"{path} is empty: nobody has labelled anything in it")
            continue
        _require_new_name(files, path, read.annotator)
        if strangers := set(read.labels) - known:
            raise LabelError(
                f"{path} has {len(strangers)} labels of other pairs than these: load the pairs "
                "that were labelled, or take the file out of the folder"
            )
        for line in read.torn:
            print(f"line {line} of {path} cannot be read: a choice in it is not counted")
        votes[read.annotator] = read.labels
    if not any(votes.values()):
        raise LabelError(f"there are no labels in {folder}: label some pairs first")
    return votes


def _require_new_name(files, path, annotator):
    name = annotator.casefold()
    if name in files:
        raise LabelError(
            f"{files[name]} and {path} are both by {annotator!r}: if they are two people, rename "
            "one in the first line of its file; if one is an older copy, remove it"
        )
    files[name] = path


def picks_of(labels):
    """{pair: "chosen", "rejected" or "tie"} without the skipped ones."""
    return {key: label.pick for key, label in labels.items() if label.pick != "skip"}


# --- one verdict a pair --------------------------------------------------------------------


def verdicts(votes):
    """{pair: "chosen", "rejected" or "tie"}: the answer that more annotators picked.

    A vote for a tie is one for neither. Pairs that everybody skipped are left out.
    """
    found = {}
    for key, cast in _cast(votes).items():
        count = Counter(cast.values())
        lead = count["chosen"] - count["rejected"]
        found[key] = "tie" if lead == 0 else ANSWERS[lead < 0]
    return found


def _cast(votes):
    """{pair: {annotator: pick}}."""
    cast = {}
    for name, labels in votes.items():
        for key, pick in picks_of(labels).items():
            cast.setdefault(key, {})[name] = pick
    return cast


def conflicts(votes):
    """{pair: {annotator: pick}} where they do not all say the same, the most divided first."""
    divided = {key: cast for key, cast in _cast(votes).items() if len(set(cast.values())) > 1}

    def unanimity(key):
        return max(Counter(divided[key].values()).values()) / len(divided[key])

    return {key: divided[key] for key in sorted(divided, key=unanimity)}


def conflict_cards(votes, pairs, most=8):
    """A card for each of the `most` divided pairs, each answer after those who picked it."""
    places = _places(votes, pairs)
    return [
        _conflict_card(pairs[places[key]], cast)
        for key, cast in itertools.islice(conflicts(votes).items(), most)
    ]


def _places(votes, pairs):
    """{pair: number of its row}. Raises LabelError for votes about other pairs."""
    places = {key: i for i, key in enumerate(pair_keys(pairs))}
    if strangers := {key for labels in votes.values() for key in labels} - set(places):
        raise LabelError(
            f"there are votes about {len(strangers)} pairs that are not among these "
            f"{len(places)}: pass the dataset that was labelled"
        )
    return places


def _conflict_card(row, cast):
    def who(pick):
        return ", ".join(name for name, their in cast.items() if their == pick)

    answers = {f"{who(side) or 'nobody'} ({side})": row[side] for side in ANSWERS}
    if who("tie"):
        answers[f"{who('tie')} (tie)"] = "no difference"
    return answer_card(row["image"], row["question"], answers)


def to_preferences(votes, pairs, ties="drop"):
    """What the annotators prefer, in the raw columns: chosen is the answer that won.

    ties="drop" leaves undecided pairs out; ties="both" keeps them in both orders, which pulls
    their margin towards 0. Image bytes are untouched. `origin_split` is JSON: each annotator's
    vote in the words of the row, whether the source agrees, and the source's own `origin_split`.
    Raises LabelError for votes about other pairs or if no pair is left, ValueError for another
    setting.
    """
    if ties not in ("drop", "both"):
        raise ValueError(f"ties={ties!r}: choose 'drop' or 'both'")
    winners = {"chosen": ["chosen"], "rejected": ["rejected"]}
    winners["tie"] = ANSWERS if ties == "both" else []
    found, cast = verdicts(votes), _cast(votes)
    stored = pairs.with_format(None).cast_column("image", Image(decode=False))
    rows = [
        _row(stored[i], i, winner, cast[key])
        for key, i in _places(votes, pairs).items()
        if key in found
        for winner in winners[found[key]]
    ]
    if not rows:
        raise LabelError("no pair has an answer that won: label more, or keep ties with 'both'")
    return Dataset.from_list(rows).cast_column("image", Image())


def _row(source, i, winner, cast):
    loser = ANSWERS[winner == "chosen"]
    words = {winner: "chosen", loser: "rejected", "tie": "tie"}  # a pick, in the words of this row
    about = {
        "votes": {name: words[pick] for name, pick in cast.items()},
        "as_in_source": winner == "chosen",
        "source": source.get("origin_split"),
    }
    empty = {"ds_name": "", "origin_dataset": "", "idx": i, "image_path": ""}
    texts = {"chosen": source[winner], "rejected": source[loser]}
    row = {**empty, **source, **texts, "origin_split": json.dumps(about, ensure_ascii=False)}
    return {column: row[column] for column in RAW_COLUMNS}
