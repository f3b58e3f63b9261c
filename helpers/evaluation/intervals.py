"""How sure we are: bootstrap intervals over images, paired comparisons, how many items it takes.

    estimate(correct, clusters=images)        # Estimate(value=0.858, low=..., high=..., n=1004)
    paired(base_correct, tuned_correct, clusters=images).p
    needed(0.001, discordant=0.05)            # items to see +0.1 points when 5% of answers change

Items that share a picture are not independent: name each item's picture in `clusters`, and
pictures are drawn instead of items. `n` is always the number of what was drawn.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

EDGES = (0.025, 0.975)  # of a 95% interval
RESAMPLES = 2000
Statistic = Callable[[np.ndarray], float]
Clusters = Sequence[Hashable] | None  # a label for each item


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, the `n` independent units behind it, and the `items` in them."""

    value: float
    low: float
    high: float
    n: int
    items: int


def estimate(
    values: Any, statistic: Statistic = np.mean, seed: int = 0, clusters: Clusters = None
) -> Estimate:
    """`statistic(values)` with its 95% percentile bootstrap interval, the same for the same seed.

    `values`: (n,) or (n, columns), a number or a row for each item. Without `clusters` items are
    drawn; with it, a label for each item, whole clusters (Davison and Hinkley 1997, section 3.8).
    Draws that have no value (a share of nothing) are left out; when all have none, so has the
    interval (nan). Raises ValueError when there are no values, when one is not a number, or when
    `clusters` has another length.
    """
    values = sound("values", values)
    rows_of = None if clusters is None else _rows_of(values, clusters)
    n = len(values) if rows_of is None else len(rows_of)

    def drawn(units: np.ndarray) -> np.ndarray:
        return values[units if rows_of is None else np.concatenate([rows_of[i] for i in units])]

    # scipy.stats.bootstrap draws the same numbers, but knows no clusters, refuses a single unit,
    # and gives nan as soon as one draw has no value.
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(drawn(rng.integers(0, n, n))) for _ in range(RESAMPLES)])
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, EDGES) if draws.size else (math.nan, math.nan)
    return Estimate(float(statistic(values)), float(low), float(high), n, len(values))


def interval(
    values: Any, statistic: Statistic = np.mean, seed: int = 0, clusters: Clusters = None
) -> tuple[float, float]:
    """(low, high) of `estimate`, with its arguments and errors."""
    found = estimate(values, statistic, seed, clusters)
    return found.low, found.high


def _rows_of(values: np.ndarray, clusters: Sequence[Hashable]) -> list[np.ndarray]:
    """For each cluster, in order of first appearance, the indices of its items."""
    same_length("values", values, "clusters", clusters)
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(clusters):
        rows.setdefault(label, []).append(row)
    return [np.array(indices) for indices in rows.values()]


def ratio(rows: Any) -> float:
    """Sum of the first column over sum of the second: a statistic for `interval`."""
    over, under = np.asarray(rows).sum(0)
    return share(over, under)


# --- two models on the same items ----------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """The mean of b - a over the same items, its interval, and what went up and down."""

    difference: float
    low: float
    high: float
    p: float
    n: int  # independent units: items, or clusters where these were named
    higher: int  # items where b is above a
    lower: int


def paired(a: Any, b: Any, seed: int = 0, clusters: Clusters = None) -> Paired:
    """Compare two models on the same items: `a` the base, `b` the tuned one, a number an item.

    p answers: were there no difference, how often would one this large come up? For 0/1 items it
    is McNemar's, exact. Otherwise, and where items share a cluster, it comes from the paired
    permutation test: each item's, or cluster's, difference may as well have the other sign. Where
    there are more signs to try than `RESAMPLES` (from 11 units on), that many are sampled, and the
    smallest p is 1 / 2001. Raises ValueError as `interval`, and when lengths differ.
    """
    a, b = sound("a", a), sound("b", b)
    same_length("a", a, "b", b)
    differences = b - a
    low, high = interval(differences, np.mean, seed, clusters)
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    units = differences
    if clusters is not None:
        units = np.array([differences[rows].sum() for rows in _rows_of(differences, clusters)])
    zero_one = clusters is None and set(np.unique(differences)) <= {-1.0, 0.0, 1.0}
    return Paired(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=mcnemar(higher, lower) if zero_one else _sign_flips(units, seed),
        n=len(units),
        higher=higher,
        lower=lower,
    )


def mcnemar(higher: int, lower: int) -> float:
    """The exact two-sided p of `higher` items that only b gets right and `lower` that only a does.

    Items that both get right, or both wrong, say nothing. Without a difference the others fall
    like a fair coin (McNemar 1947, the exact form of the binomial test).
    """
    from scipy.stats import binomtest  # takes a second to import: not before it is asked for

    return float(binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0


def _sign_flips(differences: np.ndarray, seed: int) -> float:
    from scipy.stats import permutation_test

    if len(differences) == 1:  # it and its opposite are as large; scipy wants two
        return 1.0
    found = permutation_test(
        (differences,),
        lambda flipped, axis: abs(flipped.sum(axis)),
        permutation_type="samples",  # of one sample: flips signs
        alternative="greater",  # in absolute value: both sides
        n_resamples=RESAMPLES,
        batch=100,  # (batch, n) numbers at once
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def needed(difference: float, discordant: float, power: float = 0.8) -> int:
    """How many paired 0/1 items it takes to see a difference in the share that is correct.

    `difference`: b's share minus a's, as a fraction (0.001 is a tenth of a point). `discordant`:
    the share of items on which the two disagree in being correct, which is at least the difference;
    two tables of results do not tell it, only the answers do. Connor 1987 (Biometrics 43:207),
    equation for McNemar's test: n = (z_level sqrt(psi) + z_power sqrt(psi - d^2))^2 / d^2, for
    independent items at the 5% level. Raises ValueError for shares that cannot be.
    """
    size = abs(difference)
    if not 0 < size <= discordant <= 1:
        raise ValueError(
            f"difference is {difference} and discordant {discordant}: they are shares, and the "
            "difference must lie above 0 and not above the share that disagrees."
        )
    if not 0 < power < 1:
        raise ValueError(f"power is {power}: it must lie between 0 and 1, such as 0.8.")
    z_level, z_power = NormalDist().inv_cdf(EDGES[1]), NormalDist().inv_cdf(power)
    root = z_level * math.sqrt(discordant) + z_power * math.sqrt(discordant - size**2)
    return math.ceil((root / size) ** 2)


# --- what every figure is made of ----------------------------------------------------------


def share(part: float, whole: float) -> float:
    """part / whole; nan for a share of nothing."""
    return float(part / whole) if whole else math.nan


def same_length(name: str, values: Any, other_name: str, others: Any) -> None:
    """Raises ValueError unless both have the same length."""
    if len(values) != len(others):
        raise ValueError(
            f"{name} and {other_name} must go together, but there are {len(values)} and "
            f"{len(others)} of them."
        )


def array(values: Any) -> np.ndarray:
    """float64, also from a tensor of any precision, on any device, with or without gradient."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=float)


def sound(name: str, values: Any) -> np.ndarray:
    """`array(values)`; raises ValueError if it is empty or holds what is not a finite number."""
    values = array(values)
    if not values.size:
        raise ValueError(f"{name} is empty: there is nothing to estimate from.")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name}[{row}] is not a finite number: {values[row]}.")
    return values
