"""Intervals against scipy's bootstrap, closed forms, and tests repeated with other users."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from srsplan.models.errors import InputError
from srsplan.models.training.cohorts import COHORTS, Cohorts, balance, cohorts_of
from srsplan.models.training.intervals import Resampling, intervals
from srsplan.models.training.metrics import RANKS, Ranked

ITEMS = 60
USERS_PER_ITEM = np.append(0, 600 // np.arange(1, ITEMS + 1))
Floats = NDArray[np.float64]


def some_ranking(users: int, seed: int = 0, ranks: int = 20) -> tuple[Ranked, Cohorts]:
    """Users of unlike taste: what each is recommended lies around an item of their own."""
    random = np.random.default_rng(seed)
    centre = random.geometric(0.06, users) % (ITEMS - ranks)
    top = random.permuted(centre[:, None] + np.arange(1, ranks + 1), axis=1)
    hit = random.random(users) < 0.5
    targets = np.where(
        hit, top[np.arange(users), random.geometric(0.2, users) % ranks], random.integers(1, ITEMS, users)
    )
    ranked = Ranked(top_items=top, targets=targets, users_per_item=USERS_PER_ITEM, user_count=700, ks=(1, 5, 10))
    return ranked, cohorts_of(USERS_PER_ITEM, 700)


def of_each_user(ranked: Ranked, metric: str, k: int) -> Floats:
    """The metric of every user, one by one, from its definition."""
    rows = zip(ranked.top_items[:, :k].tolist(), ranked.targets.tolist(), strict=True)
    places = np.array([row.index(target) + 1 if target in row else np.inf for row, target in rows])
    if metric == "Surprisal":
        return np.asarray((np.log2(700 / USERS_PER_ITEM[ranked.top_items[:, :k]]) / np.log2(700)).mean(axis=1))
    worth: dict[str, Floats] = {
        "NDCG": 1 / np.log2(places + 1),
        "HitRate": (places <= k).astype(np.float64),
        "MRR": 1 / places,
    }
    return worth[metric]


@pytest.mark.parametrize("metric", ["NDCG", "HitRate", "MRR", "Surprisal"])
@pytest.mark.parametrize("k", [1, 10])
def test_ends_are_those_of_scipy(metric: str, k: int) -> None:
    """Both draw at random: their ends agree within 7% of the width, four standard errors of their difference."""
    ranked, cohorts = some_ranking(400)
    found = intervals(ranked, cohorts, Resampling(resamples=4000))["all"][f"{metric}_{k}"]
    peer = stats.bootstrap(
        (of_each_user(ranked, metric, k),), np.mean, n_resamples=4000, method="percentile", batch=500, rng=1
    ).confidence_interval
    assert found == pytest.approx((peer.low, peer.high), abs=0.07 * (peer.high - peer.low))


@pytest.mark.parametrize("cohort", COHORTS)
def test_ends_of_a_cohort_are_those_of_scipy(cohort: str) -> None:
    """The users of all cohorts are resampled together, so that how many of them a cohort has changes as well."""
    ranked, cohorts = some_ranking(600)
    place = cohorts.of_item[ranked.targets]
    scores = of_each_user(ranked, "NDCG", 10)

    def mean(place: NDArray[np.int8], scores: Floats, axis: int) -> Floats:
        inside = place == COHORTS.index(cohort)
        return np.asarray((scores * inside).sum(axis=axis) / inside.sum(axis=axis))

    peer = stats.bootstrap(
        (place, scores), mean, paired=True, vectorized=True, n_resamples=3000, method="percentile", batch=500, rng=1
    ).confidence_interval
    found = intervals(ranked, cohorts, Resampling(resamples=3000))[cohort]["NDCG_10"]
    assert found == pytest.approx((peer.low, peer.high), abs=0.07 * (peer.high - peer.low))


def test_ends_of_balance_are_those_of_scipy() -> None:
    ranked, cohorts = some_ranking(600)
    place, hits = cohorts.of_item[ranked.targets], of_each_user(ranked, "HitRate", 10)

    def of_users(place: NDArray[np.int8], hits: Floats, axis: int) -> Floats:
        inside = [place == number for number in range(3)]
        return balance(np.stack([(hits * part).sum(axis=axis) / part.sum(axis=axis) for part in inside], axis=-1))

    peer = stats.bootstrap(
        (place, hits), of_users, paired=True, vectorized=True, n_resamples=3000, method="percentile", batch=500, rng=1
    ).confidence_interval
    found = intervals(ranked, cohorts, Resampling(resamples=3000))["all"]["Balance_10"]
    assert found == pytest.approx((peer.low, peer.high), abs=0.07 * (peer.high - peer.low))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_ends_of_a_hit_rate_are_those_of_the_normal_approximation(level: float) -> None:
    """A hit is there or not: the mean of 20,000 of them is normal."""
    ranked, cohorts = some_ranking(20_000)
    rate = float(of_each_user(ranked, "HitRate", 5).mean())
    reach = stats.norm.ppf((1 + level) / 2) * np.sqrt(rate * (1 - rate) / 20_000)
    found = intervals(ranked, cohorts, Resampling(resamples=4000, level=level))["all"]["HitRate_5"]
    assert found == pytest.approx((rate - reach, rate + reach), abs=0.1 * reach)


def test_the_jackknife_of_coverage_is_that_of_leaving_users_out() -> None:
    ranked, cohorts = some_ranking(25)
    found = intervals(ranked, cohorts, Resampling())
    for part, items in {"all": None, **{name: place for place, name in enumerate(COHORTS)}}.items():
        within = ranked.known if items is None else ranked.known & (cohorts.of_item == items)

        def covered(rows: NDArray[np.integer], within: NDArray[np.bool_] = within) -> float:
            return float(within[np.unique(rows)].sum() / within.sum())

        whole = covered(ranked.top_items[:, :5])
        without = np.array([covered(np.delete(ranked.top_items[:, :5], user, axis=0)) for user in range(25)])
        error = 1.959964 * np.sqrt(24 / 25 * ((without - without.mean()) ** 2).sum())
        wanted = (max(0, whole - error), min(1, whole + error))
        assert found[part]["Coverage_5"] == pytest.approx(wanted, abs=1e-6)


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    """Tests of 300 users each; the truth is that of 60,000. Of 60 repeats 95% are 57, and 50 four deviations fewer.

    Coverage depends on how many users there are: its truth is the mean over tests of 300.
    """
    many, _ = some_ranking(60_000, seed=99)
    small = [some_ranking(300, seed=seed) for seed in range(60)]
    found = [intervals(*each, Resampling(resamples=300))["all"] for each in small]
    for name, least in (("NDCG_10", 50), ("HitRate_1", 50), ("Surprisal_10", 50)):
        metric, k = name.split("_")
        truth = float(of_each_user(many, metric, int(k)).mean())
        assert sum(ends[name][0] <= truth <= ends[name][1] for ends in found) >= least
    coverages = np.array([each.metrics()["Coverage_1"] for each, _ in small])
    widths = np.array([ends["Coverage_1"][1] - ends["Coverage_1"][0] for ends in found]) / (2 * 1.96)
    assert 0.9 < widths.mean() / coverages.std() < 1.4


def test_the_seed_decides() -> None:
    ranked, cohorts = some_ranking(200)
    first, again, other = (intervals(ranked, cohorts, Resampling(seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first["all"]["NDCG_10"] != other["all"]["NDCG_10"]


def test_every_metric_of_the_test_has_ends_around_it() -> None:
    ranked, cohorts = some_ranking(500)
    found, metrics = intervals(ranked, cohorts, Resampling()), ranked.metrics()
    assert set(found["all"]) == {*metrics, "Balance_1", "Balance_5", "Balance_10"}
    for name, value in metrics.items():
        low, high = found["all"][name]
        assert low <= value <= high
    for cohort in COHORTS:
        assert set(found[cohort]) == {f"{name}_{k}" for name in ("NDCG", "HitRate", "Coverage") for k in (1, 5, 10)}


def test_what_few_resamples_define_has_no_ends() -> None:
    """One user of 400 has a target in head: 37% of the resamples leave that user out."""
    top = np.tile(np.arange(1, 11), (400, 1))
    targets = np.append(1, np.full(399, 50))
    ranked = Ranked(top_items=top, targets=targets, users_per_item=USERS_PER_ITEM, user_count=700, ks=(10,))
    found = intervals(ranked, cohorts_of(USERS_PER_ITEM, 700), Resampling())
    assert set(found["head"]) == set(found["mid"]) == {"Coverage_10"}
    assert "Balance_10" not in found["all"]
    assert found["tail"]["HitRate_10"] == (0, 0)


def test_memory_does_not_grow_with_users_times_resamples() -> None:
    """100,000 users and 1,000 resamples: an index for each would be 800 MB, the ranking itself is 16 MB."""
    ranked, cohorts = some_ranking(100_000)
    _ = ranked.ranks, ranked.surprisals, ranked.recommended
    tracemalloc.start()
    intervals(ranked, cohorts, Resampling())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_impossible_resampling_is_refused() -> None:
    with pytest.raises(InputError, match="level 1"):
        Resampling(level=1)
    with pytest.raises(InputError, match="resamples 0"):
        Resampling(resamples=0)


def test_the_usual_ranks_fit_a_short_ranking() -> None:
    """A catalog of fewer items than ranks: the missing ranks count as nothing."""
    ranked, cohorts = some_ranking(50)
    usual = Ranked(
        top_items=ranked.top_items, targets=ranked.targets, users_per_item=USERS_PER_ITEM, user_count=700, ks=RANKS
    )
    found = intervals(usual, cohorts, Resampling())["all"]
    assert found["HitRate_100"] == pytest.approx(found["HitRate_20"])
    assert found["Coverage_100"] == found["Coverage_20"]
