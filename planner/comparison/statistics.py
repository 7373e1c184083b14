"""Statistics of a comparison: paired differences to the best configuration, and ranks over blocks.

A block is a data file with a seed: what is equal for every configuration. Values are [N, C]: N blocks, C
configurations, larger is better. Nothing here prints, and a test that cannot be made is None, never a number.

- Paired t-tests (scipy.stats.ttest_rel), adjusted after Holm, A simple sequentially rejective multiple test
  procedure, 1979, https://www.jstor.org/stable/4615733 (statsmodels).
- Friedman's test (scipy.stats.friedmanchisquare) and Nemenyi's (scikit-posthocs), as Demsar, Statistical comparisons of
  classifiers over multiple data sets, 2006, https://jmlr.org/papers/v7/demsar06a.html advises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

LEAST_BLOCKS = 3
"""Blocks below which no test is made."""
LEAST_RANKED = 3
"""Configurations below which ranks say no more than a paired test."""
ALPHA = 0.05
CONFIDENCE = 1 - ALPHA


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a configuration is from the best one, block by block."""

    blocks: int
    """Blocks that both have a result for."""
    mean: float
    """Mean of (configuration - best): not above zero where both have every block."""
    low: float | None
    """Lower end of the 95% interval of the mean difference (Student's t); None with fewer than 2 blocks."""
    high: float | None
    t: float | None
    """Statistic of the paired t-test; None with fewer than 3 blocks, or where the differences are all the same."""
    p: float | None
    """Two-sided p-value of that test, for this pair alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """Ranks of the configurations over blocks; 1 is the best, ties share their mean."""

    blocks: int
    mean: Values
    """[C]"""
    chi2: float
    """Friedman's statistic, C - 1 degrees of freedom."""
    p: float
    nemenyi: Values
    """[C, C] p-values of Nemenyi's test between pairs."""
    critical_difference: float
    """Mean ranks that differ by at least this much differ at the 5% level (Nemenyi)."""


def difference(values: Values, best: Values) -> Difference:
    """Return the paired difference of one configuration to the best, [N] each; NaN where a block has no result."""
    from scipy import stats

    both = ~(np.isnan(values) | np.isnan(best))
    found = values[both] - best[both]
    count = len(found)
    mean = float(found.mean()) if count else math.nan
    low = high = t = p = None
    if count >= 2:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * float(found.std(ddof=1)) / math.sqrt(count)
        low, high = mean - half, mean + half
    if count >= LEAST_BLOCKS and not _constant(found):
        tested = stats.ttest_rel(values[both], best[both])
        t, p = float(tested.statistic), float(tested.pvalue)
    return Difference(blocks=count, mean=mean, low=low, high=high, t=t, p=p)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Return p-values adjusted after Holm, over those that are there."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    adjusted = iter([float(p) for p in multipletests(known, method="holm")[1]] if known else [])
    return [None if p is None else next(adjusted) for p in p_values]


def ranks(values: Values) -> Ranks | None:
    """Return ranks over the blocks [N, C] and what Friedman and Nemenyi make of them.

    Blocks without a result for every configuration are left out. None with fewer than 3 configurations or complete
    blocks, and where no block tells any two configurations apart.
    """
    from scipy import stats

    complete = values[~np.isnan(values).any(axis=1)]
    blocks, count = complete.shape
    if blocks < LEAST_BLOCKS or count < LEAST_RANKED or bool((np.ptp(complete, axis=1) == 0).all()):
        return None
    import scikit_posthocs

    tested = stats.friedmanchisquare(*complete.T)
    return Ranks(
        blocks=blocks,
        mean=stats.rankdata(-complete, axis=1).mean(axis=0),
        chi2=float(tested.statistic),
        p=float(tested.pvalue),
        nemenyi=np.asarray(scikit_posthocs.posthoc_nemenyi_friedman(complete), dtype=float),
        critical_difference=critical_difference(count, blocks),
    )


def critical_difference(configurations: int, blocks: int, alpha: float = ALPHA) -> float:
    """Return the difference of mean ranks that Nemenyi's test asks for: q sqrt(C (C + 1) / (6 N))."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - alpha, configurations, np.inf)) / math.sqrt(2)
    return q * math.sqrt(configurations * (configurations + 1) / (6 * blocks))


def _constant(differences: Values) -> bool:
    """Tell whether all differences are the same but for rounding: there is no spread to judge them by."""
    return bool(np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs(differences).max())))
