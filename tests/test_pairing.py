"""Which answers become pairs, which do not, and whether length decides: rules and filters."""

import random
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from datasets import Dataset

from helpers.feedback.pairing import (
    Filters,
    Pair,
    Scored,
    balance_length,
    best_worst,
    fact_score,
    length_of,
    rlaifv_pairs,
    sound_answers,
    sound_pairs,
)


def answer(key, score, words=5, facts=None):
    text = " ".join(f"{key}-{i}" for i in range(words))
    return Scored(key, text, score, {} if facts is None else {"facts": facts})


def random_groups(rng, count):
    """Instructions with 2 to 7 answers, some unscored, some with a fact stated twice."""
    groups = []
    for i in range(count):
        group = []
        for k in range(rng.randint(2, 7)):
            facts = [
                [f"q{rng.randint(0, 9)}", rng.random() < 0.6] for _ in range(rng.randint(0, 5))
            ]
            score = fact_score(accepted for _, accepted in facts)
            group.append(answer(f"{i}/{k}", score, rng.randint(1, 30), facts))
        groups.append(group)
    return groups


# --- RLAIF-V's rule, again and step by step, as its public program goes about it -----------------


def slow_rule(groups, seed):
    """Verdicts -> scores -> pairs of ids -> dict of judgements -> sample -> the best ratio."""
    random.seed(seed)
    by_key = {a.key: a for group in groups for a in group}
    labels, judged = defaultdict(list), defaultdict(dict)
    for key, a in by_key.items():
        for question, accepted in a.about["facts"]:
            labels[key].append(int(accepted))
            judged[key][question] = accepted
    scores = {key: sum(values) - len(values) for key, values in labels.items()}
    sampled = []
    for group in groups:
        made = []
        for one, two in combinations([a.key for a in group if a.key in scores], 2):
            difference = scores[one] - scores[two]
            if abs(difference) < 1:
                continue
            chosen, rejected = (two, one) if difference < 0 else (one, two)
            pair = (chosen, rejected)
            if all(len(judged[key]) == len(by_key[key].about["facts"]) for key in pair):
                made.append(pair)
        sampled += random.sample(made, 2) if len(made) >= 2 else made
    return shorten(sampled, {key: a.text for key, a in by_key.items()})


def shorten(pairs, text):
    def left(ratio):
        kept = []
        for chosen, rejected in pairs:
            c, r = len(text[chosen].split()), len(text[rejected].split())
            if not (r - c) / float(r) > ratio and text[chosen].strip() != text[rejected].strip():
                kept.append((chosen, rejected))
        return kept

    gaps = []
    for ratio in np.arange(0, 1, 0.02):
        kept = left(ratio)
        means = [
            sum(len(text[pair[side]].split()) for pair in kept) / len(kept) if kept else np.nan
            for side in (0, 1)
        ]
        gaps.append(abs(means[0] - means[1]) / means[1])
    return left(np.arange(0, 1, 0.02)[np.nanargmin(gaps)])


@pytest.mark.parametrize("seed", range(12))
def test_rlaifv_rule_is_that_of_a_slow_one(seed):
    rng = random.Random(seed)
    groups = random_groups(rng, rng.choice((3, 20, 60)))
    pairs, dropped = rlaifv_pairs(groups, seed=seed)
    assert [(p.chosen.key, p.rejected.key) for p in pairs] == slow_rule(groups, seed)
    scored = [sum(a.score is not None for a in group) for group in groups]
    assert len(pairs) + dropped.total() == sum(n * (n - 1) // 2 for n in scored)


def test_a_score_is_minus_the_rejected_facts():
    assert fact_score([True, True]) == 0
    assert fact_score([True, False, False]) == -2
    assert fact_score(iter([False])) == -1
    assert fact_score([]) is None  # an answer that says nothing is not the best of all


def test_rlaifv_pairs_differ_by_one_or_more():
    for difference, made in ((0, 0), (0.99, 0), (1, 1), (3, 1)):
        pairs, _ = rlaifv_pairs([[answer("a", -difference), answer("b", 0)]])
        assert len(pairs) == made and all(p.chosen.key == "b" for p in pairs)


def test_rlaifv_takes_two_of_an_instruction_and_all_of_one():
    groups = [[answer(f"{i}/{k}", -k) for k in range(5)] for i in range(9)]
    groups.append([answer("9/0", 0), answer("9/1", -1)])
    pairs, dropped = rlaifv_pairs(groups)
    assert Counter(p.chosen.key[0] for p in pairs) == {str(i): 2 for i in range(9)} | {"9": 1}
    assert dropped == {"more than 2 of an instruction": 9 * 8}
    assert pairs == rlaifv_pairs(groups)[0] != rlaifv_pairs(groups, seed=1)[0]


def test_rlaifv_leaves_out_what_the_public_program_cannot_count():
    nothing, silent = answer("none", None), Scored("silent", " ", -4.0)
    twice = answer("twice", -2, facts=[["q", False], ["q", False]])
    pairs, dropped = rlaifv_pairs([[answer("best", 0), nothing, silent, twice]])
    assert pairs == [] and dropped == {"a fact stated twice": 1}
    assert rlaifv_pairs([]) == ([], {}) and rlaifv_pairs([[]]) == ([], {})


def test_without_balance_nothing_goes_for_its_length():
    groups = random_groups(random.Random(3), 60)
    (kept, dropped), (every, others) = (rlaifv_pairs(groups, balance=b) for b in (True, False))
    assert len(kept) + dropped["length balance"] == len(every) > len(kept)
    assert "length balance" not in others and all(pair in every for pair in kept)


def test_length_filter_drops_the_pairs_whose_chosen_is_too_short():
    short = [Pair(answer(f"s{i}", 0, 2), answer(f"t{i}", -1, 20)) for i in range(5)]
    even = [Pair(answer(f"e{i}", 0, 10), answer(f"f{i}", -1, 10)) for i in range(5)]
    kept, ratio = balance_length(short + even)
    assert kept == even and ratio == 0
    same = Pair(answer("x", 0), answer("x", -1))
    assert balance_length([same]) == ([], None) == balance_length([])


# --- the best against the worst ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_best_worst_spans_every_other_pair(seed):
    groups = random_groups(random.Random(seed), 30)
    pairs, dropped = best_worst(groups)
    assert len(pairs) + dropped["fewer than two answers"] == len(groups)
    by_group = {p.chosen.key.split("/")[0]: p for p in pairs}
    for i, group in enumerate(groups):
        scores = [a.score for a in group if a.score is not None]
        if len(scores) > 1:
            pair = by_group[str(i)]
            assert pair.margin == max(scores) - min(scores)
            assert pair.chosen.key != pair.rejected.key


# --- filters -------------------------------------------------------------------------------------


def test_each_filter_drops_its_own_and_counts_it():
    good = Pair(answer("a", 2.0, 10), answer("b", 0.0, 8))
    cases = {
        "tie": Pair(answer("c", 1.0), answer("d", 1.0)),
        "margin below 1": Pair(answer("e", 1.0), answer("f", 0.5)),
        "empty": Pair(answer("g", 2.0), Scored("h", " \n", 0.0)),
        "under 3 words": Pair(answer("i", 2.0, 2), answer("j", 0.0, 2)),
        "over 20 words": Pair(answer("k", 2.0, 21), answer("l", 0.0, 20)),
        "same text": Pair(Scored("m", "one two three", 2.0), Scored("n", "one  two three ", 0.0)),
        "more than 3 times as long": Pair(answer("o", 2.0, 13), answer("p", 0.0, 4)),
        "more than 9 words longer": Pair(answer("q", 2.0, 10), answer("r", 0.0, 20)),
    }
    filters = Filters(
        least_words=3, most_words=20, least_margin=1, most_times_longer=3, most_words_longer=9
    )
    kept, dropped = sound_pairs([good, *cases.values()], filters)
    assert kept == [good] and dropped == dict.fromkeys(cases, 1)
    filters = Filters(least_words=4, most_words=12, least_margin=2, most_times_longer=3)
    edge = Pair(answer("a", 2.0, 12), answer("b", 0.0, 4))
    assert sound_pairs([edge], filters) == ([edge], {})  # limits are inclusive
    tie, *others = cases.values()
    kept, dropped = sound_pairs([good, tie, *others], Filters())  # what never makes a pair
    assert dropped == {"tie": 1, "empty": 1, "same text": 1} and len(kept) == 6


def test_what_has_no_letter_and_no_digit_is_empty():
    for text in ("", " \n", ".", "\u200b", "\ufeff", "--- !"):
        assert sound_answers([text, "a cup", "7", "杯子"], Filters()) == ["empty", None, None, None]


def test_facts_of_another_shape_are_named():
    odd = answer("0/1", 2, facts=["is it red?"])
    with pytest.raises(ValueError, match=r"answer 0/1 has about\['facts'\]"):
        rlaifv_pairs([[odd, answer("0/2", 0)]])


def test_repeated_answers_go_unless_they_are_wanted():
    texts = ["a cup", "", "a  cup ", "a bed", "a bed"]
    assert sound_answers(texts, Filters()) == [None, "empty", "repeated", None, "repeated"]
    assert sound_answers(texts, Filters(repeats=True)) == [None, "empty", None, None, None]


@pytest.mark.parametrize(
    "wrong",
    [{"least_words": 0}, {"most_words": 0}, {"least_margin": -1}, {"least_margin": float("nan")},
     {"most_times_longer": 0.5}, {"most_words_longer": -1}, {"least_words": 5, "most_words": 4}],
)  # fmt: skip
def test_a_limit_that_is_none_is_named(wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        Filters(**wrong)


# --- does length decide? --------------------------------------------------------------------------


def test_the_published_samples_lengths():
    """PDS-DPO's ten: 0, 0 and 1 words rejected, chosen longer in eight."""
    words = [(30, 0), (41, 0), (25, 1), (33, 20), (28, 15), (50, 30), (22, 9), (35, 31), (20, 26),
             (18, 18)]  # fmt: skip
    rows = [{"chosen": "yes " * chosen, "rejected": "no " * rejected} for chosen, rejected in words]
    told = length_of(Dataset.from_list(rows))
    assert (told.longer, told.shorter, told.same, told.n) == (8, 1, 1, 10)
    assert told.chosen_words == 30.2 and told.rejected_words == 15
    assert "chosen is longer in 8 of 10 pairs and shorter in 1" in str(told)


def test_length_that_always_decides_is_called_out():
    rows = [{"chosen": "a b c", "rejected": "a b"}] * 10
    assert length_of(rows).suspect and "length decides" in str(length_of(rows))
    even = [{"chosen": "a b c", "rejected": "a b"}, {"chosen": "a b", "rejected": "a b c"}] * 50
    assert not length_of(even).suspect and "length decides" not in str(length_of(even))
    assert length_of([]).n == 0
