"""What a comparison found: figures for each configuration, tests between them, and in sentences what stays open."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from srsplan.planner.comparison.results import BLOCK, CONFIGURATION, DATA, SECONDS, metrics_of
from srsplan.planner.comparison.statistics import (
    LEAST_BLOCKS,
    LEAST_RANKED,
    Difference,
    Ranks,
    Values,
    difference,
    holm,
    ranks,
)

if TYPE_CHECKING:
    import pandas as pd

EXACT_BLOCKS = 10
"""Blocks from which on the distribution of Friedman's statistic is near chi-squared (Demsar 2006)."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and spread of one metric over the runs of a configuration."""

    n: int
    mean: float | None
    sd: float | None
    """Standard deviation (n - 1 in the denominator); None with fewer than 2 runs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration."""

    name: str
    metrics: dict[str, Moments]
    by_data: dict[str, dict[str, Moments]]
    """The same for each data file alone."""
    difference: Difference | None
    """To the best configuration, in the metric that decides; None for the best itself, and where no block is shared."""
    p_holm: float | None
    """p-value of that difference, adjusted for all of them."""
    mean_rank: float | None
    epoch_seconds: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """All that is said about one comparison; rows are sorted, the best first."""

    metric: str
    best: str | None
    rows: tuple[Row, ...]
    ranks: Ranks | None
    ranked: tuple[str, ...]
    """Names in the order of `ranks`."""
    blocks: int
    """Blocks that the file asks for."""
    runs: int
    """Runs with a result."""
    notes: tuple[str, ...]


def find(table: pd.DataFrame, names: Sequence[str], blocks: Sequence[str], metric: str) -> Findings:
    """Return the findings on the configurations `names`, over the `blocks` that the file asks for.

    `table` has a row for each run with a result (results.py).
    """
    there = set(table[CONFIGURATION])
    ranked = tuple(name for name in names if name in there)
    values = _values(table, ranked, blocks, metric)
    best = _best(values, ranked)
    differences = {} if best is None else _differences(values, ranked, best)
    adjusted = dict(zip(differences, holm([each.p for each in differences.values()]), strict=True))
    found = ranks(values) if ranked else None
    mean_ranks = {} if found is None else dict(zip(ranked, map(float, found.mean), strict=True))
    rows = [
        Row(
            name=name,
            metrics=_moments(part := table[table[CONFIGURATION] == name], metrics_of(table)),
            by_data={str(data): _moments(one, metrics_of(table)) for data, one in part.groupby(DATA, sort=False)},
            difference=differences.get(name),
            p_holm=adjusted.get(name),
            mean_rank=mean_ranks.get(name),
            epoch_seconds=_mean(part[SECONDS].to_numpy(dtype=float)),
        )
        for name in names
    ]
    rows.sort(key=lambda row: (row.name != best, -_order(row.metrics.get(metric))))
    notes = _notes(rows, values, ranked, blocks, metric, best, several_data=table[DATA].nunique() > 1, ranks=found)
    return Findings(
        metric=metric, best=best, rows=tuple(rows), ranks=found, ranked=ranked, blocks=len(blocks), runs=len(table),
        notes=tuple(notes),
    )  # fmt: skip


def _values(table: pd.DataFrame, names: Sequence[str], blocks: Sequence[str], metric: str) -> Values:
    """Return the metric [N, C], NaN where there is no run."""
    wide = table.pivot(index=BLOCK, columns=CONFIGURATION, values=metric)
    return np.asarray(wide.reindex(index=list(blocks), columns=list(names)).to_numpy(dtype=float))


def _best(values: Values, names: Sequence[str]) -> str | None:
    """Return the configuration with the highest mean over the blocks that all have; over its own where there is none.

    A mean over other blocks than its neighbour's would compare data, not configurations.
    """
    if not names:
        return None
    complete = values[~np.isnan(values).any(axis=1)]
    means = complete.mean(axis=0) if len(complete) else np.nanmean(values, axis=0)
    return names[int(np.argmax(means))]


def _differences(values: Values, names: Sequence[str], best: str) -> dict[str, Difference]:
    column = values[:, names.index(best)]
    found = {name: difference(values[:, at], column) for at, name in enumerate(names) if name != best}
    return {name: each for name, each in found.items() if each.blocks}


def _moments(part: pd.DataFrame, metrics: Sequence[str]) -> dict[str, Moments]:
    found = {}
    for name in metrics:
        values = part[name].dropna().to_numpy(dtype=float)
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        found[name] = Moments(n=len(values), mean=_mean(values), sd=sd)
    return found


def _mean(values: Values) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _order(moments: Moments | None) -> float:
    return -math.inf if moments is None or moments.mean is None else moments.mean


def _notes(
    rows: Sequence[Row], values: Values, ranked: Sequence[str], blocks: Sequence[str], metric: str, best: str | None,
    *, several_data: bool, ranks: Ranks | None,
) -> Iterator[str]:  # fmt: skip
    """Yield what a reader must know beside the figures."""
    for row in rows:
        moments = row.metrics.get(metric)
        count = 0 if moments is None else moments.n
        if count < len(blocks):
            yield f"{row.name} has a result in {count} of {_counted(len(blocks), 'block')}."
    if best is None:
        yield "No run has ended: there is nothing to compare."
        return
    yield from _on_tests(rows, len(ranked), best)
    yield from _on_ranks(values, len(ranked), ranks)
    yield (
        "A block is a data file with a seed. Over seeds, intervals and tests say how much the chance in a training "
        "moves the metric; they say nothing about other users, and nothing about other data."
    )
    if several_data:
        yield "Blocks of one data file share its users: they are less evidence than so many data files would be."


def _on_tests(rows: Sequence[Row], ranked: int, best: str) -> Iterator[str]:
    """Yield why there is no paired test, or what it leaves open."""
    if ranked < 2:
        yield "One configuration alone is compared with nothing."
        return
    differences = [row.difference for row in rows if row.difference is not None]
    few = [each for each in differences if each.blocks < LEAST_BLOCKS]
    if few:
        most = max(each.blocks for each in few)
        everywhere = "no test is made" if len(few) == len(differences) else "some differences are not tested"
        yield f"With {_counted(most, 'block')} {everywhere}: a test needs at least {LEAST_BLOCKS}."
    if any(each.blocks >= LEAST_BLOCKS and each.p is None for each in differences):
        yield "Where the difference to the best is the same in every block, there is no spread to test it by."
    if any(each.p is not None for each in differences):
        yield (
            f"{best} was found to be the best by these same runs: differences to it are a little larger, and p-values "
            "a little smaller, than they would be had it been named before."
        )


def _on_ranks(values: Values, ranked: int, found: Ranks | None) -> Iterator[str]:
    """Yield why there are no ranks, or how far their test is exact."""
    complete = int((~np.isnan(values).any(axis=1)).sum())
    if found is not None and found.blocks < EXACT_BLOCKS:
        yield f"Friedman's p-value is an approximation for {EXACT_BLOCKS} blocks and more; here are {found.blocks}."
    elif found is None and ranked >= LEAST_RANKED and complete >= LEAST_BLOCKS:
        yield "All configurations are equal in every block: there are no ranks."
    elif found is None and ranked >= 2:
        yield (
            f"Ranks (Friedman, Nemenyi) need {LEAST_RANKED} configurations and {LEAST_BLOCKS} blocks that all have; "
            f"here are {ranked} and {complete}."
        )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
