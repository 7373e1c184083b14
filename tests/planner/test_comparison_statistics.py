"""The statistics of a comparison against numbers that were computed otherwise: by hand, by scipy, in a publication."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from srsplan.planner.comparison.findings import Findings, find
from srsplan.planner.comparison.statistics import critical_difference, difference, holm, ranks


def test_a_paired_test_by_hand() -> None:
    """Differences -1, -2, -3, -2, -2: mean -2, sd sqrt(1/2), t = -2 / sqrt(0.1); with 4 degrees of freedom
    P(|T| > t) = 1 - x (1 + (1 - x^2) / 2), x = |t| / sqrt(t^2 + 4)."""
    best = np.array([10.0, 11, 12, 13, 14])
    found = difference(best + np.array([-1.0, -2, -3, -2, -2]), best)
    t = -2 / math.sqrt(0.1)
    x = -t / math.sqrt(t * t + 4)
    assert found.blocks == 5
    assert [found.mean, found.t] == pytest.approx([-2, t])
    assert found.p == pytest.approx(1 - x * (1 + (1 - x * x) / 2), rel=1e-9)
    half = 2.7764451052 * math.sqrt(0.1)  # the 97.5% point of t with 4 degrees of freedom, from a table
    assert [found.low, found.high] == pytest.approx([-2 - half, -2 + half])


def test_blocks_without_a_result_are_left_out() -> None:
    found = difference(np.array([1.0, math.nan, 3, 5]), np.array([2.0, 9, math.nan, 7]))
    assert (found.blocks, found.mean, found.t, found.p) == (2, -1.5, None, None)
    assert found.low == pytest.approx(-1.5 - 12.7062047364 * 0.5)  # t with 1 degree of freedom, sd sqrt(1/2)


def test_differences_without_spread_have_no_test() -> None:
    found = difference(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3]) + 0.1)
    assert (found.blocks, found.p, found.t) == (3, None, None)
    assert found.mean == pytest.approx(-0.1)


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04: steps may not fall, and one that was not tested counts for nothing."""
    assert holm([0.02, None, 0.01, 0.04, 0.03]) == [
        pytest.approx(0.06), None, pytest.approx(0.04), pytest.approx(0.06), pytest.approx(0.06),
    ]  # fmt: skip
    assert holm([None]) == [None]


def test_the_critical_difference_of_demsar() -> None:
    """Table 5a of Demsar 2006: q at 5% is 2.343, 2.569, 2.728 and 3.164 for 3, 4, 5 and 10 classifiers; the paper's
    example of 4 classifiers on 14 data sets has a critical difference of 1.25."""
    for count, q in ((3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)):
        assert critical_difference(count, 20) / math.sqrt(count * (count + 1) / 120) == pytest.approx(q, abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.97501, 0.975], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip
"""Table 6 of Demsar 2006: AUC of C4.5 with four settings on 14 data sets. Its ranks on `wine` (2 and 3) tell apart what
is printed as 0.975 twice."""


def test_the_example_of_demsar() -> None:
    """Mean ranks 3.143, 2.000, 2.893, 1.964. The paper's 9.28 has no correction for ties; scipy's statistic has."""
    found = ranks(DEMSAR)
    assert found is not None
    assert found.mean == pytest.approx([3.143, 2.0, 2.893, 1.964], abs=5e-4)
    uncorrected = 12 * 14 / (4 * 5) * ((found.mean**2).sum() - 4 * 25 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.005)
    assert found.chi2 == pytest.approx(stats.friedmanchisquare(*DEMSAR.T).statistic)
    apart = np.abs(found.mean[:, None] - found.mean)
    assert ((found.nemenyi < 0.05) == (apart >= found.critical_difference)).all()


def test_ranks_need_three_of_each() -> None:
    assert ranks(DEMSAR[:, :2]) is None
    assert ranks(DEMSAR[:2]) is None
    assert ranks(np.ones((5, 3))) is None
    holed = DEMSAR.copy()
    holed[3:, 0] = math.nan
    found = ranks(holed)
    assert found is not None
    assert found.blocks == 3


def table(values: NDArray[np.float64], names: str) -> pd.DataFrame:
    """Runs of configurations a, b, ...: one row of `values` is a seed."""
    runs: pd.DataFrame = pd.DataFrame([
        {"configuration": name, "data": "d", "block": f"d, seed {seed}", "seed": seed, "folder": "", "epochs": 1,
         "best_epoch": 1, "epoch_seconds": 2.0, "NDCG_10": value, "MRR_10": value / 2}
        for seed, row in enumerate(values) for name, value in zip(names, row, strict=True) if not math.isnan(value)
    ])  # fmt: skip
    return runs


def findings(values: NDArray[np.float64], names: str = "abc") -> Findings:
    blocks = [f"d, seed {seed}" for seed in range(len(values))]
    return find(table(values, names), list(names), blocks, "NDCG_10")


def test_findings_over_three_seeds() -> None:
    values = np.array([[0.1, 0.3, 0.2], [0.2, 0.5, 0.1], [0.3, 0.4, 0.4]])
    found = findings(values)
    assert (found.best, [row.name for row in found.rows]) == ("b", ["b", "c", "a"])
    best, second, third = found.rows
    assert best.difference is None
    assert best.metrics["NDCG_10"].mean == pytest.approx(0.4)
    assert best.metrics["NDCG_10"].sd == pytest.approx(0.1)
    assert best.metrics["MRR_10"].sd == pytest.approx(0.05)
    tested = [stats.ttest_rel(values[:, at], values[:, 1]).pvalue for at in (2, 0)]
    adjusted = [max(tested[0], min(1, 2 * tested[1])), min(1, 2 * tested[1])]
    assert [second.p_holm, third.p_holm] == pytest.approx(adjusted)
    assert found.ranks is not None
    assert found.ranks.p == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)
    assert best.mean_rank == pytest.approx((1 + 1 + 1.5) / 3)


def test_the_best_is_judged_on_blocks_that_all_have() -> None:
    """c was lucky to miss the hard block."""
    found = findings(np.array([[0.5, 0.4, 0.45], [0.6, 0.5, 0.55], [0.1, 0.1, math.nan]]))
    assert found.best == "a"
    assert "c has a result in 2 of 3 blocks." in found.notes


def test_what_two_seeds_cannot_say() -> None:
    found = findings(np.array([[0.1, 0.3, 0.2], [0.2, 0.5, 0.1]]))
    assert all(row.p_holm is None for row in found.rows)
    assert found.ranks is None
    assert "With 2 blocks no test is made: a test needs at least 3." in found.notes
    assert any("nothing about other users" in note for note in found.notes)


def test_nothing_and_a_single_one() -> None:
    nothing = find(
        table(np.zeros((0, 1)), "a").reindex(columns=[*table(np.ones((1, 1)), "a")]), ["a"], ["x"], "NDCG_10"
    )
    assert (nothing.best, nothing.ranks) == (None, None)
    alone = findings(np.array([[0.1], [0.2], [0.4]]), "a")
    assert alone.best == "a"
    assert "One configuration alone is compared with nothing." in alone.notes
