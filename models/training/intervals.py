"""Intervals of a test's metrics: how much they would change with other users of the same kind.

The users are resampled (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: percentile
intervals), but never one by one. A user's NDCG, HitRate and MRR depend on nothing but the rank and cohort of the
target, so users with the same rank and cohort are drawn together: how often each of these few hundred cells is drawn
has a multinomial distribution, which is that of drawing single users, not an approximation. The draws of a million
users cost as much as those of a thousand. A user's Surprisal is a real number: users within 1/512 of each other are
drawn together, with their mean.

Coverage is no mean over users: a resample holds only 63% of them, so that its coverage is lower by construction, and
its percentiles say nothing. Its interval comes from the jackknife (Heltshe and Forrester, Estimating species richness
using the jackknife procedure, Biometrics 39, 1983, https://doi.org/10.2307/2530802): leaving out a user loses the items
that nobody else is recommended.

scipy.stats.bootstrap draws single users, R times H of them for each metric, and belongs to the extra `analyze`.

Letters: H users evaluated, K ranks, V items, R resamples, C cells, N ranks that metrics are wanted at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from srsplan.models.checks import require_positive
from srsplan.models.errors import InputError
from srsplan.models.training.cohorts import COHORTS, Cohorts, balance, cohort_gains, tally
from srsplan.models.training.metrics import Ranked, gains

ALL = "all"
SURPRISAL_BINS = 512
"""Bins of 0 to 1: within one of them a user's Surprisal is taken for the mean of the bin's users."""
DEFINED_SHARE = 0.95
"""Share of the resamples that must define a figure: a small cohort has no user in some of them."""

Interval = tuple[float, float]
Draws = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    seed: int = 0
    """The same seed gives the same intervals."""
    resamples: int = 1000
    level: float = 0.95
    """Share of such tests whose interval should hold the true value, above 0 and below 1."""

    def __post_init__(self) -> None:
        require_positive(resamples=self.resamples)
        if not 0 < self.level < 1:
            raise InputError(f"level {self.level} is outside (0, 1)", "0.95 is usual")


def intervals(ranked: Ranked, cohorts: Cohorts, resampling: Resampling) -> dict[str, dict[str, Interval]]:
    """Return the lower and upper end of every metric over all users, and of those of each cohort.

    Keys are `all`, `head`, `mid` and `tail`, then names of metrics such as NDCG_10; Balance_10 is among those of all
    users. What less than 95% of the resamples define is left out. Memory: 8 R C bytes, C at most 3 (K + 1) or 512, and
    two arrays of V.
    """
    generator = np.random.default_rng(resampling.seed)
    resampled = _resampled_means(ranked, cohorts, resampling, generator)
    rates = {k: np.stack([resampled[name][f"HitRate_{k}"] for name in COHORTS], axis=-1) for k in ranked.ks}
    resampled[ALL] |= {f"Balance_{k}": balance(rates[k]) for k in ranked.ks}
    resampled[ALL] |= dict(_resampled_surprisals(ranked, resampling, generator))
    coverage = _coverage_intervals(ranked, cohorts, resampling.level)
    return {part: _percentiles(resampled[part], resampling.level) | coverage[part] for part in (ALL, *COHORTS)}


def _drawn(counts: NDArray[np.intp], resampling: Resampling, generator: np.random.Generator) -> Draws:
    """Return how often each cell [C] is drawn where as many users are drawn as there are, [R, C]."""
    users = int(counts.sum())
    return generator.multinomial(users, counts / users, size=resampling.resamples)


def _resampled_means(
    ranked: Ranked, cohorts: Cohorts, resampling: Resampling, generator: np.random.Generator
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the resampled means over all users and over those of each cohort, [R]; not a number without users."""
    tallies = tally(ranked, cohorts)
    places, ranks = np.nonzero(tallies)
    draws = _drawn(tallies[places, ranks], resampling, generator)
    worth = gains(tallies.shape[1] - 1, ranked.ks)
    found = {ALL: {name: draws @ gain[ranks] / len(ranked.targets) for name, gain in worth.items()}}
    for place, cohort in enumerate(COHORTS):
        part, of_part = draws[:, places == place], ranks[places == place]
        users = part.sum(axis=1)
        blank = np.full(len(users), np.nan)
        found[cohort] = {
            name: np.divide(part @ gain[of_part], users, out=blank.copy(), where=users > 0)
            for name, gain in cohort_gains(ranked)
        }
    return found


def _resampled_surprisals(
    ranked: Ranked, resampling: Resampling, generator: np.random.Generator
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the resampled mean Surprisal at each k, [R]."""
    for k, values in zip(ranked.ks, ranked.surprisals, strict=True):
        bins = np.minimum((values * SURPRISAL_BINS).astype(np.intp), SURPRISAL_BINS - 1)
        counts, sums = np.bincount(bins), np.bincount(bins, values)
        filled = np.flatnonzero(counts)
        draws = _drawn(counts[filled], resampling, generator)
        yield f"Surprisal_{k}", draws @ (sums[filled] / counts[filled]) / len(values)


def _percentiles(figures: Mapping[str, NDArray[np.float64]], level: float) -> dict[str, Interval]:
    """Return the middle `level` of each figure's resamples [R], those that do not define it left out."""
    found = {}
    for name, values in figures.items():
        defined = values[np.isfinite(values)]
        if len(defined) >= DEFINED_SHARE * len(values):
            low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
            found[name] = (float(low), float(high))
    return found


def _coverage_intervals(ranked: Ranked, cohorts: Cohorts, level: float) -> dict[str, dict[str, Interval]]:
    """Return Coverage and so many standard errors to both sides, within 0 and 1, over all items and of each cohort."""
    parts = {ALL: ranked.known, **{name: ranked.known & (cohorts.of_item == n) for n, name in enumerate(COHORTS)}}
    found: dict[str, dict[str, Interval]] = {name: {} for name in parts}
    reach = NormalDist().inv_cdf((1 + level) / 2)
    for place, owners in _sole_owners(ranked):
        for name, items in parts.items():
            if items.any():
                coverage = float(ranked.recommended[place, items].mean())
                error = reach * _jackknife_error(owners[items], len(ranked.targets)) / int(items.sum())
                found[name][f"Coverage_{ranked.ks[place]}"] = max(0.0, coverage - error), min(1.0, coverage + error)
    return found


def _sole_owners(ranked: Ranked) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Yield the place of each k, and for each item the one user who has it among the first k, [V + 1]; -1 for none."""
    counts = np.zeros(len(ranked.users_per_item), dtype=np.int32)
    owners = np.full(len(counts), -1, dtype=np.int32)
    users = np.arange(len(ranked.targets), dtype=np.int32)
    for rank, column in enumerate(ranked.top_items.T, start=1):
        items = np.ascontiguousarray(column)
        np.add.at(counts, items, np.int32(1))  # a number of another type would be added eight times as slowly
        owners[items] = users
        for place in ranked.places_ending_at(rank):
            yield place, np.where(counts == 1, owners, -1)


def _jackknife_error(owners: NDArray[np.int32], users: int) -> float:
    """Return the standard error of the number of items recommended, where item i has the sole owner owners[i].

    (H - 1) / H times the squared deviations of how many items each user, left out, takes away.
    """
    lost = np.bincount(owners[owners >= 0], minlength=users)
    return float(np.sqrt((users - 1) / users * ((lost - lost.mean()) ** 2).sum()))
