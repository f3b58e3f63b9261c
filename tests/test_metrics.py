"""Metrics on cases small enough to count by hand."""

import math

import numpy as np
import pytest
import torch

from helpers.evaluation.intervals import interval, ratio
from helpers.evaluation.metrics import (
    f1,
    margins,
    object_hallucination,
    opinion,
    parse_yes_no,
    preference_accuracy,
    probe_rows,
    yes_no,
)
from helpers.evaluation.objects import plurals
from helpers.world.scenes import NOUNS, describe, sample_scenes

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
    assert judge("Two dogs at dining tables", {"dog"}).per_caption[0].mentioned == (
        *("dog", "dining table"),
    )
    result = judge("Puppies, persons", {"dog"}, {"puppy": "dog", "person": "cat"})
    assert result.per_caption[0].mentioned == ("dog", "cat")


def test_a_hyphen_joins():
    found = judge("A dog-friendly cat-o-nine-tails, a lap-dog and a dining-table", set())
    assert found.per_caption[0].mentioned == ("dining table",)


def test_an_ignored_phrase_names_nothing_but_its_words_still_do():
    found = object_hallucination(["A hot dog and a dog"], [{"dog"}], ["dog"], ignore=["hot dog"])
    assert found.mentions == 1
    found = object_hallucination(["One dog, two dogs"], [{"dog"}], ["dog"], ignore=["dog"])
    assert (found.mentions, found.cover) == (1, 1.0)  # the spelling is ignored, not the object


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
        ("No! None", "yes"),
        ("It's not, sorry", "no"),
        ("not\nthere", "yes"),
    ],
)
def test_answers_are_read_as_pope_reads_them(answer, meaning):
    assert parse_yes_no(answer) == meaning


@pytest.mark.parametrize(
    "answer, meaning",
    [
        *[("NO", "no"), ("No!", "no"), ("There isn't one", "no"), ("I cannot see it", "no")],
        *[("yes\nno", "yes"), ("Yes. But no cat.", "yes"), ("A dog.", None), ("", None)],
        ("Noah knows", None),
    ],
)
def test_an_opinion_is_what_is_said_first(answer, meaning):
    assert opinion(answer) == meaning


def test_answers_taken_for_their_contrary_are_counted():
    result = yes_no(["NO", "No.", "yes", "A dog", "Yes, no other"], ["no"] * 5)
    assert (result.disputed, result.yes_ratio) == (2, 3 / 5)


def test_an_answer_that_is_neither_is_wrong_whatever_the_label():
    result = yes_no(["a", "b"], ["yes", "no"], parse=lambda answer: None)
    assert (result.accuracy, result.yes_ratio, result.claimed, result.actual) == (0, 0, 0, 1)


def test_rows_give_the_figures_and_their_intervals():
    rng = np.random.default_rng(0)
    answers, labels = (list(rng.choice(["yes", "no"], 200, p=(0.6, 0.4))) for _ in range(2))
    result, rows = yes_no(answers, labels), probe_rows(answers, labels)
    assert rows.sum(0).tolist() == [result.right, result.hits, result.claimed, result.actual]
    assert f1(rows) == result.f1
    low, high = interval(rows, f1, resamples=200)
    assert low < result.f1 < high


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
