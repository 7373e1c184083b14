"""What moves quality in a run table: rank correlation and random forests, dataset by dataset.

Spearman is taken over runs with sampled negatives: a full softmax has no number of negatives to correlate.
Forests see every run, the full softmax as twice the largest ns, which a tree can split off. A forest's fit to its
own training rows says nothing about the next run, so it stands next to two figures that do: out of bag, and 5-fold
cross-validation. Permutation importance is the R2 lost on held-out folds when one column is shuffled; impurity
importance is a by-product of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srsplan.planner.analysis.run_tables import RunTable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

METRICS = {"ndcg_10": "NDCG_10_test", "coverage_10": "Coverage_10_test", "surprisal_10": "Surprisal_10_test"}
FEATURES = ("bs", "sl", "ns", "bs*sl", "bs*ns", "sl*ns")
METRIC_LABELS = {"ndcg_10": "NDCG@10", "coverage_10": "Coverage@10", "surprisal_10": "Surprisal@10"}
FEATURE_LABELS = {name: name.replace("*", "×") for name in FEATURES}
AVERAGE = "average"
MIN_SPEARMAN_ROWS = 3
MIN_FOREST_ROWS = 20

Spearman = dict[str, dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What `analyze` computes and with which seed."""

    seed: int = 0
    """Seeds the trees, the folds and the shuffles; equal seeds give equal figures."""
    trees: int = 200
    """Trees of each forest."""
    folds: int = 5
    """Folds of the cross-validation."""
    shuffles: int = 10
    """Shuffles of each column for the permutation importance."""
    keep_full: bool = False
    """Also rank full-softmax runs in Spearman, above every finite number of negatives."""


@dataclass(frozen=True, kw_only=True)
class ForestFit:
    """One forest: R2 of three kinds, and importance by feature (R2 lost; share of impurity)."""

    r2_in_sample: float
    r2_out_of_bag: float
    r2_cv: float
    impurity: dict[str, float]
    permutation: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class DatasetAnalysis:
    """Findings on one dataset; None where the rows do not allow a figure."""

    rows: int
    spearman: Spearman
    forest: dict[str, ForestFit | None]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Findings by dataset, their plain mean last under `average`; `rows` is what the file held."""

    datasets: dict[str, DatasetAnalysis]
    rows: int
    rows_analysed: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, rounded to 6 decimals; a figure that does not exist is null."""
        return {
            "rows": self.rows,
            "rows_analysed": self.rows_analysed,
            "notes": list(self.notes),
            "datasets": {name: _dataset_json(found) for name, found in self.datasets.items()},
        }


def analyze(
    table: RunTable,
    options: AnalysisOptions | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> Analysis:
    """Correlate and fit, dataset by dataset; `on_step(what, steps)` is called before each forest."""
    options = options or AnalysisOptions()
    features = _features(table)
    steps = len(table.datasets) * len(METRICS)
    datasets, notes = {}, [*table.notes, *_missing_metrics(table), *_full_note(table, options)]
    for name in table.datasets:
        rows = table.frame["dataset"] == name
        frame, inputs = table.frame[rows], features[rows]
        forests: dict[str, ForestFit | None] = {}
        for metric, column in METRICS.items():
            if on_step is not None:
                on_step(f"{name}, {metric}", steps)
            forests[metric] = _forest(inputs, frame, column, options)
        if len(frame) < MIN_FOREST_ROWS:
            notes.append(f"{name} has {len(frame)} runs: no forest below {MIN_FOREST_ROWS}.")
        spearman = _spearman(inputs, frame, options)
        datasets[name] = DatasetAnalysis(rows=len(frame), spearman=spearman, forest=forests)
    datasets[AVERAGE] = _average(list(datasets.values()))
    rows_analysed = len(table.frame)
    return Analysis(datasets=datasets, rows=table.rows_read, rows_analysed=rows_analysed, notes=tuple(notes))


def _features(table: RunTable) -> pd.DataFrame:
    """The six features and the flag `full`, one row per run."""
    knobs = table.knobs()
    for product in FEATURES[3:]:
        left, right = product.split("*")
        knobs[product] = knobs[left] * knobs[right]
    return knobs


def _missing_metrics(table: RunTable) -> list[str]:
    missing = [column for column in METRICS.values() if column not in table.frame.columns]
    return [f"No column {', '.join(missing)}: nothing is said about it."] if missing else []


def _full_note(table: RunTable, options: AnalysisOptions) -> list[str]:
    full = int(table.knobs()["full"].sum())
    if not full:
        return []
    runs = f"{full} full-softmax run{'s' if full > 1 else ''}"
    encoded = f"a full softmax counts as ns = {2 * table.largest_negatives():.0f}, twice the largest finite"
    if options.keep_full:
        return [f"{runs} rank above every sampled one in the Spearman tables (--keep-full); {encoded}."]
    left_out = f"{runs} left out of the Spearman tables, having no number of negatives (--keep-full ranks them)"
    return [f"{left_out}; in the forests {encoded}, which a tree can split off."]


def _spearman(inputs: pd.DataFrame, frame: pd.DataFrame, options: AnalysisOptions) -> Spearman:
    sampled = inputs["full"] == 0
    # a dataset that knows the full softmax only is correlated over those runs: ns is constant there
    if options.keep_full or sampled.sum() < MIN_SPEARMAN_ROWS:
        sampled |= True
    inputs, frame = inputs[sampled], frame[sampled]
    return {
        metric: {feature: _rank_correlation(inputs[feature], frame.get(column)) for feature in FEATURES}
        for metric, column in METRICS.items()
    }


def _rank_correlation(feature: pd.Series, metric: pd.Series | None) -> float | None:
    """Spearman's rho, or None where a column is missing, constant or too short."""
    from scipy.stats import spearmanr

    if metric is None:
        return None
    known = metric.notna()
    feature, metric = feature[known], metric[known]
    if len(metric) < MIN_SPEARMAN_ROWS or feature.nunique() < 2 or metric.nunique() < 2:
        return None
    return float(spearmanr(feature, metric).statistic)


def _forest(inputs: pd.DataFrame, frame: pd.DataFrame, column: str, options: AnalysisOptions) -> ForestFit | None:
    """A forest on the rows that have the metric; None where they are too few or all equal."""
    if column not in frame.columns:
        return None
    known = frame[column].notna()
    target = frame.loc[known, column].to_numpy(dtype=float)
    if len(target) < MIN_FOREST_ROWS or target.min() == target.max():
        return None
    rows = inputs.loc[known, list(FEATURES)].to_numpy(dtype=float)
    forest = _new_forest(options, oob_score=True).fit(rows, target)
    r2_cv, permutation = _held_out(rows, target, options)
    return ForestFit(
        r2_in_sample=float(forest.score(rows, target)),
        r2_out_of_bag=float(forest.oob_score_),
        r2_cv=r2_cv,
        impurity=dict(zip(FEATURES, map(float, forest.feature_importances_), strict=True)),
        permutation=dict(zip(FEATURES, map(float, permutation), strict=True)),
    )


def _new_forest(options: AnalysisOptions, **more: Any) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    # one thread: at hundreds of rows threads cost more than they bring, and sums keep their order
    return RandomForestRegressor(options.trees, random_state=options.seed, n_jobs=1, **more)


def _held_out(
    rows: NDArray[np.float64], target: NDArray[np.float64], options: AnalysisOptions
) -> tuple[float, NDArray[np.float64]]:
    """R2 over all held-out predictions together, and what of it each shuffled column costs.

    The shuffles of a fold are predicted in one call: scikit-learn's permutation_importance calls the forest once
    per shuffle, which on folds of 30 rows is ten times slower.
    """
    import numpy as np
    from sklearn.model_selection import KFold

    random = np.random.default_rng(options.seed)
    plain, shuffled = 0.0, np.zeros(rows.shape[1])
    for train, test in KFold(options.folds, shuffle=True, random_state=options.seed).split(rows):
        forest = _new_forest(options).fit(rows[train], target[train])
        truth = target[test]
        plain += float(((forest.predict(rows[test]) - truth) ** 2).sum())
        # [column, shuffle, row, column]: one copy of the fold for each column and shuffle
        copies = np.tile(rows[test], (rows.shape[1], options.shuffles, 1, 1))
        for column in range(rows.shape[1]):
            copies[column, ..., column] = random.permuted(copies[column, ..., column], axis=1)
        predicted = forest.predict(copies.reshape(-1, rows.shape[1])).reshape(copies.shape[:3])
        shuffled += ((predicted - truth) ** 2).sum(axis=2).mean(axis=1)
    spread = float(((target - target.mean()) ** 2).sum())
    return 1 - plain / spread, (shuffled - plain) / spread


def _average(found: list[DatasetAnalysis]) -> DatasetAnalysis:
    """The mean over the datasets that have a figure."""
    spearman: Spearman = {
        metric: {feature: _mean(one.spearman[metric][feature] for one in found) for feature in FEATURES}
        for metric in METRICS
    }
    forest = {metric: _average_forest([one.forest[metric] for one in found]) for metric in METRICS}
    return DatasetAnalysis(rows=sum(one.rows for one in found), spearman=spearman, forest=forest)


def _average_forest(fits: list[ForestFit | None]) -> ForestFit | None:
    present = [fit for fit in fits if fit is not None]
    if not present:
        return None
    return ForestFit(
        r2_in_sample=sum(fit.r2_in_sample for fit in present) / len(present),
        r2_out_of_bag=sum(fit.r2_out_of_bag for fit in present) / len(present),
        r2_cv=sum(fit.r2_cv for fit in present) / len(present),
        impurity=_mean_by_feature([fit.impurity for fit in present]),
        permutation=_mean_by_feature([fit.permutation for fit in present]),
    )


def _mean_by_feature(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in FEATURES}


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _dataset_json(found: DatasetAnalysis) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "spearman": {metric: _rounded(by_feature) for metric, by_feature in found.spearman.items()},
        "forest": {metric: _forest_json(fit) for metric, fit in found.forest.items()},
    }


def _forest_json(fit: ForestFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    scores = {"r2_in_sample": fit.r2_in_sample, "r2_out_of_bag": fit.r2_out_of_bag, "r2_cv": fit.r2_cv}
    return {**_rounded(scores), "impurity": _rounded(fit.impurity), "permutation": _rounded(fit.permutation)}


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Rounded figures; null for what is missing or not finite, which JSON cannot hold."""
    return {
        name: round(value, 6) if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
