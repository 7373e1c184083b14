"""Analysis of what moves quality in a run table, dataset by dataset: rank correlations, forests, and their average."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from srsplan.planner.analysis.correlation import MIN_ROWS as MIN_SPEARMAN_ROWS
from srsplan.planner.analysis.correlation import Correlation, correlations, mean_correlation
from srsplan.planner.analysis.features import AVERAGE, FEATURES, METRIC_LABELS, METRICS, features_of
from srsplan.planner.analysis.forests import MIN_ROWS as MIN_FOREST_ROWS
from srsplan.planner.analysis.forests import MOST_ROWS as MOST_FOREST_ROWS
from srsplan.planner.analysis.forests import ForestFit, ForestOptions, Samples, fit_all, mean_fit, samples_of
from srsplan.planner.analysis.run_tables import RunTable, listed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MOST_DATASETS = 1_000
"""Datasets that are analysed, those with the most runs."""

MOST_FORESTS = 10
"""Datasets that get forests, those with the most runs: each takes about a second."""

Spearman = dict[str, dict[str, Correlation | None]]
"""Metric -> feature -> correlation."""


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Options of an analysis."""

    forests: ForestOptions = field(default_factory=ForestOptions)
    keep_full: bool = False
    """Also rank full-softmax runs in Spearman, above every finite number of negatives."""


@dataclass(frozen=True, kw_only=True)
class DatasetAnalysis:
    """Findings on one dataset; None where the rows do not allow a figure."""

    rows: int
    spearman: Spearman
    forest: dict[str, ForestFit | None]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Findings by dataset in order of the alphabet, their plain mean last under `average`."""

    datasets: dict[str, DatasetAnalysis]
    rows: int
    """Runs that the files held."""
    rows_analysed: int
    full_left_out: int
    """Full-softmax runs that the correlations leave out."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, rounded to 6 decimals; a figure that does not exist is null."""
        return {
            "rows": self.rows,
            "rows_analysed": self.rows_analysed,
            "full_softmax_left_out": self.full_left_out,
            "notes": list(self.notes),
            "datasets": {name: _dataset_json(found) for name, found in self.datasets.items()},
        }


def analyze(
    table: RunTable,
    options: AnalysisOptions | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> Analysis:
    """Correlate and fit, dataset by dataset; `on_step(what, steps)` is called after each forest.

    At most 1,000 datasets are analysed and ten get forests, those with the most runs; a note says where that matters.
    """
    options = options or AnalysisOptions()
    features = features_of(table)
    rows = _largest(table)
    spearman = {name: _spearman(features.iloc[at], table.frame.iloc[at], options) for name, at in rows.items()}
    samples = _samples(table, features, dict(_by_size(rows)[:MOST_FORESTS]), options.forests.seed)
    forests = _fit(samples, options.forests, on_step)
    datasets = {
        name: DatasetAnalysis(
            rows=len(at),
            spearman=spearman[name],
            forest={metric: forests.get((name, metric)) for metric in METRICS},
        )
        for name, at in rows.items()
    }
    full = int(features["full"].sum())
    return Analysis(
        datasets={**datasets, AVERAGE: _average(list(datasets.values()))},
        rows=table.rows_read,
        rows_analysed=len(table.frame),
        full_left_out=0 if options.keep_full else full,
        notes=(*table.notes, *_missing_metrics(table), *_full_note(table, full, options), *_limits(table, rows)),
    )


def _largest(table: RunTable) -> dict[str, NDArray[np.intp]]:
    """Map each dataset to the positions of its runs in the table, in order of the alphabet."""
    import numpy as np

    places = {str(name): np.asarray(at) for name, at in table.frame.groupby("dataset", sort=True).indices.items()}
    kept = dict(_by_size(places)[:MOST_DATASETS])
    return {name: at for name, at in places.items() if name in kept}


def _by_size(rows: Mapping[str, NDArray[np.intp]]) -> list[tuple[str, NDArray[np.intp]]]:
    """Return the datasets with the most runs first, equal ones in order of the alphabet."""
    return sorted(rows.items(), key=lambda each: -len(each[1]))


def _samples(
    table: RunTable, features: pd.DataFrame, rows: Mapping[str, NDArray[np.intp]], seed: int
) -> dict[tuple[str, str], Samples]:
    found = {
        (name, metric): samples_of(features.iloc[rows[name]], table.frame.iloc[rows[name]].get(column), seed)
        for name in sorted(rows)
        for metric, column in METRICS.items()
    }
    return {key: samples for key, samples in found.items() if samples is not None}


def _fit(
    samples: dict[tuple[str, str], Samples], options: ForestOptions, on_step: Callable[[str, int], None] | None
) -> dict[tuple[str, str], ForestFit]:
    fits = {}
    for (name, metric), fit in zip(samples, fit_all(list(samples.values()), options), strict=True):
        fits[name, metric] = fit
        if on_step is not None:
            on_step(f"{name}, {METRIC_LABELS[metric]}", len(samples))
    return fits


def _spearman(features: pd.DataFrame, frame: pd.DataFrame, options: AnalysisOptions) -> Spearman:
    sampled = features["full"] == 0
    # a dataset that knows the full softmax only is correlated over those runs: ns is constant there
    if options.keep_full or sampled.sum() < MIN_SPEARMAN_ROWS:
        sampled |= True
    features, frame = features.loc[sampled, list(FEATURES)], frame[sampled]
    return {metric: correlations(features, frame.get(column)) for metric, column in METRICS.items()}


def _average(found: list[DatasetAnalysis]) -> DatasetAnalysis:
    """Return the mean over the datasets that have a figure."""
    spearman: Spearman = {
        metric: {feature: mean_correlation([one.spearman[metric][feature] for one in found]) for feature in FEATURES}
        for metric in METRICS
    }
    forest = {metric: mean_fit([one.forest[metric] for one in found]) for metric in METRICS}
    return DatasetAnalysis(rows=sum(one.rows for one in found), spearman=spearman, forest=forest)


def _missing_metrics(table: RunTable) -> list[str]:
    missing = [column for column in METRICS.values() if column not in table.frame.columns]
    return [f"No column {', '.join(missing)}: nothing is said about it."] if missing else []


def _full_note(table: RunTable, full: int, options: AnalysisOptions) -> list[str]:
    if not full:
        return []
    runs = f"{full} full-softmax run{'s' if full > 1 else ''}"
    encoded = f"a full softmax counts as ns = {2 * table.largest_negatives():.0f}, twice the largest finite"
    if options.keep_full:
        return [f"{runs} rank above every sampled one in the Spearman tables (--keep-full); {encoded}."]
    left_out = f"{runs} left out of the Spearman tables, having no number of negatives (--keep-full ranks them)"
    return [f"{left_out}; in the forests {encoded}, which a tree can split off."]


def _limits(table: RunTable, rows: Mapping[str, NDArray[np.intp]]) -> list[str]:
    """Return sentences on what was not done because datasets are too small, too large or too many."""
    notes = []
    total = table.frame["dataset"].nunique()
    if total > len(rows):
        notes.append(f"Only the {len(rows):,} datasets with the most runs of {total:,} are analysed.")
    with_forest = dict(_by_size(rows)[:MOST_FORESTS])
    if len(rows) > MOST_FORESTS:
        notes.append(f"Forests are fitted for the {MOST_FORESTS} datasets with the most runs only.")
    few = [f"{name} has {_runs(len(at))}" for name, at in with_forest.items() if len(at) < MIN_FOREST_ROWS]
    if few:
        notes.append(f"{listed(few)}: no forest below {MIN_FOREST_ROWS}.")
    many = [name for name, at in with_forest.items() if len(at) > MOST_FOREST_ROWS]
    if many:
        notes.append(f"Forests see {MOST_FOREST_ROWS:,} runs, drawn at random, of {listed(many)}.")
    return notes


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _dataset_json(found: DatasetAnalysis) -> dict[str, Any]:
    spearman = found.spearman
    return {
        "rows": found.rows,
        "spearman": {metric: _each(by, lambda one: _rounded(one.rho)) for metric, by in spearman.items()},
        "spearman_95": {metric: _each(by, _interval) for metric, by in spearman.items()},
        "spearman_runs": {metric: _each(by, lambda one: one.runs) for metric, by in spearman.items()},
        "forest": {metric: _forest_json(fit) for metric, fit in found.forest.items()},
    }


def _each(values: dict[str, Correlation | None], shown: Callable[[Correlation], Any]) -> dict[str, Any]:
    return {name: None if value is None else shown(value) for name, value in values.items()}


def _interval(one: Correlation) -> list[float | None] | None:
    return None if one.interval is None else [_rounded(end) for end in one.interval]


def _forest_json(fit: ForestFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {
        "runs": fit.runs,
        "r2_in_sample": _rounded(fit.r2_in_sample),
        "r2_out_of_bag": _rounded(fit.r2_out_of_bag),
        "r2_cv": _rounded(fit.r2_cv),
        "impurity": {name: _rounded(value) for name, value in fit.impurity.items()},
        "permutation": {name: _rounded(value) for name, value in fit.permutation.items()},
        "permutation_spread": {name: _rounded(value) for name, value in fit.permutation_spread.items()},
    }


def _rounded(value: float) -> float | None:
    """Round to six decimals; None for what is not finite, which JSON cannot hold."""
    return round(value, 6) if math.isfinite(value) else None
