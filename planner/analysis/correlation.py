"""Spearman's rank correlation of each feature with a metric, and how sure it is.

Correlations are taken over runs with sampled negatives: a full softmax has no number of negatives to correlate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MIN_ROWS = 3
MIN_INTERVAL_ROWS = 10
"""With fewer runs the normal approximation of the interval says nothing."""

QUANTILE_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rho, its 95% interval (None where it cannot be said), and the runs it was computed from."""

    rho: float
    interval: tuple[float, float] | None
    runs: int

    @property
    def clear(self) -> bool:
        """True where the interval excludes zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def correlations(features: pd.DataFrame, metric: pd.Series[float] | None) -> dict[str, Correlation | None]:
    """Correlate every column with the metric; None where a column is missing, constant or too short."""
    if metric is None:
        return dict.fromkeys(features.columns)
    known = metric.notna().to_numpy()
    runs = int(known.sum())
    if runs < MIN_ROWS:
        return dict.fromkeys(features.columns)
    rhos = _rank_correlations(features.to_numpy(dtype=float)[known], metric.to_numpy(dtype=float)[known])
    return {
        name: Correlation(rho=rho, interval=interval_of(rho, runs), runs=runs) if math.isfinite(rho) else None
        for name, rho in zip(features.columns, rhos.tolist(), strict=True)
    }


def interval_of(rho: float, runs: int) -> tuple[float, float] | None:
    """Return the 95% interval of a rank correlation: Fisher's z, standard error sqrt((1 + rho^2 / 2) / (n - 3)).

    Bonett and Wright, 2000, https://doi.org/10.1007/BF02294183.
    """
    if runs < MIN_INTERVAL_ROWS:
        return None
    if abs(rho) >= 1:
        return (rho, rho)
    reach = QUANTILE_95 * math.sqrt((1 + rho**2 / 2) / (runs - 3))
    return (math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach))


def _rank_correlations(features: NDArray[np.float64], metric: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson's r of the ranks, [features], NaN for a constant column."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = rankdata(np.column_stack([features, metric]), axis=0)
    ranks -= ranks.mean(axis=0)
    spread = np.sqrt((ranks**2).sum(axis=0))
    scale = spread[:-1] * spread[-1]
    together = ranks[:, :-1].T @ ranks[:, -1]
    found: NDArray[np.float64] = np.divide(together, scale, out=np.full(len(scale), np.nan), where=scale > 0)
    return found.clip(-1, 1)


def mean_correlation(parts: list[Correlation | None]) -> Correlation | None:
    """Return the plain mean over datasets, without an interval; None where there is nothing to average."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    rho = sum(part.rho for part in present) / len(present)
    return Correlation(rho=rho, interval=None, runs=sum(part.runs for part in present))
