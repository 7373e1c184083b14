"""The order to try configurations that fit: a forest over earlier runs, tempered by the balance of bs and ns.

Measured on 747 public runs: five datasets, each held out in turn, the pick compared with the best run under eight
budgets of 4 to 64 GiB (37 cells). The first pick and the best of three lose 12.0 and 6.9% of NDCG by max min(bs, ns)
with ties to the longer sequence, 10.3 and 5.7% by the forest alone, 9.6 and 6.1% by the mean of the forest's rank and
the balance's (tests/planner/test_quality.py measures it). None is certain; `QualityModel.trust` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from srsplan.models.errors import InputError
from srsplan.planner.analysis.run_tables import QUALITY, RunTable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MIN_RUNS = 20
TREES = 200
UNSEEN_TREES = 60
"""Trees of the forests that only say how well the order carries over to another dataset."""

# leaves of one run memorise the datasets of the table: on a held-out one they lose 13% with the first pick, not 10%
MIN_LEAF_SHARE = 0.014
MAX_FOLDS = 10

Candidate = tuple[int, int, "int | None"]
"""Batch size, sequence length, negatives (None = full softmax)."""


@dataclass(frozen=True, kw_only=True)
class Reranking:
    """`order` lists positions in the candidates, best first; `scores` (0 to 1) stand in the candidates' order."""

    order: list[int]
    scores: list[float]


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """A forest from (log bs, log sl, log ns, full softmax?) to quality, standardised within each dataset."""

    metric: str
    rows: int
    datasets: tuple[str, ...]
    r2_out_of_bag: float
    """R2 on runs that a tree did not see, from datasets that it did."""
    rank_unseen: tuple[float, ...]
    """Spearman of prediction and truth on each dataset held out in turn; empty for a single dataset."""
    seen: dict[str, tuple[int, int]]
    """Smallest and largest bs, sl and finite ns of the runs: a forest is flat beyond them."""
    notes: tuple[str, ...]
    full_negatives: float
    forest: Any

    @classmethod
    def fit(cls, table: RunTable, metric: str = QUALITY, seed: int = 0) -> QualityModel:
        """Fit on every run that has the metric; at least 20, of datasets where the metric varies."""
        frame, target, left_out = _training_rows(table, metric)
        knobs = table.knobs().loc[frame.index]
        rows, groups = _encode(knobs), frame["dataset"].to_numpy()
        forest = _new_forest(seed, oob_score=True).fit(rows, target)
        return cls(
            metric=metric,
            rows=len(frame),
            datasets=tuple(sorted(set(groups))),
            r2_out_of_bag=float(forest.oob_score_),
            rank_unseen=_rank_on_unseen(rows, target, groups, seed),
            seen=_ranges(knobs),
            notes=(*table.notes, *left_out),
            full_negatives=2 * table.largest_negatives(),
            forest=forest,
        )

    @property
    def trust(self) -> str:
        """Sentences on how far the figures behind a re-ranking can be trusted."""
        of = f"{len(self.datasets)} datasets" if len(self.datasets) > 1 else f"one dataset, {self.datasets[0]}"
        known = f"Forest fitted to {self.rows} runs of {of}: out-of-bag R2 {self.r2_out_of_bag:.2f}"
        if self.rank_unseen:
            mean = sum(self.rank_unseen) / len(self.rank_unseen)
            low, high = min(self.rank_unseen), max(self.rank_unseen)
            unseen = f"on a dataset held out, rank correlation {mean:.2f} on average ({low:.2f} to {high:.2f})"
        else:
            unseen = "how it carries over to another dataset is unknown"
        spans = ", ".join(f"{knob} {low}-{high}" for knob, (low, high) in self.seen.items())
        return f"{known}; {unseen}. It knows {spans} and is flat beyond."

    def scores(self, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """Return the predicted quality of each candidate, in standard deviations from the mean run of a dataset."""
        import numpy as np

        if not candidates:
            return np.empty(0)
        predicted: NDArray[np.float64] = self.forest.predict(_encode(self._knobs(candidates)))
        return predicted

    def score(self, batch_size: int, seq_len: int, negatives: int | None) -> float:
        """Return the predicted quality of one configuration; see `scores`."""
        return float(self.scores([(batch_size, seq_len, negatives)])[0])

    def rerank(self, candidates: Sequence[Candidate], catalog: int) -> Reranking:
        """Order candidates by the mean of two ranks: the forest's, and that of min(bs, ns).

        A full softmax counts `catalog` negatives for the balance. Ties go to the forest's favourite, then to the
        candidate that came first.
        """
        import numpy as np
        from scipy.stats import rankdata

        if not candidates:
            return Reranking(order=[], scores=[])
        forest = self.scores(candidates)
        balance = [min(bs, catalog if ns is None else ns) for bs, _, ns in candidates]
        merged = (rankdata(forest) + rankdata(balance)) / (2 * len(candidates))
        order = np.lexsort((np.arange(len(merged)), -forest, -merged))
        return Reranking(order=[int(at) for at in order], scores=[float(score) for score in merged])

    def _knobs(self, candidates: Sequence[Candidate]) -> pd.DataFrame:
        import pandas as pd

        rows = [(bs, sl, self.full_negatives if ns is None else ns, float(ns is None)) for bs, sl, ns in candidates]
        knobs: pd.DataFrame = pd.DataFrame(rows, columns=["bs", "sl", "ns", "full"])
        return knobs


def _training_rows(table: RunTable, metric: str) -> tuple[pd.DataFrame, NDArray[np.float64], list[str]]:
    """Return the usable rows, their metric as standard score within the dataset, and notes on datasets left out."""
    if metric not in table.frame.columns:
        raise InputError(f"{table.source} has no column {metric}", "name a metric column of the run table")
    frame = table.frame[table.frame[metric].notna()]
    by_dataset = frame.groupby("dataset")[metric]
    varies = by_dataset.transform("nunique") > 1
    constant = sorted(set(frame.loc[~varies, "dataset"]))
    notes = [f"{metric} does not vary on {', '.join(constant)}: not learned from."] if constant else []
    standard = (frame[metric] - by_dataset.transform("mean")) / by_dataset.transform("std")
    frame, standard = frame[varies], standard[varies]
    if len(frame) < MIN_RUNS:
        raise InputError(
            f"{table.source} has {len(frame)} runs whose {metric} can be learned from",
            f"at least {MIN_RUNS} are needed; without a run table the balance of bs and ns decides",
        )
    return frame, standard.to_numpy(dtype=float), notes


def _encode(knobs: pd.DataFrame) -> NDArray[np.float64]:
    """Return [runs, 4]: log2 of bs, sl, ns, and the flag of the full softmax."""
    import numpy as np

    logs = np.log2(knobs[["bs", "sl", "ns"]].to_numpy(dtype=float))
    return np.column_stack([logs, knobs["full"].to_numpy(dtype=float)])


def _new_forest(seed: int, trees: int = TREES, **more: Any) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(trees, min_samples_leaf=MIN_LEAF_SHARE, random_state=seed, n_jobs=1, **more)


def _rank_on_unseen(
    rows: NDArray[np.float64], target: NDArray[np.float64], groups: NDArray[Any], seed: int
) -> tuple[float, ...]:
    """Return Spearman's rho on each dataset (each group of them, past ten), predicted by a forest that never saw it."""
    import numpy as np
    from scipy.stats import spearmanr
    from sklearn.model_selection import GroupKFold

    folds = min(len(np.unique(groups)), MAX_FOLDS)
    if folds < 2:
        return ()
    ranks = []
    for train, test in GroupKFold(folds).split(rows, target, groups):
        predicted = _new_forest(seed, UNSEEN_TREES).fit(rows[train], target[train]).predict(rows[test])
        if len(np.unique(predicted)) > 1 and len(np.unique(target[test])) > 1:
            ranks.append(float(spearmanr(predicted, target[test]).statistic))
    return tuple(rank for rank in ranks if math.isfinite(rank))


def _ranges(knobs: pd.DataFrame) -> dict[str, tuple[int, int]]:
    sampled = knobs.loc[knobs["full"] == 0, "ns"]
    columns = {"bs": knobs["bs"], "sl": knobs["sl"], "ns": sampled}
    return {knob: (int(column.min()), int(column.max())) for knob, column in columns.items() if len(column)}
