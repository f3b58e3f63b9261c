"""How sure we are: bootstrap intervals over images, paired comparisons, how many items it takes.

    estimate(right, clusters=images)          # Estimate(value=0.858, low=..., high=..., n=1004)
    paired(base_right, tuned_right, clusters=images).p
    needed(0.001, discordant=0.05)            # items to see +0.1 points when 5% of answers change

Items that share a picture are not independent: name each item's picture in `clusters`, and
pictures are drawn instead of items. `n` is always the number of what was drawn.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, the `n` independent units behind it, and the `items` in them."""

    value: float
    low: float
    high: float
    n: int
    items: int


def estimate(values, statistic=np.mean, level=0.95, seed=0, resamples=2000, clusters=None):
    """`statistic(values)` with its `interval` and its n. Arguments and errors as `interval`."""
    low, high = interval(values, statistic, level, seed, resamples, clusters)
    values = sound("values", values)
    n = len(values) if clusters is None else len(set(clusters))
    return Estimate(float(statistic(values)), low, high, n, len(values))


def interval(values, statistic=np.mean, level=0.95, seed=0, resamples=2000, clusters=None):
    """(low, high): the percentile bootstrap interval of a statistic, the same for the same seed.

    `values`: one number or one row of numbers for each item. Without `clusters` items are drawn;
    with it, a label for each item, whole clusters (Davison and Hinkley 1997, section 3.8). Raises
    ValueError when there are no values, when one is not a number, when `clusters` has another
    length, or when `level` is not between 0 and 1. Draws that have no value (a share of nothing)
    are left out; when all have none, so has the interval (nan).
    """
    values = sound("values", values)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1, such as 0.95.")
    rng = np.random.default_rng(seed)
    rows = None if clusters is None else _rows_of(values, clusters)
    draws = np.array([statistic(values[_draw(rng, len(values), rows)]) for _ in range(resamples)])
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draw(rng, n, rows):
    """Indices of as many items, or as many whole clusters, as there are, with replacement."""
    if rows is None:
        return rng.integers(0, n, n)
    return np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])


def _rows_of(values, clusters):
    """For each cluster, the indices of its items."""
    same_length("values", values, "clusters", clusters)
    rows = {}
    for row, label in enumerate(clusters):
        rows.setdefault(label, []).append(row)
    return [np.array(indices) for indices in rows.values()]


def totals(rows, clusters):
    """One row for each cluster: the sum of its items' rows, in the order of first appearance.

    Enough for statistics of sums, such as `ratio`, and faster than to draw with `clusters`.
    """
    rows = sound("rows", rows)
    return np.stack([rows[indices].sum(0) for indices in _rows_of(rows, clusters)])


def ratio(rows):
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


def paired(a, b, level=0.95, seed=0, resamples=2000, clusters=None):
    """Compare two models on the same items: `a` the base, `b` the tuned one, a number an item.

    p answers: were there no difference, how often would one this large come up? For 0/1 items it
    is McNemar's, exact. Otherwise, and where items share a cluster, it comes from the paired
    permutation test (each item's, or cluster's, difference may as well have the other sign), by
    sampling: its smallest value is then 1 / (resamples + 1). Raises ValueError as `interval`, and
    when lengths differ.
    """
    a, b = sound("a", a), sound("b", b)
    same_length("a", a, "b", b)
    differences = b - a
    low, high = interval(differences, np.mean, level, seed, resamples, clusters)
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    units = differences
    if clusters is not None:
        units = np.array([differences[rows].sum() for rows in _rows_of(differences, clusters)])
    zero_one = clusters is None and set(np.unique(differences)) <= {-1.0, 0.0, 1.0}
    return Paired(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=mcnemar(higher, lower) if zero_one else _permutation(units, seed, resamples),
        n=len(units),
        higher=higher,
        lower=lower,
    )


def mcnemar(higher, lower):
    """The exact two-sided p of `higher` items that only b gets right and `lower` that only a does.

    Items that both get right, or both wrong, say nothing. Without a difference the others fall
    like a fair coin (McNemar 1947, the exact form of the binomial test).
    """
    n, term, tail = higher + lower, 1, 0
    for k in range(min(higher, lower) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def _permutation(differences, seed, resamples):
    rng = np.random.default_rng(seed)
    observed = abs(differences.sum())
    flipped = [abs(rng.choice((-1, 1), len(differences)) @ differences) for _ in range(resamples)]
    # Sums in another order differ in the last digits: a tie must count as a tie.
    extreme = sum(value >= observed - 1e-9 * (1 + observed) for value in flipped)
    return (extreme + 1) / (resamples + 1)


def needed(difference, discordant, power=0.8, level=0.95):
    """How many paired 0/1 items it takes to see a difference in the share that is right.

    `difference`: b's share minus a's, as a fraction (0.001 is a tenth of a point). `discordant`:
    the share of items on which the two disagree in being right, which is at least the difference;
    two tables of results do not tell it, only the answers do. Connor 1987 (Biometrics 43:207),
    equation for McNemar's test: n = (z_level sqrt(psi) + z_power sqrt(psi - d^2))^2 / d^2, for
    independent items. Raises ValueError for shares that cannot be.
    """
    size = abs(difference)
    if not 0 < size <= discordant <= 1:
        raise ValueError(
            f"difference is {difference} and discordant {discordant}: they are shares, and the "
            "difference must lie above 0 and not above the share that disagrees."
        )
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}: it must lie between 0 and 1, such as 0.8.")
    z_level, z_power = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    root = z_level * math.sqrt(discordant) + z_power * math.sqrt(discordant - size**2)
    return math.ceil((root / size) ** 2)


# --- what every figure is made of ----------------------------------------------------------


def share(part, whole):
    """part / whole; nan for a share of nothing."""
    return float(part / whole) if whole else math.nan


def same_length(name, values, other_name, others):
    if len(values) != len(others):
        raise ValueError(
            f"{name} and {other_name} must go together, but there are {len(values)} and "
            f"{len(others)} of them."
        )


def array(values):
    """float64, also from a tensor of any precision, on any device, with or without gradient."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=float)


def sound(name, values):
    values = array(values)
    if not values.size:
        raise ValueError(f"{name} is empty: there is nothing to estimate from.")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name}[{row}] is not a finite number: {values[row]}.")
    return values
