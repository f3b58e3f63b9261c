"""Intervals and comparisons: against their own promises, scipy, the normal curve, exact counts."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats

from helpers.evaluation import intervals
from helpers.evaluation.intervals import estimate, interval, mcnemar, needed, paired, ratio

# --- intervals -----------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(3.0, 1.0, 60)) for _ in range(100)]
    assert 86 <= sum(low < 3.0 < high for low, high in found) <= 99


def test_the_interval_of_a_mean_is_the_normal_one_and_scipys():
    values = np.random.default_rng(0).normal(size=1600)
    error = values.std() / 40
    expected = (values.mean() - 1.96 * error, values.mean() + 1.96 * error)
    assert interval(values) == pytest.approx(expected, abs=0.2 * error)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1, batch=100)
    assert interval(values) == pytest.approx(tuple(theirs.confidence_interval), abs=0.2 * error)


def test_the_interval_narrows_with_data_and_is_seeded():
    values = np.random.default_rng(0).normal(size=1600)
    few, many = interval(values[:100]), interval(values)
    assert few[1] - few[0] > 2.5 * (many[1] - many[0])
    assert interval(values) == many != interval(values, seed=1)
    assert interval([0.25] * 5) == interval([0.25]) == (0.25, 0.25)


def test_clusters_are_drawn_whole():
    rng = np.random.default_rng(0)
    of_image = rng.normal(size=60)
    values, images = np.repeat(of_image, 10), np.repeat(np.arange(60), 10)
    whole, alone = interval(values, clusters=images), interval(of_image)
    assert whole == pytest.approx(alone, abs=0.03)  # ten copies say nothing new
    naive = interval(values)
    assert whole[1] - whole[0] > 2.5 * (naive[1] - naive[0])
    figure = estimate(values, clusters=images)
    assert (figure.n, figure.items, figure.value) == (60, 600, values.mean())
    assert (figure.low, figure.high) == whole


def test_draws_without_a_value_are_left_out():
    low, high = interval([(0, 0)] * 30 + [(1, 2)] * 2, ratio)
    assert (low, high) == (0.5, 0.5)
    assert all(math.isnan(x) for x in interval([(0, 0)] * 5, ratio))


# --- two models ----------------------------------------------------------------------------


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
    assert result.p == pytest.approx(1 / 2001) and result.higher > result.lower
    assert paired(tuned, base).difference == -result.difference


@pytest.mark.parametrize("differences", ([0.5], [1.0, 2.0, 4.0], [1.5, -0.5, 2.0, 0.25, 0.0]))
def test_few_units_have_an_exact_p(differences):
    signs = product((-1, 1), repeat=len(differences))
    flips = [abs(np.dot(flip, differences)) for flip in signs]
    assert paired([0.0] * len(differences), differences).p == np.mean(
        np.array(flips) >= abs(sum(differences)) - 1e-12
    )


def test_a_difference_of_yes_and_no_is_mcnemars():
    base, tuned = [0] * 6 + [1] * 10, [1] * 5 + [0] + [1] * 9 + [0]  # 5 up, 1 down
    exact = 2 * (1 + 6) / 2**6  # both tails of a fair coin: 5 or more of 6
    assert paired(base, tuned).p == mcnemar(5, 1) == pytest.approx(exact)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(10, 0) == mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert 0 < mcnemar(3000, 2000) < 1e-40  # not rounded to 0


@pytest.mark.parametrize("higher, lower", [(0, 4), (1, 4), (2, 4), (3, 4), (5, 2)])
def test_mcnemar_counts_the_flips_that_are_as_uneven(higher, lower):
    flips = [abs(sum(flip)) for flip in product((-1, 1), repeat=higher + lower)]
    expected = np.mean(np.array(flips) >= abs(higher - lower))
    assert mcnemar(higher, lower) == pytest.approx(expected)


def test_sampled_and_exact_p_agree():
    rng = np.random.default_rng(0)
    base, tuned = (rng.random(200) < share for share in (0.5, 0.58))
    of_items = paired(base, tuned)
    alone = paired(base, tuned, clusters=range(200))  # every item its own cluster
    assert alone.p == pytest.approx(of_items.p, abs=0.03)
    assert (alone.n, alone.higher, alone.lower) == (200, of_items.higher, of_items.lower)


def test_a_pair_of_models_is_compared_by_picture():
    change = np.repeat([1] * 8 + [-1] * 4, 20)  # 12 pictures, all their questions alike
    base = np.zeros(240)
    careless = paired(base, change)
    careful = paired(base, change, clusters=np.repeat(np.arange(12), 20))
    assert careful.n == 12 and careless.n == 240
    assert careless.p < 0.001 < 0.05 < careful.p
    assert careful.high - careful.low > 3 * (careless.high - careless.low)


# --- how many it takes ---------------------------------------------------------------------


def test_the_number_needed_is_connors():
    assert needed(0.4, 0.5) == 23  # p10 = 0.45, p01 = 0.05: a calculator's published example
    assert needed(-0.4, 0.5) == 23


def test_with_the_number_needed_the_test_sees_the_difference_as_often_as_asked():
    n, rng = needed(0.1, 0.3, power=0.8), np.random.default_rng(0)
    seen = 0
    for _ in range(400):
        up, down, _ = rng.multinomial(n, (0.2, 0.1, 0.7))
        seen += mcnemar(int(up), int(down)) < 0.05
    assert 0.73 < seen / 400 < 0.85  # the exact test is a little shy


def test_a_tenth_of_a_point_takes_more_questions_than_amber_has():
    questions = 14_216
    assert needed(0.001, discordant=0.05) > 20 * questions
    assert needed(0.001, discordant=0.001) < questions  # only if nothing else changed at all
    assert needed(0.001, 0.05, power=0.9) > needed(0.001, 0.05) > needed(0.002, 0.05)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: needed(0, 0.1), "difference is 0 "),
        (lambda: needed(0.2, 0.1), "not above the share that disagrees"),
        (lambda: needed(0.1, 1.2), "discordant 1.2"),
        (lambda: needed(0.1, 0.2, power=80), "power is 80"),
        (lambda: interval([1, 2], clusters=[1]), "values and clusters .* 2 and 1"),
        (lambda: paired([1, 2], [1, 2], clusters=[1]), "clusters .* 2 and 1"),
        (lambda: interval([]), "values is empty"),
        (lambda: interval([1.0, math.nan]), r"values\[1\] is not a finite number"),
        (lambda: paired([1, 2], [1]), "a and b .* 2 and 1"),
    ],
)
def test_bad_samples_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
