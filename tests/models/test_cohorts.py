"""Cohorts of popularity against the authors' own function, their published figures, and loops over users.

reference_metrics.json holds what other people's code measures of one small ranking (reference_metrics.py writes it).
published_ndcg.csv holds NDCG@10 on Amazon Beauty, one row a run, from data/all_results.csv of
https://github.com/apple/ml-negative-sampling; Table 3 of https://arxiv.org/abs/2410.17276 is made of these runs.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import SHARED

from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.data.reading import read_split
from srsplan.models.training.cohorts import COHORTS, Cohorts, balance, cohort_metrics, cohorts_of
from srsplan.models.training.metrics import Ranked

HERE = Path(__file__).parent
REFERENCE: dict[str, Any] = json.loads((HERE / "reference_metrics.json").read_text())
KS = tuple(REFERENCE["ks"])


def reference_ranked() -> Ranked:
    """The ranking of the file; short rows end in zeros."""
    width = max(map(len, REFERENCE["top"]))
    having = np.bincount([item for row in REFERENCE["train"] for item in row], minlength=REFERENCE["items"] + 1)
    return Ranked(
        top_items=np.array([row + [0] * (width - len(row)) for row in REFERENCE["top"]]),
        targets=np.array(REFERENCE["targets"]), users_per_item=having, user_count=len(REFERENCE["train"]), ks=KS,
    )  # fmt: skip


RANKED = reference_ranked()
OURS = cohorts_of(RANKED.users_per_item, RANKED.user_count)


def items_of(cohorts: Cohorts) -> dict[str, list[int]]:
    return {
        name: [i for i in range(1, len(cohorts.of_item)) if cohorts.of_item[i] == n] for n, name in enumerate(COHORTS)
    }


def test_the_cohorts_are_those_of_the_authors_function() -> None:
    assert items_of(OURS) == REFERENCE["cohorts"]
    assert OURS.items.tolist() == [len(REFERENCE["cohorts"][name]) for name in COHORTS]


def test_metrics_are_those_of_ranx() -> None:
    found = RANKED.metrics()
    assert {name: found[name] for name in REFERENCE["ranx"]} == pytest.approx(REFERENCE["ranx"], abs=1e-12)


def test_metrics_are_those_of_rectools() -> None:
    found = RANKED.metrics()
    wanted = {name: value for name, value in REFERENCE["rectools"].items() if "full_rows" not in name}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert {name.split("_")[0] for name in wanted} == {"NDCG", "HitRate", "MRR", "Coverage"}
    for k in KS:
        full = np.array([len(row) >= k for row in REFERENCE["top"]])
        bits = REFERENCE["rectools"][f"Surprisal_{k}_of_full_rows"]
        assert RANKED.metrics(full)[f"Surprisal_{k}"] == pytest.approx(bits, abs=1e-12)


def test_metrics_of_a_cohort_are_those_of_ranx_on_its_users() -> None:
    found = cohort_metrics(RANKED, OURS)
    for name, wanted in REFERENCE["ranx of cohorts"].items():
        same = {metric: value for metric, value in wanted.items() if not metric.startswith("MRR")}
        assert {metric: found.metrics[name][metric] for metric in same} == pytest.approx(same, abs=1e-12)
        assert found.users[name] == sum(target in REFERENCE["cohorts"][name] for target in REFERENCE["targets"])


def test_coverage_of_a_cohort_is_of_its_items_whoever_is_recommended_them() -> None:
    found = cohort_metrics(RANKED, OURS).metrics
    for name, items in REFERENCE["cohorts"].items():
        known = {item for item in items if RANKED.users_per_item[item]}
        for k in KS:
            shown = {item for row in REFERENCE["top"] for item in row[:k]}
            assert found[name][f"Coverage_{k}"] == pytest.approx(len(shown & known) / len(known))
    assert len({found[name]["Coverage_1"] for name in COHORTS}) == 3


def test_medians_of_users_are_in_percent_of_the_users_of_train() -> None:
    having = {item: sum(item in row for row in REFERENCE["train"]) for item in range(1, REFERENCE["items"] + 1)}
    wanted = [100 * median(having[i] for i in REFERENCE["cohorts"][name]) / len(REFERENCE["train"]) for name in COHORTS]
    assert OURS.median_users_percent() == pytest.approx(wanted)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_cohorts_by_their_definition(users: list[int]) -> None:
    """Whoever is before an item, and the item, have less than a third of all, less than two thirds, or more."""
    found = items_of(cohorts_of(np.array([0, *users]), 50))
    order = sorted(range(1, len(users) + 1), key=lambda item: (-users[item - 1], item))
    wanted, added_up = defaultdict(list), 0
    for item in order:
        added_up += users[item - 1]
        whole = sum(users)
        wanted["head" if 3 * added_up < whole else "mid" if 3 * added_up < 2 * whole else "tail"].append(item)
    assert found == {name: sorted(wanted[name]) for name in COHORTS}
    assert all(item in found["tail"] for item in order if not users[item - 1])


def test_counts_beyond_32_bits() -> None:
    cohorts = cohorts_of(np.array([0, *[2**30] * 6], dtype=np.int32), 2**30)
    assert items_of(cohorts) == {"head": [1], "mid": [2, 3], "tail": [4, 5, 6]}


def published() -> dict[str, list[list[float]]]:
    runs: dict[str, list[list[float]]] = defaultdict(list)
    with (HERE / "published_ndcg.csv").open() as file:
        for row in csv.DictReader(file):
            runs[row["method"]].append([float(row[f"{name}_ndcg"]) for name in COHORTS])
    return runs


@pytest.mark.parametrize(
    ("method", "percent"), [("adaptive with mixed", 50.62), ("adaptive", 79.09), ("random", 50.59)]
)
def test_balance_is_the_published_one(method: str, percent: float) -> None:
    """That of Table 3, which is the mean over runs, and of NDCG where equation 8 has hit rates.

    To 0.01 percent: two digits are printed, and the authors add 1e-7 to every value.
    """
    runs = np.array(published()[method])
    assert len(runs) == 10
    assert 100 * balance(runs).mean() == pytest.approx(percent, abs=0.01)


def test_balance_of_popularity_is_the_published_one() -> None:
    """Table 3: PopRec hits in head alone, and has 33.3 on all three datasets."""
    for head in (0.0526, 0.04, 0.0729):
        assert balance(np.array([head, 0, 0])) == pytest.approx(1 / 3)


def test_balance_by_pairs() -> None:
    """1 - Gini, where Gini is the mean absolute difference of all pairs over twice the mean."""
    for rates in np.random.default_rng(0).random((20, 3)):
        gini = fmean(abs(a - b) for a in rates for b in rates) / (2 * fmean(rates))
        assert balance(rates) == pytest.approx(1 - gini)
        assert balance(7 * rates[::-1]) == pytest.approx(1 - gini)
    assert balance(np.array([0.2, 0.2, 0.2])) == pytest.approx(1)
    assert np.isnan(balance(np.array([0.0, 0.0, 0.0])))
    assert np.isnan(balance(np.array([0.1, np.nan, 0.2])))


def measured(targets: list[int], top: list[list[int]], users: list[int]) -> Any:
    having = np.array([0, *users])
    ranked = Ranked(top_items=np.array(top), targets=np.array(targets), users_per_item=having, user_count=9, ks=(1, 2))
    return cohort_metrics(ranked, cohorts_of(having, 9))


def test_by_hand() -> None:
    """Six items: head 1, mid 2, tail 3 to 6, of which nobody has 6; five users, one with a cold target."""
    found = measured([1, 2, 2, 4, 6], [[1, 2], [2, 1], [1, 2], [1, 3], [1, 6]], [4, 4, 3, 2, 2, 0])
    assert found.users == {"head": 1, "mid": 2, "tail": 2}
    assert found.metrics["head"] == {
        "NDCG_1": 1,
        "HitRate_1": 1,
        "NDCG_2": 1,
        "HitRate_2": 1,
        "Coverage_1": 1,
        "Coverage_2": 1,
    }
    assert found.metrics["mid"]["HitRate_1"] == 0.5
    assert found.metrics["mid"]["NDCG_2"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert (found.metrics["tail"]["HitRate_1"], found.metrics["tail"]["HitRate_2"]) == (0, 0.5)
    assert found.metrics["tail"]["Coverage_2"] == pytest.approx(1 / 3)
    assert found.balance == pytest.approx(
        {"Balance_1": 1 - (2 * 1 - 2 * 0) / 4.5, "Balance_2": 1 - (2 * 1 - 2 * 0.5) / 7.5}
    )


def test_what_is_not_defined_is_left_out() -> None:
    """Nobody has a target in mid, and nothing is hit; an item with a third of all users leaves head empty."""
    found = measured([1, 4], [[2, 3], [2, 3]], [4, 4, 3, 2, 2, 0])
    assert set(found.metrics["mid"]) == {"Coverage_1", "Coverage_2"}
    assert found.balance == {}
    found = measured([1, 2, 3], [[1, 2], [1, 2], [1, 2]], [8, 1, 1])
    assert found.users == {"head": 0, "mid": 0, "tail": 3}
    assert found.metrics["head"] == {}
    assert cohorts_of(np.array([0, 8, 1, 1]), 9).median_users_percent()[:2] == [0, 0]


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("name", "strategy", "shares", "medians"),
    [
        ("ml-100k.inter", "global-time", [6.8, 14.2, 79.0], [27.8, 14.0, 1.6]),
        ("video.txt", "leave-one-out", [3.4, 13.3, 83.4], [0.238, 0.068, 0.0098]),
    ],
)
def test_items_and_users_of_public_data(name: str, strategy: Any, shares: list[float], medians: list[float]) -> None:
    """The figures of docs/evaluation.md."""
    options = DataOptions(path=SHARED / "data" / name, strategy=strategy)
    split = read_split(options, minimums=Minimums(), seed=42).split
    cohorts = cohorts_of(split.users_per_item, len(split.train))
    assert 100 * cohorts.items / split.catalog == pytest.approx(shares, abs=0.05)
    assert cohorts.median_users_percent() == pytest.approx(medians, rel=0.02)
