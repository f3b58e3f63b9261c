"""Metrics on cases small enough to count by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.evaluation.intervals import interval
from helpers.evaluation.metrics import (
    chair,
    f1,
    margins,
    object_hallucination,
    opinion,
    parse_yes_no,
    preference_accuracy,
    probe_rows,
    scene_hallucination,
    yes_no,
)
from helpers.evaluation.objects import chair_words, plurals
from helpers.world.scenes import describe, sample_scenes
from tools.public_programs import chair_words_as_public

VOCABULARY = ("dog", "cat", "table", "dining table", "cup")
CHAIR = json.loads((Path(__file__).parent / "public_figures" / "chair.json").read_text("utf-8"))


def mentioned(caption, synonyms=None, vocabulary=VOCABULARY, ignore=()):
    found = object_hallucination([caption], [()], vocabulary, synonyms, ignore=ignore)
    return " ".join(name.replace(" ", "_") for name in found.per_caption[0].mentioned)


# --- object hallucination ------------------------------------------------------------------


def test_a_hand_made_case_in_any_order():
    captions = ["A dog, a dog and a cat. Another dog.", "A cup.", "Nothing much."]
    truths, prone = [{"dog"}, {"cup", "cat"}, {"dog"}], [{"cat", "cup"}, {"cup"}, {"cat"}]
    for order in ([0, 1, 2], [2, 0, 1]):
        inputs = ([some[i] for i in order] for some in (captions, truths))
        result = object_hallucination(*inputs, VOCABULARY, prone=[prone[i] for i in order])
        assert result.chair_i == 1 / 5  # dog, dog, cat, dog, cup: one is not there
        assert result.chair_s == 1 / 3
        assert result.cover == 2 / 4  # repeats count in chair_i and only there
        assert result.cog == 1 / 3  # the cup of the second is there: no temptation
        assert (result.mentions, result.hallucinated_mentions) == (5, 1)
        assert (result.captions, result.hallucinating_captions) == (3, 1)
        assert (result.truth_objects, result.true_positives) == (4, 2)
        assert (result.prone_objects, result.prone_mentioned) == (3, 1)
        first = result.per_caption[order.index(0)]
        assert first.mentioned == ("dog", "dog", "cat", "dog") and first.hallucinated == ("cat",)
        assert first.true_positives == {"dog"} and first.prone_mentioned == {"cat"}


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A puppy, which is a Dog, and a kitten", "dog dog cat"),  # synonyms are one object
        ("A Dining\n table, then a dining-table, then a table", "dining_table dining_table table"),
        ("A dogma about a tomcat, tablets and a teacup", ""),  # whole words only
        ("Two dogs at dining tables. Puppies, persons", "dog dining_table dog cup"),
        ("A dog-friendly cat-o-nine-tails, a lap-dog and a dining-table", "dining_table"),
        ("No cat", "cat"),
    ],
)
def test_what_a_caption_mentions(caption, expected):
    synonyms = {"puppy": "dog", "kitten": "cat", "person": "cup"}
    assert mentioned(caption, synonyms) == expected


def test_truth_may_be_named_by_a_synonym():
    result = object_hallucination(["A dog"], [{"puppy"}], VOCABULARY, {"puppy": "dog"})
    assert result.cover == 1.0 and result.chair_i == 0.0


def test_plurals():
    words = ("dog", "bus", "dish", "berry", "key", "dining table", "snow man", "knife")
    assert list(plurals(words)) == [
        *("dogs", "buses", "dishes", "berries", "keys", "dining tables", "snow men", "knives")
    ]


def test_an_ignored_phrase_names_nothing_but_its_words_still_do():
    assert mentioned("A hot dog and a dog", ignore=["hot dog"]) == "dog"
    assert mentioned("One dog, two dogs", ignore=["dog"]) == "dog"  # the spelling, not the object


def test_silence_covers_nothing_and_has_no_chair_i():
    silent = object_hallucination(["", "Hm."], [{"dog"}, {"cat"}], VOCABULARY)
    assert silent.cover == 0.0 and silent.chair_s == 0.0
    assert math.isnan(silent.chair_i) and math.isnan(silent.cog)


def test_scenes_have_an_exact_truth_and_the_associates_of_their_contexts():
    scenes = sample_scenes(50)
    result = scene_hallucination([describe(scene) for scene in scenes], scenes)
    assert (result.chair_i, result.chair_s, result.cover, result.cog) == (0.0, 0.0, 1.0, 0.0)
    assert result.prone_objects > 0
    traps = sample_scenes(20, "trap")
    assert scene_hallucination([""] * 20, traps).prone_objects >= 20


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["a"], [], VOCABULARY), "captions and truths .* 1 and 0"),
        ((["a"], [{"dog"}], VOCABULARY, None, []), "captions and prone .* 1 and 0"),
        ((["a"], [{"dgo"}], VOCABULARY), "the truth of caption 0 names dgo"),
        ((["a"], [{"dog"}], VOCABULARY, None, [{"dgo"}]), "prone of caption 0 names dgo"),
        ((["a"], ["dog"], VOCABULARY), "pass a collection"),
        ((["a"], [{"dog"}], VOCABULARY, {"sofa": "couch"}), "synonym 'sofa' .* 'couch'"),
        (([None], [{"dog"}], VOCABULARY), "caption 0 is None"),
        ((["a"], [set()], ()), "vocabulary is empty"),
    ],
)
def test_bad_captions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        object_hallucination(*arguments)


# --- CHAIR's words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "caption, ours, public",
    [
        ("A bus and two buses", ["bus", "bus"], ["bus"]),
        ("Two ties on a motor bike", ["tie", "motorcycle"], []),
        ("A stove top oven", ["oven"], ["oven", "oven"]),
        ("A baby elephant by the train tracks", ["elephant"], ["elephant"]),
        ("A baby on a passenger train", ["person", "train"], ["person", "train"]),
        ("The seat of the toilet. A seat.", ["toilet"], ["toilet"]),
        ("A seat, a toilet-paper roll", ["chair"], ["chair"]),
        ("Wine glasses and hot dogs", ["wine glass", "hot dog"], ["wine glass", "hot dog"]),
    ],
)
def test_chairs_own_rules(caption, ours, public):
    words = chair_words("\n".join(CHAIR["synonyms"]))
    for expected, known in ((ours, words), (public, chair_words_as_public(words))):
        assert list(chair([caption], [set()], known).per_caption[0].mentioned) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("dog, puppy\ncat, puppy\n", "line 2: 'puppy' also stands for 'dog'"),
        ("\n", "names no objects"),
    ],
)
def test_a_list_of_synonyms_that_says_nothing_or_contradicts_itself_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        chair_words(text)


# --- yes/no --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, as_pope, first",
    [
        ("Yes, there is a dog.", "yes", "yes"),
        ("No, there is not.", "no", "no"),
        ("There is no dog", "no", "no"),
        ("It is not there.", "no", "no"),
        ("It's not, sorry", "no", "no"),
        ("Yes. But no cat.", "yes", "yes"),  # only the first sentence
        ("Nothing of note, knots", "yes", None),  # no word of its own
        ("Noah knows", "yes", None),
        ("A dog.", "yes", None),
        ("", "yes", None),
        ("NO", "yes", "no"),  # a yes, as the public code has it
        ("No! None", "yes", "no"),
        ("not\nthere", "yes", "no"),
        ("There isn't one", "yes", "no"),
        ("I cannot see it", "yes", "no"),
        ("yes\nno", "yes", "yes"),
    ],
)
def test_answers_are_read_as_pope_reads_them_and_by_what_they_say_first(answer, as_pope, first):
    assert (parse_yes_no(answer), opinion(answer)) == (as_pope, first)


def test_answers_taken_for_their_contrary_are_counted():
    result = yes_no(["NO", "No.", "yes", "A dog", "Yes, no other"], ["no"] * 5)
    assert (result.disputed, result.yes_ratio) == (2, 3 / 5)


def test_an_answer_that_is_neither_is_wrong_whatever_the_label():
    result = yes_no(["a", "b"], ["yes", "no"], parse=lambda answer: None)
    assert (result.accuracy, result.yes_ratio) == (0, 0)
    assert (result.predicted_positives, result.positives) == (0, 1)


def test_rows_give_the_figures_and_their_intervals():
    rng = np.random.default_rng(0)
    answers, labels = (list(rng.choice(["yes", "no"], 200, p=(0.6, 0.4))) for _ in range(2))
    result, rows = yes_no(answers, labels), probe_rows(answers, labels)
    counts = [result.correct, result.true_positives, result.predicted_positives, result.positives]
    assert rows.sum(0).tolist() == counts
    assert f1(rows) == result.f1
    low, high = interval(rows, f1)
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


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["yes", "no"], ["yes"]), "answers and labels .* 2 and 1"),
        ((["yes", "no"], ["yes", "maybe"]), "label 1 is 'maybe'"),
        ((["yes"], ["yes"], True), "positive is True"),
        (([None], ["yes"]), "None is not a text"),
    ],
)
def test_bad_probes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        yes_no(*arguments)


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
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 3\]"):
        margins(*np.zeros((3, 2)), np.zeros(3))
