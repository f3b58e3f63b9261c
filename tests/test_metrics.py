"""Metrics on cases small enough to count by hand."""

import math

import numpy as np
import pytest
import torch

from helpers.metrics import (
    interval,
    margins,
    object_hallucination,
    paired,
    parse_yes_no,
    plurals,
    preference_accuracy,
    ratio,
    yes_no,
)
from helpers.world import NOUNS, describe, sample_scenes

VOCABULARY = ("dog", "cat", "table", "dining table", "cup")


def judge(caption, truth, synonyms=None, prone=None):
    return object_hallucination([caption], [truth], VOCABULARY, synonyms, prone and [prone])


# --- object hallucination ------------------------------------------------------------------


def test_a_hand_made_case():
    captions = ["A dog, a dog and a cat.", "A cup.", "Nothing much."]
    result = object_hallucination(captions, [{"dog"}, {"cup", "cat"}, {"dog"}], VOCABULARY)
    assert result.chair_i == 1 / 4  # dog, dog, cat, cup: one is not there
    assert result.chair_s == 1 / 3
    assert result.cover == 2 / 4
    assert (result.mentions, result.hallucinated_mentions) == (4, 1)
    assert (result.captions, result.hallucinating_captions) == (3, 1)
    assert (result.truth_objects, result.hits) == (4, 2)
    first = result.per_caption[0]
    assert first.mentioned == ("dog", "dog", "cat") and first.hallucinated == ("cat",)


def test_repeats_count_in_chair_i_and_only_there():
    result = judge("A dog sees a cat. The cat sees another cat.", {"dog"})
    assert result.chair_i == 3 / 4
    assert result.cover == 1.0 and result.chair_s == 1.0


def test_synonyms_are_one_object():
    synonyms = {"puppy": "dog", "kitten": "cat"}
    result = judge("A puppy, which is a Dog, and a kitten", {"puppy"}, synonyms)
    assert result.per_caption[0].mentioned == ("dog", "dog", "cat")
    assert result.chair_i == 1 / 3 and result.cover == 1.0


def test_the_longest_name_wins():
    result = judge("A Dining\n table, then a dining-table, then a table", {"dining table"})
    assert result.per_caption[0].mentioned == ("dining table", "dining table", "table")
    words = ("tennis", "racket", "tennis racket")
    result = object_hallucination(["A tennis racket"], [{"tennis racket"}], words)
    assert result.per_caption[0].mentioned == ("tennis racket",)


def test_only_whole_words_count():
    assert judge("A dogma about a tomcat, tablets and a teacup", {"dog"}).mentions == 0


def test_plurals():
    words = ("dog", "bus", "dish", "berry", "key", "dining table", "snow man", "knife")
    assert list(plurals(words)) == [
        *("dogs", "buses", "dishes", "berries", "keys", "dining tables", "snow men", "knives")
    ]
    result = judge("Two dogs at dining tables", {"dog"}, plurals(VOCABULARY))
    assert result.per_caption[0].mentioned == ("dog", "dining table")


def test_silence_covers_nothing_and_has_no_chair_i():
    silent = object_hallucination(["", "Hm."], [{"dog"}, {"cat"}], VOCABULARY)
    assert silent.cover == 0.0 and silent.chair_s == 0.0
    assert math.isnan(silent.chair_i) and math.isnan(silent.cog)


def test_cog_counts_the_temptations_that_worked():
    captions = ["A dog and a cat", "A dog", "A dog and a cup"]
    prone = [{"cat", "cup"}, {"cat"}, {"dog", "cup"}]  # the dog is there: no temptation
    result = object_hallucination(captions, [{"dog"}] * 3, VOCABULARY, prone=prone)
    assert result.cog == 2 / 4
    assert (result.prone_objects, result.prone_hits) == (4, 2)


def test_the_order_of_captions_changes_nothing():
    rng = np.random.default_rng(0)
    captions = [" and ".join(rng.choice(VOCABULARY, rng.integers(1, 5))) for _ in range(30)]
    truths = [set(rng.choice(VOCABULARY, 2)) for _ in range(30)]
    order = rng.permutation(30)
    a = object_hallucination(captions, truths, VOCABULARY)
    b = object_hallucination([captions[i] for i in order], [truths[i] for i in order], VOCABULARY)
    assert (a.chair_i, a.chair_s, a.cover) == (b.chair_i, b.chair_s, b.cover)


def test_bootstrapping_over_images_surrounds_the_shares():
    captions, truths = ["A dog and a cat", "A dog", "A cup", "A cat"] * 10, [{"dog"}] * 40
    result = object_hallucination(captions, truths, VOCABULARY)
    rows = [(len(c.hallucinated), len(c.mentioned)) for c in result.per_caption]
    assert ratio(rows) == result.chair_i
    low, high = interval(rows, ratio)
    assert low < result.chair_i < high


def test_true_captions_of_the_pocket_world_are_true():
    scenes = sample_scenes(50)
    captions, truths = [describe(s) for s in scenes], [s.nouns for s in scenes]
    result = object_hallucination(captions, truths, NOUNS, plurals(NOUNS))
    assert (result.chair_i, result.chair_s, result.cover) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["a"], [], VOCABULARY), "captions and truths .* 1 and 0"),
        ((["a"], [{"dog"}], VOCABULARY, None, []), "captions and prone .* 1 and 0"),
        ((["a"], [{"dgo"}], VOCABULARY), "the truth of caption 0 names dgo"),
        ((["a"], ["dog"], VOCABULARY), "pass a collection"),
        ((["a"], [{"dog"}], VOCABULARY, {"sofa": "couch"}), "synonym 'sofa' .* 'couch'"),
        (([None], [{"dog"}], VOCABULARY), "caption 0 is None"),
        ((["a"], [set()], ()), "vocabulary is empty"),
    ],
)
def test_bad_captions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        object_hallucination(*arguments)


# --- yes/no --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, meaning",
    [
        ("Yes, there is a dog.", "yes"),
        ("No, there is not.", "no"),
        ("There is no dog", "no"),
        ("It is not there.", "no"),
        ("Yes. But no cat.", "yes"),  # only the first sentence
        ("Nothing of note, knots", "yes"),  # no word of its own
        ("NO", "yes"),  # as the public code has it
        ("", "yes"),
    ],
)
def test_answers_are_read_as_pope_reads_them(answer, meaning):
    assert parse_yes_no(answer) == meaning


def test_yes_no_by_hand():
    answers = ["yes", "yes", "No.", "Yes.", "no", "yes"]
    labels = ["yes", "no", "yes", "yes", "no", "no"]
    result = yes_no(answers, labels)
    assert (result.accuracy, result.precision, result.recall) == (3 / 6, 2 / 4, 2 / 3)
    assert result.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert (result.yes_ratio, result.n) == (4 / 6, 6)
    as_amber = yes_no(answers, labels, positive="no")
    assert (as_amber.precision, as_amber.recall) == (1 / 2, 1 / 3)
    assert (as_amber.accuracy, as_amber.yes_ratio) == (result.accuracy, result.yes_ratio)


def test_always_no_has_no_precision_and_no_f1():
    result = yes_no(["no"] * 4, ["yes", "no"] * 2)
    assert math.isnan(result.precision)
    assert (result.recall, result.f1, result.accuracy, result.yes_ratio) == (0, 0, 0.5, 0)


def test_bad_probes_are_refused():
    with pytest.raises(ValueError, match="answers and labels .* 2 and 1"):
        yes_no(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match="label 1 is 'maybe'"):
        yes_no(["yes", "no"], ["yes", "maybe"])
    with pytest.raises(ValueError, match="positive is True"):
        yes_no(["yes"], ["yes"], positive=True)
    with pytest.raises(ValueError, match="None is not a text"):
        yes_no([None], ["yes"])


# --- margins -------------------------------------------------------------------------------


def test_margins_of_tensors_and_arrays_agree():
    logps = torch.randn(4, 6, requires_grad=True)
    of_arrays = margins(*logps.detach().numpy(), beta=0.1)
    np.testing.assert_allclose(margins(*logps, beta=0.1), of_arrays, rtol=1e-6)
    swapped = margins(*logps[[1, 0, 3, 2]], beta=0.1)
    np.testing.assert_allclose(swapped, -of_arrays, rtol=1e-6)


def test_policy_equal_to_reference_has_margin_and_accuracy_zero():
    chosen, rejected = torch.randn(2, 6)
    untrained = margins(chosen, rejected, chosen, rejected)
    assert (untrained == 0).all()
    assert preference_accuracy(untrained) == 0.0  # ties are wrong: strict, as TRL
    assert preference_accuracy([1.0, -1.0, 0.0, 2.0]) == 0.5


def test_without_a_reference_the_margin_is_the_models_own():
    np.testing.assert_array_equal(margins([-1.0, -5.0], [-3.0, -4.0]), [2.0, -1.0])


def test_margins_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 3\]"):
        margins(*np.zeros((3, 2)), np.zeros(3))


# --- intervals -----------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    caught = 0
    for _ in range(100):
        low, high = interval(rng.normal(3.0, 1.0, 60), resamples=300)
        caught += low < 3.0 < high
    assert 86 <= caught <= 99


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=1600)
    error = values.std() / 40
    expected = (values.mean() - 1.96 * error, values.mean() + 1.96 * error)
    assert interval(values) == pytest.approx(expected, abs=0.2 * error)


def test_the_interval_narrows_with_data_and_with_a_lower_level():
    values = np.random.default_rng(0).normal(size=1600)
    few, many, half = interval(values[:100]), interval(values), interval(values, level=0.5)
    assert few[1] - few[0] > 2.5 * (many[1] - many[0]) > 5 * (half[1] - half[0])
    assert interval(values) == many  # seeded
    assert interval([0.25] * 5) == (0.25, 0.25)


def test_identical_models_differ_by_nothing():
    values = np.random.default_rng(0).normal(size=50)
    result = paired(values, values)
    assert (result.difference, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)
    assert (result.n, result.higher, result.lower) == (50, 0, 0)


def test_paired_sees_a_shift_that_the_spread_hides():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 60)
    tuned = base + rng.normal(0.5, 0.5, 60)
    result = paired(base, tuned)
    assert 0.3 < result.low < result.difference < result.high < 0.7
    assert result.p < 0.01 and result.higher > result.lower
    assert paired(tuned, base).difference == -result.difference


def test_the_p_value_is_mcnemars_for_yes_and_no():
    base, tuned = [0] * 6 + [1] * 10, [1] * 5 + [0] + [1] * 9 + [0]  # 5 up, 1 down
    exact = 2 * (1 + 6) / 2**6  # both tails of a fair coin: 5 or more of 6
    assert paired(base, tuned, resamples=20000).p == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: interval([]), "values is empty"),
        (lambda: interval([1.0, math.nan]), r"values\[1\] is not a finite number"),
        (lambda: interval([1.0], level=95), "level is 95"),
        (lambda: paired([1, 2], [1]), "a and b .* 2 and 1"),
    ],
)
def test_bad_samples_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
