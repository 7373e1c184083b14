"""What a test reports of one ranking: metrics, their intervals, and both by cohorts of popularity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from srsplan.models.training.cohorts import COHORTS, CohortMetrics, Cohorts, cohort_metrics
from srsplan.models.training.evaluation import Evaluation
from srsplan.models.training.intervals import ALL, Interval, Resampling, intervals


@dataclass(frozen=True, kw_only=True)
class Report:
    """The figures of one ranking, without the ranking."""

    all: dict[str, float]
    """Metrics over all users, keyed NDCG_10, HitRate_10 and so on."""
    warm: dict[str, float]
    """Metrics over the users whose target occurs in train; empty where there is none."""
    users: int
    warm_users: int
    by_cohort: CohortMetrics
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """Lower and upper ends of the metrics of `all`, `head`, `mid` and `tail`; empty where none were wanted."""


def report(evaluation: Evaluation, cohorts: Cohorts, resampling: Resampling | None = None) -> Report:
    """Measure an evaluation by cohort, with intervals where there is a `resampling`."""
    ranked = evaluation.ranked
    return Report(
        all=evaluation.all,
        warm=evaluation.warm,
        users=evaluation.users,
        warm_users=evaluation.warm_users,
        by_cohort=cohort_metrics(ranked, cohorts),
        intervals=intervals(ranked, cohorts, resampling) if resampling else {},
    )


def cohort_document(cohorts: Cohorts, tested: Report, baseline: Report) -> dict[str, dict[str, object]]:
    """Return what metrics.json says of each cohort: its items, its users, and metrics of the test and of popularity."""
    medians = cohorts.median_users_percent()
    return {
        name: {
            "items": int(cohorts.items[place]),
            "items_percent": 100 * int(cohorts.items[place]) / int(cohorts.items.sum()),
            "median_users_percent": medians[place],
            "test_users": tested.by_cohort.users[name],
            "test": tested.by_cohort.metrics[name],
            "popularity": baseline.by_cohort.metrics[name],
        }
        for place, name in enumerate(COHORTS)
    }


def interval_document(tested: Report, resampling: Resampling) -> dict[str, object]:
    """Return what metrics.json says of intervals: how they were made, and [low, high] of every metric."""
    made = {"level": resampling.level, "resamples": resampling.resamples, "seed": resampling.seed}
    return {**made, **{"test" if part == ALL else part: dict(found) for part, found in tested.intervals.items()}}


def bias_columns(document: Mapping[str, Any]) -> dict[str, float]:
    """Return what runs.csv says beside the metrics, at rank 10: Balance, cohorts, and the ends of the intervals.

    Names are Balance_10_test, NDCG_10_test_head, NDCG_10_test_low and so on; what is not defined has no column. The
    document is that of metrics.json, which has the other ranks.
    """
    row = {f"{name}_test": value for name, value in document["balance"]["test"].items()}
    for cohort in COHORTS:
        row |= {f"{name}_test_{cohort}": value for name, value in document["cohorts"][cohort]["test"].items()}
    for name, (low, high) in document["intervals"]["test"].items():
        row |= {f"{name}_test_low": low, f"{name}_test_high": high}
    return {name: value for name, value in row.items() if "_10_test" in name}
