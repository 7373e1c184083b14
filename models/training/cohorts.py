"""Metrics by how popular a user's target is: cohorts of items, hit rates in each of them, and their balance.

From "Evaluating Performance and Bias of Negative Sampling in Large-Scale Sequential Recommendation Models" by Prakash
et al., https://arxiv.org/abs/2410.17276, sections 4.3 and 5. The paper gives no rule for its cohorts; the rule here is
that of the authors' code (https://github.com/apple/ml-negative-sampling, `obtain_cohorts` in util.py).

Letters: H users evaluated, V items, N ranks that metrics are wanted at. Items are 1 to V; 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from srsplan.models.training.metrics import Ranked, gains

COHORTS = ("head", "mid", "tail")
COHORT_METRICS = ("NDCG", "HitRate")
"""Means over users that are given for each cohort; Coverage is given beside them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohorts:
    """Which cohort each item belongs to.

    Items are put in order of their distinct users in train, of equal ones the lower number first. Head is every item up
    to which the users, added up, stay below a third of the sum over all items, mid every further one up to which they
    stay below two thirds, tail the rest, with all items that nobody has in train. Head can be empty where one item
    alone has a third.
    """

    of_item: NDArray[np.int8]
    """Place in COHORTS of each item, [V + 1]; that of item 0 means nothing."""
    users_per_item: NDArray[np.integer]
    """Distinct users in train of each item, [V + 1]."""
    user_count: int
    """Users in train."""

    @cached_property
    def items(self) -> NDArray[np.intp]:
        """Return how many items each cohort has, [3]."""
        return np.bincount(self.of_item[1:], minlength=len(COHORTS))

    def median_users_percent(self) -> list[float]:
        """Return the median over a cohort's items of the share of train's users who have the item, in percent.

        The paper's MPU, Table 2; 0 for a cohort without items. Its authors divide by all users of the file.
        """
        users = [self.users_per_item[1:][self.of_item[1:] == place] for place in range(len(COHORTS))]
        return [100 * float(np.median(part)) / self.user_count if len(part) else 0.0 for part in users]


def cohorts_of(users_per_item: NDArray[np.integer], user_count: int) -> Cohorts:
    """Return the cohorts of items with so many distinct users in train, [V + 1]; user_count: users in train."""
    order = np.argsort(-users_per_item[1:].astype(np.int64), kind="stable")
    added_up = 3 * np.cumsum(users_per_item[1:][order], dtype=np.int64)
    whole = int(users_per_item[1:].sum())
    of_item = np.full(len(users_per_item), len(COHORTS) - 1, dtype=np.int8)
    of_item[1 + order] = (added_up >= whole).astype(np.int8) + (added_up >= 2 * whole)
    return Cohorts(of_item=of_item, users_per_item=users_per_item, user_count=user_count)


@dataclass(frozen=True, kw_only=True)
class CohortMetrics:
    """Metrics of one ranking by cohort: a user belongs to the cohort of the target."""

    users: dict[str, int]
    """Users of each cohort."""
    metrics: dict[str, dict[str, float]]
    """NDCG_k and HitRate_k of each cohort with a user, Coverage_k of each with an item that somebody has in train."""
    balance: dict[str, float]
    """Balance_k, 0 to 1, of the hit rates of the three cohorts; without the ranks where it is not defined."""


def cohort_metrics(ranked: Ranked, cohorts: Cohorts) -> CohortMetrics:
    """Measure a ranking by cohort. Memory: booleans [N, V + 1] beside what `ranked` holds."""
    tallies = tally(ranked, cohorts)
    found: dict[str, dict[str, float]] = {name: {} for name in COHORTS}
    for metric, gain in cohort_gains(ranked):
        for name, ranks in zip(COHORTS, tallies, strict=True):
            if ranks.any():
                found[name][metric] = float(ranks @ gain / ranks.sum())
    for place, name in enumerate(COHORTS):
        found[name] |= _coverage(ranked, ranked.known & (cohorts.of_item == place))
    rates = {k: np.array([found[name].get(f"HitRate_{k}", np.nan) for name in COHORTS]) for k in ranked.ks}
    balances = {f"Balance_{k}": float(balance(rates[k])) for k in ranked.ks}
    return CohortMetrics(
        users=dict(zip(COHORTS, tallies.sum(axis=1).tolist(), strict=True)),
        metrics=found,
        balance={name: value for name, value in balances.items() if np.isfinite(value)},
    )


def balance(hit_rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 - Gini of the hit rates [..., 3]: 1 where they are equal, 1/3 where one cohort has all hits.

    Equation 8 of the paper; its Table 3 has NDCG in the place of hit rates, and the mean over 10 to 20 runs. Gini is
    half the mean absolute difference of all pairs, an item and itself included, over the mean. Not a number where a
    hit rate is not, or where nothing is hit.
    """
    count, total = hit_rates.shape[-1], hit_rates.sum(axis=-1)
    weights = 2 * np.arange(1, count + 1) - count - 1
    spread = (np.sort(hit_rates, axis=-1) * weights).sum(axis=-1)
    gini: NDArray[np.float64] = np.divide(spread, count * total, out=np.full_like(total, np.nan), where=total > 0)
    return 1 - gini


def tally(ranked: Ranked, cohorts: Cohorts) -> NDArray[np.intp]:
    """Return how many users of each cohort have their target at each rank, [3, K + 1]; rank 0 stands for a miss.

    NDCG, HitRate and MRR of a user depend on nothing but the rank, so this holds all that their means are made of.
    """
    width = ranked.top_items.shape[1] + 1
    cells = cohorts.of_item[ranked.targets].astype(np.intp) * width + ranked.ranks
    return np.bincount(cells, minlength=len(COHORTS) * width).reshape(len(COHORTS), width)


def cohort_gains(ranked: Ranked) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the metrics that a cohort has, NDCG_k and HitRate_k, with what a target at each rank is worth, [K + 1]."""
    for name, gain in gains(ranked.top_items.shape[1], ranked.ks).items():
        if name.split("_")[0] in COHORT_METRICS:
            yield name, gain


def _coverage(ranked: Ranked, items: NDArray[np.bool_]) -> dict[str, float]:
    """Return the share of the `items` [V + 1] that is among the first k of somebody; nothing where there is no item."""
    if not items.any():
        return {}
    shares = ranked.recommended[:, items].mean(axis=1)
    return {f"Coverage_{k}": float(share) for k, share in zip(ranked.ks, shares, strict=True)}
