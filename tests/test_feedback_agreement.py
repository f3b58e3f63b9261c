"""Several annotators: one dataset of all their labels, and figures that are what they say."""

import json
import math

import numpy as np
import pytest
from datasets import Image

from helpers.feedback import annotation
from helpers.feedback.agreement import (
    accuracy,
    agreement,
    cohen_kappa,
    conflict_cards,
    conflicts,
    left_share,
    majority,
    picks_of,
    read_votes,
    report,
    to_preferences,
)
from helpers.feedback.annotation import Label, LabelError, Session, left_answers, pair_keys
from helpers.pairs.check import check_pairs
from helpers.pairs.format import to_conversational
from helpers.pairs.images import RAW_COLUMNS, image_digest
from tests.test_feedback_annotation import label_all, raw

PICKS = {"c": "chosen", "r": "rejected", "t": "tie", "k": "skip"}


@pytest.fixture(scope="module")
def room(scenes):
    """Eight pairs about four images."""
    return raw(scenes[:4])


def votes_on(dataset, **letters):
    """{annotator: {key: Label}} from a letter a pair: chosen, rejected, tie, or k for skipped."""
    keys = pair_keys(dataset)
    return {
        name: {
            key: Label(key, PICKS[letter], left_answers(keys, name)[key], reason="dark")
            for key, letter in zip(keys, said, strict=False)
        }
        for name, said in letters.items()
    }


def test_votes_merge_by_majority(room):
    keys, votes = pair_keys(room), votes_on(room, Ada="ccrtk", Bob="crrtk", Cy="cctct")
    assert list(majority(votes).values()) == ["chosen", "chosen", "rejected", "chosen", "tie"]
    assert set(conflicts(votes)) == set(keys[1:4])
    assert conflicts(votes)[keys[1]] == {"Ada": "chosen", "Bob": "rejected", "Cy": "chosen"}
    assert len(conflict_cards(votes, room)) == 3 and len(conflict_cards(votes, room, most=1)) == 1
    # Two against two is more divided than three against one.
    assert list(conflicts(votes_on(room, A="cc", B="cc", C="cr", D="rr"))) == keys[1::-1]

    merged = to_preferences(votes, room)
    assert merged["idx"] == [0, 1, 2, 3]
    assert merged[2]["chosen"] == room[2]["rejected"]
    about = json.loads(merged[2]["origin_split"])
    assert about["votes"] == {"Ada": "chosen", "Bob": "chosen", "Cy": "tie"}
    assert about["as_in_source"] is False and about["source"] == room[2]["origin_split"]
    with pytest.raises(LabelError, match="no pair has an answer that won"):
        to_preferences(votes_on(room, Ada="tttttttt"), room)


@pytest.mark.parametrize("columns", [RAW_COLUMNS, ("image", "question", "chosen", "rejected")])
def test_what_comes_out_is_raw_sound_and_has_the_same_bytes(room, columns):
    given = room.select_columns(list(columns))
    merged = to_preferences(votes_on(given, Ada="crcrccrr"), given)
    assert tuple(merged.column_names) == RAW_COLUMNS
    assert check_pairs(merged) == [] and check_pairs(to_conversational(merged)) == []
    digests = [
        [image_digest(image) for image in data.cast_column("image", Image(decode=False))["image"]]
        for data in (given, merged)
    ]
    assert digests[0] == digests[1]


def test_a_folder_is_read_or_its_bad_file_named(room, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(annotation, "OWNER_FILE", tmp_path / "owner" / "me")
    folder = tmp_path / "labels"
    with pytest.raises(LabelError, match="there are no labels in .*labels"):
        read_votes(folder, room)
    Session(room, "Bob", folder).close()
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(LabelError, match="there are no labels"):
        read_votes(folder, room)
    assert "empty.jsonl is empty" in capsys.readouterr().out
    ada = label_all(Session(room, "Ada", folder))
    votes = read_votes(folder, room)
    assert votes == {"Ada": ada.labels, "Bob": {}}
    with pytest.raises(LabelError, match="ada.jsonl has 3 labels of other pairs"):
        read_votes(folder, room.select(range(5)))
    for use in (conflict_cards, to_preferences):
        with pytest.raises(LabelError, match="about 3 pairs that are not among these 5"):
            use(votes, room.select(range(5)))
    (folder / "ada (1).jsonl").write_bytes((folder / "ada.jsonl").read_bytes())
    with pytest.raises(LabelError, match=r"ada \(1\).jsonl and .*ada.jsonl are both by 'Ada'"):
        read_votes(folder, room)


# --- figures ----------------------------------------------------------------------------------


def table(counts):
    """Two annotators' lists from {(first, second): how often}."""
    both = [pair for pair, count in counts.items() for _ in range(count)]
    return [a for a, _ in both], [b for _, b in both]


def test_kappa_is_cohens():
    # By hand: 0.70 observed, 0.50 * 0.60 + 0.50 * 0.40 = 0.50 by chance.
    yes_no = {("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}
    found = cohen_kappa(*table(yes_no))
    assert math.isclose(found.value, 0.4) and found.low < 0.4 < found.high and found.n == 50
    # 0.8 observed, 0.5 * 0.5 + 0.3 * 0.4 + 0.2 * 0.1 = 0.39 by chance.
    three = {("a", "a"): 4, ("a", "b"): 1, ("b", "b"): 3, ("c", "a"): 1, ("c", "c"): 1}
    assert math.isclose(cohen_kappa(*table(three)).value, (0.8 - 0.39) / 0.61)


def test_kappa_at_its_ends():
    assert cohen_kappa("abab", "abab").value == 1
    assert cohen_kappa("abab", "baba").value == -1
    assert abs(cohen_kappa(*table(dict.fromkeys(["aa", "ab", "ba", "bb"], 5))).value) < 1e-12
    assert math.isnan(cohen_kappa("aaaa", "aaaa").value)
    assert cohen_kappa("aaaa", "abab").value == 0
    for few in ([], ["a"]):
        with pytest.raises(ValueError, match="two at least"):
            cohen_kappa(few, few)
    with pytest.raises(ValueError, match="go together"):
        cohen_kappa("ab", "a")
    guesses = np.random.default_rng(0).choice(["first", "second"], (2, 2000)).tolist()
    found = cohen_kappa(*guesses)
    assert abs(found.value) < 0.05 and found.low < 0 < found.high


def test_two_who_are_always_right_agree_fully(scenes):
    eighteen = raw(scenes, 3)
    same, kappa = agreement(votes_on(eighteen, Ada="c" * 18, Bob="c" * 18), "Ada", "Bob")
    assert same.value == 1 and kappa.value == 1 and same.items == 18
    assert same.n == 6  # images, which pairs share


def test_position_bias_is_seen_and_the_majority_compared_with_the_truth(room):
    votes = votes_on(room, Ada="cccccccc", Wrong="rrrrrrrr", Tie="tttttttt", Bob="cccccccc")
    assert accuracy(majority(votes)).value == 1 and accuracy(majority(votes)).n == 4
    keys, left = pair_keys(room), left_answers(pair_keys(room), "Lefty")
    votes["Lefty"] = {key: Label(key, left[key], left[key]) for key in keys}
    assert left_share(votes["Lefty"]).value == 1 and left_share(votes["Ada"]).value == 0.5
    # Half of the chosen answers were on the left. Images are the units of an interval.
    assert accuracy(picks_of(votes["Lefty"])).value == 0.5
    assert accuracy(picks_of(votes["Wrong"])).value == 0
    for figure in (lambda: left_share(votes["Tie"]), lambda: accuracy(picks_of(votes["Tie"]))):
        with pytest.raises(ValueError, match="no choice between A and B"):
            figure()


def test_the_report_says_all_of_it_and_goes_on_where_two_share_too_few(room):
    votes = votes_on(room, Ada="cccccccc", Bob="ccccrrtk", Cy="c", Tie="tttttttt")
    with pytest.raises(ValueError, match="Ada and Cy: the two have 1 labelled pairs in common"):
        agreement(votes, "Ada", "Cy")
    lines = report(votes).splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1:6] if line}
    assert rows["Bob"][1:4] == ["8", "1", "1"] and rows["Ada"][-3:] == ["100%", "[100,", "100]"]
    assert rows["Tie"][-2:] == ["-", "-"] and rows["majority"][1:3] == ["8", "2"]
    assert "Ada and Bob, 7 pairs: same answer 57% [" in report(votes)
    assert any(line.startswith("Ada and Cy: the two have 1") for line in lines)
    assert lines[-1] == "They do not all say the same of 8 pairs."
