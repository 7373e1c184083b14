"""The two sides of every correlation: the knobs of a run and their products, and the metrics of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srsplan.planner.analysis.run_tables import RunTable

if TYPE_CHECKING:
    import pandas as pd

METRICS = {"ndcg_10": "NDCG_10_test", "coverage_10": "Coverage_10_test", "surprisal_10": "Surprisal_10_test"}
"""Name in the findings to column of a run table."""

METRIC_LABELS = {"ndcg_10": "NDCG@10", "coverage_10": "Coverage@10", "surprisal_10": "Surprisal@10"}
FEATURES = ("bs", "sl", "ns", "bs*sl", "bs*ns", "sl*ns")
FEATURE_LABELS = {name: name.replace("*", "×") for name in FEATURES}
LEGEND = "bs batch size, sl sequence length, ns number of negatives"
AVERAGE = "average"


def features_of(table: RunTable) -> pd.DataFrame:
    """Return the six features and the flag `full` (full softmax, 0 or 1), one row per run."""
    knobs = table.knobs()
    for product in FEATURES[3:]:
        left, right = product.split("*")
        knobs[product] = knobs[left] * knobs[right]
    return knobs
