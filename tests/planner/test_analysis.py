"""Spearman and forests against figures computed apart from them, and a JSON that always parses."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paths import SHARED
from scipy.stats import spearmanr

from srsplan.planner.analysis.correlation import correlations
from srsplan.planner.analysis.features import FEATURES, METRICS
from srsplan.planner.analysis.forests import ForestOptions
from srsplan.planner.analysis.importance import Analysis, AnalysisOptions, DatasetAnalysis, analyze
from srsplan.planner.analysis.run_tables import QUALITY, RunOptions, RunTable, load_runs

QUICK = AnalysisOptions(forests=ForestOptions(trees=40, fold_trees=20, shuffles=5))


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
    frame: pd.DataFrame = pd.DataFrame({"dataset": name, **knobs})
    frame[QUALITY] = np.log2(frame["max_seq_len"]) + 0.1 * random.random(rows)
    return frame


def rho_of(found: DatasetAnalysis, metric: str, feature: str) -> float:
    one = found.spearman[metric][feature]
    assert one is not None
    return one.rho


def rho(left: pd.Series, right: pd.Series) -> float:
    """Spearman from its definition: Pearson's r of the ranks."""
    return float(np.corrcoef(left.rank(), right.rank())[0, 1])


def test_gowalla_batch_times_length_goes_with_ndcg_at_087(public: Analysis) -> None:
    assert rho_of(public.datasets["gowalla"], "ndcg_10", "bs*sl") == pytest.approx(0.874, abs=5e-4)


@pytest.mark.evidence
def test_spearman_is_pearson_of_ranks_over_sampled_runs(public: Analysis, public_table: RunTable) -> None:
    frame = public_table.frame
    sampled = frame[(frame["dataset"] == "zvuk") & np.isfinite(frame["loss_sample_count"])]
    product = sampled["batch_size"] * sampled["loss_sample_count"]
    for metric, column in METRICS.items():
        found = public.datasets["zvuk"]
        assert rho_of(found, metric, "bs*ns") == pytest.approx(rho(product, sampled[column]))
        assert rho_of(found, metric, "sl") == pytest.approx(rho(sampled["max_seq_len"], sampled[column]))


@pytest.mark.evidence
def test_keep_full_ranks_every_run(public_table: RunTable) -> None:
    gowalla = public_table.frame[public_table.frame["dataset"] == "gowalla"]
    table = RunTable(source="gowalla", frame=gowalla, rows_read=len(gowalla), notes=())
    found = analyze(table, AnalysisOptions(forests=QUICK.forests, keep_full=True)).datasets["gowalla"]
    assert rho_of(found, "ndcg_10", "bs*sl") == pytest.approx(0.864, abs=5e-4)
    assert rho_of(found, "ndcg_10", "ns") == pytest.approx(rho(gowalla["loss_sample_count"], gowalla[QUALITY]))


def test_average_comes_last_and_is_the_mean(public: Analysis) -> None:
    names = list(public.datasets)
    assert names == ["beauty", "gowalla", "megamarket", "movielens_20m", "zvuk", "average"]
    for feature in FEATURES:
        parts = [rho_of(public.datasets[name], "ndcg_10", feature) for name in names[:-1]]
        assert rho_of(public.datasets["average"], "ndcg_10", feature) == pytest.approx(np.mean(parts))


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
        assert set(found["spearman"]) == set(found["spearman_95"]) == set(found["forest"]) == set(METRICS)
        for metric in METRICS:
            assert tuple(found["spearman"][metric]) == FEATURES
            fit = found["forest"][metric]
            scores = {"runs", "r2_in_sample", "r2_out_of_bag", "r2_cv"}
            assert set(fit) == {*scores, "impurity", "permutation", "permutation_spread"}
            assert tuple(fit["permutation_spread"]) == FEATURES
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
    assert "few has 8 runs, pair has 2 runs: no forest below 20" in notes
    assert "No column Coverage_10_test, Surprisal_10_test" in notes


def test_runs_without_a_metric_are_passed_over(tmp_path: Path) -> None:
    frame = runs_of("one", 60)
    gaps = frame.copy()
    gaps.loc[::3, "Coverage_10_test"] = gaps.loc[::3, "max_seq_len"]
    found = analyze(made(tmp_path, gaps), QUICK).datasets["one"]
    assert rho_of(found, "coverage_10", "sl") == pytest.approx(1)
    assert found.forest["coverage_10"] is not None


def test_a_dataset_of_full_softmax_runs_only_still_has_its_say(tmp_path: Path) -> None:
    found = analyze(made(tmp_path, runs_of("one", 30).assign(loss_sample_count=np.inf)), QUICK).datasets["one"]
    assert found.spearman["ndcg_10"]["ns"] is None
    assert rho_of(found, "ndcg_10", "sl") == pytest.approx(1, abs=0.05)


def test_progress_names_every_forest_after_it_is_fitted(tmp_path: Path) -> None:
    steps: list[tuple[str, int]] = []
    table = made(tmp_path, pd.concat([runs_of("one", 30), runs_of("two", 30), runs_of("few", 5)]))
    analyze(table, QUICK, lambda what, total: steps.append((what, total)))
    assert steps == [("one, NDCG@10", 2), ("two, NDCG@10", 2)]


def test_forests_fitted_in_processes_are_the_same(tmp_path: Path) -> None:
    frames = [runs_of(f"d{number}", 22, seed=number) for number in range(6)]
    table = made(tmp_path, pd.concat(frames))
    alone = ForestOptions(trees=40, fold_trees=5, shuffles=2)
    several = replace(alone, jobs=2)
    one, two = (analyze(table, AnalysisOptions(forests=forests)).to_json() for forests in (alone, several))
    assert one == two


def test_permutation_is_that_of_scikit_learn(tmp_path: Path) -> None:
    """Many shuffles of each fold by scikit-learn's own function: equal within the noise of shuffles."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold, cross_val_predict

    table = made(tmp_path, runs_of("one", 60))
    options = ForestOptions(trees=40, fold_trees=10, shuffles=60)
    found = analyze(table, AnalysisOptions(forests=options)).datasets["one"].forest["ndcg_10"]
    assert found is not None
    frame = table.frame
    knobs = np.stack([frame["batch_size"], frame["max_seq_len"], frame["loss_sample_count"]], axis=1).astype(float)
    bs, sl, ns = knobs.T
    rows, truth = np.column_stack([knobs, bs * sl, bs * ns, sl * ns]), frame[QUALITY].to_numpy()
    folds, forest = KFold(5, shuffle=True, random_state=0), RandomForestRegressor(10, random_state=0)
    predicted = cross_val_predict(forest, rows, truth, cv=folds)
    total = ((truth - truth.mean()) ** 2).sum()
    assert found.r2_cv == pytest.approx(1 - ((predicted - truth) ** 2).sum() / total)
    lost = np.zeros(6)
    for train, test in folds.split(rows):
        fitted = forest.fit(rows[train], truth[train])
        each = permutation_importance(
            fitted, rows[test], truth[test], scoring="neg_mean_squared_error", n_repeats=30, random_state=1
        )
        lost += each.importances_mean * len(test) / total
    assert list(found.permutation.values()) == pytest.approx(lost.tolist(), abs=0.06)
    assert found.permutation_spread["sl"] > 5 * found.permutation_spread["ns"]


def test_intervals_hold_what_they_promise() -> None:
    """Of samples of 60 with a known rank correlation, 95% of the intervals hold it."""
    random = np.random.default_rng(0)
    pearson = 0.6
    truth = 6 / np.pi * np.arcsin(pearson / 2)  # Spearman's rho of two normal variables
    held = []
    for _ in range(400):
        left, noise = random.normal(size=(2, 60))
        right = pearson * left + np.sqrt(1 - pearson**2) * noise
        one = correlations(pd.DataFrame({"left": left}), pd.Series(right))["left"]
        assert one is not None
        assert one.interval is not None
        assert one.rho == pytest.approx(spearmanr(left, right).statistic)
        held.append(one.interval[0] <= truth <= one.interval[1])
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_intervals_at_the_edges() -> None:
    rising = pd.Series(np.arange(12.0))
    one = correlations(pd.DataFrame({"knob": rising}), rising)["knob"]
    assert one is not None
    assert (one.rho, one.interval, one.clear) == (1.0, (1.0, 1.0), True)
    few = correlations(pd.DataFrame({"knob": rising[:9]}), rising[:9])["knob"]
    assert few is not None
    assert (few.interval, few.clear) == (None, False)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, float]:
    """1,200 datasets of three runs, twelve that forests could be fitted to; how long they took in CPU seconds."""
    small = [runs_of(f"d{number:04}", 3, seed=number) for number in range(1200)]
    large = [runs_of(f"large{number}", 22 + number) for number in range(11)]
    table = made(tmp_path_factory.mktemp("many"), pd.concat([*small, *large, runs_of("vast", 1500)]))
    begun = time.process_time()
    found = analyze(table, AnalysisOptions(forests=ForestOptions(trees=40, fold_trees=5, shuffles=2)))
    return found, time.process_time() - begun


def test_many_datasets_are_analysed_within_limits(many: tuple[Analysis, float]) -> None:
    found, seconds = many
    assert seconds < 20
    assert len(found.datasets) == 1_000 + 1
    fitted = [name for name, each in found.datasets.items() if each.forest["ndcg_10"] is not None]
    assert sorted(fitted) == sorted([*(f"large{number}" for number in range(2, 11)), "vast", "average"])
    vast = found.datasets["vast"].forest["ndcg_10"]
    assert vast is not None
    assert vast.runs == 1_000
    notes = " ".join(found.notes)
    assert "Only the 1,000 datasets with the most runs of 1,212" in notes
    assert "Forests are fitted for the 10 datasets with the most runs only" in notes
    assert "Forests see 1,000 runs, drawn at random, of vast" in notes
    assert all(len(note) < 400 for note in found.notes)
