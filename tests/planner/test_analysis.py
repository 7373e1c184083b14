"""Spearman and forests against figures computed apart from them, and a JSON that always parses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paths import SHARED

from srsplan.planner.analysis.importance import FEATURES, METRICS, Analysis, AnalysisOptions, analyze
from srsplan.planner.analysis.run_tables import QUALITY, RunOptions, RunTable, load_runs

QUICK = AnalysisOptions(trees=40, shuffles=5)


@pytest.fixture(scope="module")
def public_table() -> RunTable:
    return load_runs(SHARED / "data" / "runs.csv")


@pytest.fixture(scope="module")
def public(public_table: RunTable) -> Analysis:
    return analyze(public_table, QUICK)


def made(tmp_path: Path, frame: pd.DataFrame) -> RunTable:
    frame.to_csv(tmp_path / "runs.csv", index=False)
    return load_runs(tmp_path / "runs.csv", RunOptions(keep_duplicates=True, keep_collapsed=True))


def runs_of(name: str, rows: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    knobs = {c: 2.0 ** random.integers(4, 10, rows) for c in ("batch_size", "max_seq_len", "loss_sample_count")}
    frame = pd.DataFrame({"dataset": name, **knobs})
    frame[QUALITY] = np.log2(frame["max_seq_len"]) + 0.1 * random.random(rows)
    return frame


def rho(left: pd.Series, right: pd.Series) -> float:
    """Spearman from its definition: Pearson's r of the ranks."""
    return float(np.corrcoef(left.rank(), right.rank())[0, 1])


def test_gowalla_batch_times_length_goes_with_ndcg_at_087(public: Analysis) -> None:
    assert public.datasets["gowalla"].spearman["ndcg_10"]["bs*sl"] == pytest.approx(0.874, abs=5e-4)


@pytest.mark.evidence
def test_spearman_is_pearson_of_ranks_over_sampled_runs(public: Analysis, public_table: RunTable) -> None:
    frame = public_table.frame
    sampled = frame[(frame["dataset"] == "zvuk") & np.isfinite(frame["loss_sample_count"])]
    product = sampled["batch_size"] * sampled["loss_sample_count"]
    for metric, column in METRICS.items():
        found = public.datasets["zvuk"].spearman[metric]
        assert found["bs*ns"] == pytest.approx(rho(product, sampled[column]))
        assert found["sl"] == pytest.approx(rho(sampled["max_seq_len"], sampled[column]))


@pytest.mark.evidence
def test_keep_full_ranks_every_run(public_table: RunTable) -> None:
    gowalla = public_table.frame[public_table.frame["dataset"] == "gowalla"]
    table = RunTable(path="gowalla", frame=gowalla, rows_read=len(gowalla), notes=())
    found = (
        analyze(table, AnalysisOptions(trees=40, shuffles=1, keep_full=True)).datasets["gowalla"].spearman["ndcg_10"]
    )
    assert found["bs*sl"] == pytest.approx(0.864, abs=5e-4)
    assert found["ns"] == pytest.approx(rho(gowalla["loss_sample_count"], gowalla[QUALITY]))


def test_average_comes_last_and_is_the_mean(public: Analysis) -> None:
    names = list(public.datasets)
    assert names == ["beauty", "gowalla", "megamarket", "movielens_20m", "zvuk", "average"]
    for feature in FEATURES:
        parts = [public.datasets[name].spearman["ndcg_10"][feature] for name in names[:-1]]
        assert public.datasets["average"].spearman["ndcg_10"][feature] == pytest.approx(np.mean(parts))


def test_in_sample_r2_flatters_and_the_other_two_agree(public: Analysis) -> None:
    for found in public.datasets.values():
        fit = found.forest["ndcg_10"]
        assert fit is not None
        assert fit.r2_in_sample > max(fit.r2_out_of_bag, fit.r2_cv)
        assert fit.r2_out_of_bag == pytest.approx(fit.r2_cv, abs=0.12)
        assert sum(fit.impurity.values()) == pytest.approx(1)
    movielens, megamarket = (public.datasets[name].forest["ndcg_10"] for name in ("movielens_20m", "megamarket"))
    assert movielens is not None
    assert megamarket is not None
    assert movielens.r2_out_of_bag < 0.5
    assert megamarket.r2_out_of_bag > 0.9


def test_permutation_finds_the_only_cause(tmp_path: Path) -> None:
    fit = analyze(made(tmp_path, runs_of("one", 120)), QUICK).datasets["one"].forest["ndcg_10"]
    assert fit is not None
    assert max(fit.permutation, key=lambda name: fit.permutation[name]) == "sl"
    # a column that carries all the signal, shuffled, predicts like another draw: R2 falls from 1 to about -1
    assert fit.permutation["sl"] > 1
    assert all(abs(fit.permutation[name]) < 0.02 for name in ("bs", "ns", "bs*ns"))


def test_permutation_of_noise_is_nothing_where_impurity_spreads(tmp_path: Path) -> None:
    frame = runs_of("noise", 150)
    frame[QUALITY] = np.random.default_rng(1).random(150)
    fit = analyze(made(tmp_path, frame), QUICK).datasets["noise"].forest["ndcg_10"]
    assert fit is not None
    assert fit.r2_in_sample > 0.5
    assert max(fit.r2_out_of_bag, fit.r2_cv) < 0.1
    assert min(fit.impurity.values()) > 0.02


def test_equal_seeds_give_equal_json_and_rows_in_any_order_equal_spearman(tmp_path: Path) -> None:
    frame = runs_of("one", 40)
    first, second = (analyze(made(tmp_path, frame), QUICK).to_json() for _ in range(2))
    assert first == second
    turned = analyze(made(tmp_path, frame.iloc[::-1]), QUICK).to_json()
    assert turned["datasets"]["one"]["spearman"] == first["datasets"]["one"]["spearman"]


def test_json_has_the_agreed_shape(public: Analysis) -> None:
    document = json.loads(json.dumps(public.to_json(), allow_nan=False))
    assert document["rows"] == 747
    assert document["rows_analysed"] == 713
    assert len(document["notes"]) == 3
    for found in document["datasets"].values():
        assert set(found["spearman"]) == set(found["forest"]) == set(METRICS)
        for metric in METRICS:
            assert tuple(found["spearman"][metric]) == FEATURES
            fit = found["forest"][metric]
            assert set(fit) == {"r2_in_sample", "r2_out_of_bag", "r2_cv", "impurity", "permutation"}
            assert tuple(fit["impurity"]) == tuple(fit["permutation"]) == FEATURES


def test_what_cannot_be_said_is_null(tmp_path: Path) -> None:
    constant = runs_of("constant", 30).assign(batch_size=64, **{QUALITY: 0.5})
    one_batch = runs_of("one_batch", 30).assign(batch_size=64)
    few = runs_of("few", 8)
    pair = runs_of("pair", 2)
    table = made(tmp_path, pd.concat([constant, one_batch, few, pair]))
    analysis = analyze(table, QUICK)
    found = json.loads(json.dumps(analysis.to_json(), allow_nan=False))["datasets"]
    assert set(found["constant"]["spearman"]["ndcg_10"].values()) == {None}
    assert found["constant"]["forest"]["ndcg_10"] is None
    assert found["one_batch"]["spearman"]["ndcg_10"]["bs"] is None
    assert found["one_batch"]["forest"]["ndcg_10"]["permutation"]["bs"] == 0
    assert found["few"]["spearman"]["ndcg_10"]["sl"] is not None
    assert found["few"]["forest"]["ndcg_10"] is None
    assert found["pair"]["spearman"]["ndcg_10"]["sl"] is None
    assert found["average"]["spearman"]["coverage_10"]["sl"] is None
    notes = " ".join(analysis.notes)
    assert "few has 8 runs: no forest" in notes
    assert "No column Coverage_10_test, Surprisal_10_test" in notes


def test_runs_without_a_metric_are_passed_over(tmp_path: Path) -> None:
    frame = runs_of("one", 60)
    gaps = frame.copy()
    gaps.loc[::3, "Coverage_10_test"] = gaps.loc[::3, "max_seq_len"]
    found = analyze(made(tmp_path, gaps), QUICK).datasets["one"]
    assert found.spearman["coverage_10"]["sl"] == pytest.approx(1)
    assert found.forest["coverage_10"] is not None


def test_a_dataset_of_full_softmax_runs_only_still_has_its_say(tmp_path: Path) -> None:
    found = analyze(made(tmp_path, runs_of("one", 30).assign(loss_sample_count=np.inf)), QUICK).datasets["one"]
    assert found.spearman["ndcg_10"]["ns"] is None
    assert found.spearman["ndcg_10"]["sl"] == pytest.approx(1, abs=0.05)


def test_progress_names_every_forest_before_it_is_fitted(tmp_path: Path) -> None:
    steps: list[tuple[str, int]] = []
    analyze(made(tmp_path, runs_of("one", 5)), QUICK, lambda what, total: steps.append((what, total)))
    assert steps == [(f"one, {metric}", 3) for metric in METRICS]
