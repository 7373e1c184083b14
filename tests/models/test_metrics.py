"""Metrics against slow ones, written per row from the definitions, and on cases worked out by hand.

Users in train are never as many as users evaluated, and items that nobody has in train are among the recommended.
"""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
from numpy.typing import NDArray

from srsplan.models.errors import InputError
from srsplan.models.training.metrics import RANKS, Ranked

Rows = list[list[int]]
Items = NDArray[np.integer]


def ranking_metrics(
    top: Items, targets: Items, per_item: Items, total: int, ks: tuple[int, ...] = RANKS
) -> dict[str, float]:
    return Ranked(top_items=top, targets=targets, users_per_item=per_item, user_count=total, ks=ks).metrics()


def slow(top: Rows, targets: list[int], users: list[int], total: int, k: int) -> dict[str, float]:
    def rank(row: list[int], target: int) -> float:
        return row[:k].index(target) + 1 if target in row[:k] else math.inf

    def surprise(item: int) -> float:
        if item == 0:
            return 0.0
        return -math.log(users[item] / total, 2) / math.log(total, 2) if users[item] else 1.0

    ranks = [rank(row, target) for row, target in zip(top, targets, strict=True)]
    recommended = {item for row in top for item in row[:k] if users[item]}
    return {
        f"NDCG_{k}": fmean(1 / math.log2(r + 1) for r in ranks),
        f"HitRate_{k}": fmean(float(r <= k) for r in ranks),
        f"MRR_{k}": fmean(1 / r for r in ranks),
        f"Coverage_{k}": len(recommended) / sum(count > 0 for count in users[1:]),
        f"Surprisal_{k}": fmean(sum(map(surprise, row[:k])) / k for row in top),
    }


@pytest.mark.parametrize(
    ("users", "items", "best", "total"), [(50, 40, 20, 61), (1, 7, 7, 70), (300, 150, 100, 97), (20, 12, 12, 60)]
)
def test_equal_to_the_slow_ones(users: int, items: int, best: int, total: int) -> None:
    random = np.random.default_rng(users)
    top = np.array([random.permutation(items)[:best] + 1 for _ in range(users)])
    top[random.random(users) < 0.2, best // 2 :] = 0
    targets = random.integers(1, items + 1, users)
    per_item = np.append(0, random.integers(0, total + 1, items))
    per_item[1:][random.random(items) < 0.3] = 0
    found = ranking_metrics(top, targets, per_item, total)
    expected: dict[str, float] = {}
    for k in RANKS:
        expected |= slow(top.tolist(), targets.tolist(), per_item.tolist(), total, k)
    assert found == pytest.approx(expected, abs=1e-12)


def test_without_further_ado_the_ranks_are_the_usual_ones() -> None:
    """Those of published tables: every file that srsplan writes has these names."""
    found = ranking_metrics(np.array([[1, 2]]), np.array([2]), np.array([0, 1, 1]), 3)
    names = ("NDCG", "HitRate", "MRR", "Coverage", "Surprisal")
    assert set(found) == {f"{name}_{k}" for name in names for k in (1, 5, 10, 20, 100)}


def test_by_hand() -> None:
    top = np.array([[1, 2, 3], [3, 1, 2]])
    found = ranking_metrics(top, np.array([2, 4]), np.array([0, 16, 4, 1, 0]), 16, ks=(1, 2))
    assert found == pytest.approx(
        {
            "NDCG_1": 0.0,
            "HitRate_1": 0.0,
            "MRR_1": 0.0,
            "Coverage_1": 2 / 3,
            "Surprisal_1": (0 + 1) / 2,
            "NDCG_2": 1 / math.log2(3) / 2,
            "HitRate_2": 0.5,
            "MRR_2": 0.25,
            "Coverage_2": 1.0,
            "Surprisal_2": ((0 + 0.5) / 2 + (1 + 0) / 2) / 2,
        }
    )


def test_coverage_counts_only_items_that_somebody_has() -> None:
    """Of the two items with a user one is recommended; the other three recommended ones nobody has."""
    top = np.array([[3, 4], [5, 1]])
    found = ranking_metrics(top, np.array([1, 1]), np.array([0, 2, 1, 0, 0, 0]), 9, ks=(1, 2))
    assert (found["Coverage_1"], found["Coverage_2"]) == (0.0, 0.5)


def test_a_target_beside_nothing_is_no_hit() -> None:
    """A row of fewer items than ranks ends in zeros, and no target is 0."""
    found = ranking_metrics(np.array([[2, 0, 0], [0, 0, 0]]), np.array([3, 1]), np.array([0, 1, 1, 1]), 4, ks=(3,))
    assert (found["HitRate_3"], found["NDCG_3"], found["MRR_3"]) == (0, 0, 0)
    assert found["Coverage_3"] == pytest.approx(1 / 3)
    assert found["Surprisal_3"] == pytest.approx(1 / 6)


def test_fewer_ranks_than_k_hit_nothing_further() -> None:
    found = ranking_metrics(np.array([[2, 1]]), np.array([1]), np.array([0, 1, 1, 1]), 4, ks=(2, 10))
    assert found["NDCG_10"] == found["NDCG_2"] == pytest.approx(1 / math.log2(3))
    assert found["Coverage_10"] == pytest.approx(2 / 3)
    assert found["Surprisal_10"] == pytest.approx(0.2)


def test_empty_recommendations_and_a_single_user_stay_finite() -> None:
    found = ranking_metrics(np.zeros((3, 5), dtype=int), np.array([1, 2, 2]), np.array([0, 1, 0]), 1)
    assert set(found.values()) == {0.0}
    found = ranking_metrics(np.array([[1, 2]]), np.array([1]), np.array([0, 1, 0]), 1, ks=(1, 2))
    assert (found["NDCG_1"], found["Surprisal_1"], found["Surprisal_2"]) == (1.0, 0.0, 0.5)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(InputError, match="no users"):
        ranking_metrics(np.zeros((0, 5), dtype=int), np.array([], dtype=int), np.array([0, 1]), 3)
    with pytest.raises(InputError, match="k 0"):
        ranking_metrics(np.array([[1]]), np.array([1]), np.array([0, 1]), 3, ks=(0,))
