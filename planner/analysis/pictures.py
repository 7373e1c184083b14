"""The pictures of an analysis: what moves quality, how sure that is, and what memory buys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from srsplan.planner.analysis.correlation import Correlation
from srsplan.planner.analysis.features import AVERAGE, FEATURE_LABELS, FEATURES, LEGEND, METRIC_LABELS, METRICS
from srsplan.planner.analysis.forests import FEW_FORESTS, ForestFit
from srsplan.planner.analysis.importance import Analysis
from srsplan.planner.analysis.plots import Format, caption, encode, panels, picture_text, style
from srsplan.planner.analysis.run_tables import MEMORY, QUALITY, RunTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

NAMES = ("spearman", *(f"importance_{metric}" for metric in METRICS), "memory_quality")
"""Files that may be drawn, without their extension."""

PERMUTATION, IMPURITY, FRONT = "#1f5fa8", "#b9c6d6", "#c0392b"
MOST_ROWS = 24
"""Datasets in the heat map, those with the most runs; the average is of all."""
MOST_PANELS = 12
MOST_POINTS = 2_000
"""Runs drawn in a panel; of more, so many at equal distances in memory."""


def draw_all(analysis: Analysis, table: RunTable, image_format: Format = "png", jobs: int = 1) -> dict[str, bytes]:
    """Draw every picture the table has data for; name to file, in the order of NAMES.

    In `jobs` processes where the analysis has had enough forests to start them.
    """
    fits = [fit for found in analysis.datasets.values() for fit in found.forest.values() if fit is not None]
    if jobs < 2 or len(fits) < FEW_FORESTS:
        drawn = [draw(name, analysis, table, image_format) for name in NAMES]
    else:
        from joblib import Parallel, delayed

        drawn = Parallel(jobs)(delayed(draw)(name, analysis, table, image_format) for name in NAMES)
    return {name: picture for name, picture in zip(NAMES, drawn, strict=True) if picture is not None}


def draw(name: str, analysis: Analysis, table: RunTable, image_format: Format) -> bytes | None:
    """Draw one picture of NAMES; None where the table has no data for it."""
    with style():
        if name == "spearman":
            figure = draw_spearman(analysis)
        elif name == "memory_quality":
            figure = draw_memory_quality(table)
        else:
            figure = draw_importance(analysis, name.removeprefix("importance_"))
        return None if figure is None else encode(figure, image_format)


def draw_spearman(analysis: Analysis) -> Figure | None:
    """Draw a heat map of rank correlations, one panel per metric; None when no correlation exists."""
    names = _largest(analysis, MOST_ROWS)
    metrics = [metric for metric in METRICS if _has_correlations(analysis, metric)]
    if not metrics:
        return None
    figure, axes = panels(1, len(metrics), (1.8 + 4.6 * len(metrics), 2.3 + 0.55 * len(names)))
    for panel, metric in zip(axes, metrics, strict=True):
        cells = [[analysis.datasets[name].spearman[metric][feature] for feature in FEATURES] for name in names]
        image = _heat_map(panel, cells)
        panel.set_title(METRIC_LABELS[metric])
        labels = [_row_label(analysis, name, metric, named=panel is axes[0]) for name in names]
        panel.set_yticks(range(len(names)), labels)
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, label="Spearman's ρ")
    figure.suptitle("Does quality rise with a knob? Rank correlation over runs")
    caption(figure, _spearman_caption(analysis, len(names) - 1))
    return figure


def draw_importance(analysis: Analysis, metric: str) -> Figure | None:
    """Draw permutation next to impurity importance, one panel per dataset; None when no forest was fitted."""
    fits = {name: analysis.datasets[name].forest[metric] for name in _largest(analysis, len(analysis.datasets))}
    present = {name: fit for name, fit in fits.items() if fit is not None}
    if not present:
        return None
    columns = min(3, len(present))
    rows = math.ceil(len(present) / columns)
    figure, axes = panels(rows, columns, (1 + 3.8 * columns, 2.2 + 2.6 * rows))
    for panel, (name, fit) in zip(axes, present.items(), strict=False):
        _importance_bars(panel, name, fit)
        panel.set_xlim(_importance_limits(present.values()))
    for unused in axes[len(present) :]:
        unused.set_visible(False)
    figure.suptitle(f"What a random forest needs to predict {METRIC_LABELS[metric]}")
    caption(figure, _importance_caption(), axes[0].get_legend_handles_labels()[0])
    return figure


def draw_memory_quality(table: RunTable) -> Figure | None:
    """Draw memory against NDCG@10, a panel per dataset, colour = batch size; None when no memory was recorded."""
    if MEMORY not in table.frame.columns:
        return None
    frame = table.frame.join(table.knobs()).dropna(subset=[MEMORY, QUALITY])
    if frame.empty:
        return None
    counts = frame["dataset"].value_counts()
    names = sorted(counts.sort_index().sort_values(ascending=False, kind="stable").index[:MOST_PANELS])
    frame = frame[frame["dataset"].isin(names)]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = panels(rows, columns, (1.6 + 3.8 * columns, 2.1 + (2.9 if columns > 1 else 4.2) * rows))
    norm = _batch_size_scale(frame["bs"])
    for panel, name in zip(axes, names, strict=False):
        points = _memory_panel(panel, name, frame[frame["dataset"] == name], norm)
    for panel in axes[::columns]:
        panel.set_ylabel("NDCG@10")
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    _label_batch_sizes(figure.colorbar(points, ax=axes, shrink=0.8, pad=0.01, label="batch size"), frame["bs"])
    figure.suptitle("What memory buys: peak allocated memory and NDCG@10 of each run")
    caption(figure, _memory_caption(len(counts) - len(names)), _memory_legend(full=bool(frame["full"].any())))
    return figure


def _largest(analysis: Analysis, most: int) -> list[str]:
    """Return the datasets with the most runs, in order of the alphabet, and their average last if they are several."""
    names = [name for name in analysis.datasets if name != AVERAGE]
    kept = set(sorted(names, key=lambda name: -analysis.datasets[name].rows)[:most])
    return [name for name in names if name in kept] + ([AVERAGE] if len(names) > 1 else [])


def _has_correlations(analysis: Analysis, metric: str) -> bool:
    return any(value is not None for value in analysis.datasets[AVERAGE].spearman[metric].values())


def _heat_map(panel: Axes, cells: list[list[Correlation | None]]) -> Any:
    import numpy as np

    values = np.array([[math.nan if cell is None else cell.rho for cell in row] for row in cells])
    image = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    panel.set_xticks(range(len(FEATURES)), [FEATURE_LABELS[feature] for feature in FEATURES])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if len(cells) > 1:  # the mean is no dataset: a white line sets it apart
        panel.axhline(len(cells) - 1.5, color="white", linewidth=4)
    for row, correlations in enumerate(cells):
        for column, correlation in enumerate(correlations):
            _annotate(panel, column, row, correlation)
    return image


def _row_label(analysis: Analysis, name: str, metric: str, named: bool) -> str:
    """Name the dataset, and the number of runs that its correlations are from."""
    counts = [one.runs for one in analysis.datasets[name].spearman[metric].values() if one is not None]
    runs = f"n = {max(counts, default=0):,}"
    return f"{picture_text(name)}\n{runs}" if named else runs


def _annotate(panel: Axes, column: int, row: int, correlation: Correlation | None) -> None:
    """Write the coefficient with its interval beneath; bold where the interval excludes zero."""
    if correlation is None:
        panel.text(column, row, "–", ha="center", va="center", color="#666666")
        return
    color = "white" if abs(correlation.rho) > 0.6 else "#222222"
    weight = "bold" if correlation.clear else "normal"
    lift = 0.16 if correlation.interval else 0.0
    panel.text(
        column, row - lift, _signed(correlation.rho), ha="center", va="center", color=color, fontsize=9, weight=weight
    )
    if correlation.interval:
        low, high = map(_signed, correlation.interval)
        panel.text(column, row + 0.24, f"{low} to {high}", ha="center", va="center", color=color, fontsize=6)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _spearman_caption(analysis: Analysis, shown: int) -> Iterator[str]:
    yield f"{LEGEND}, × the product of two. ρ = 1: always higher with more of it, −1: always lower, 0: no relation."
    yield "n runs; beneath each ρ its 95% interval (Fisher's z); bold where that excludes 0."
    if analysis.full_left_out:
        runs = f"{analysis.full_left_out:,} full-softmax run{'' if analysis.full_left_out == 1 else 's'}"
        yield f"Left out: {runs}, which have no number of negatives."
    hidden = len(analysis.datasets) - 1 - shown
    if shown and hidden > 0:
        yield f"{hidden:,} datasets with fewer runs are not shown; the average is of all."


def _importance_limits(fits: Iterable[ForestFit]) -> tuple[float, float]:
    """Return one scale for all panels, so that bars compare between datasets."""
    ends = [0.0]
    for fit in fits:
        ends += fit.impurity.values()
        for name, value in fit.permutation.items():
            ends += [value - fit.permutation_spread[name], value + fit.permutation_spread[name]]
    return min(ends) * 1.05, max(ends) * 1.05


def _importance_bars(panel: Axes, name: str, fit: ForestFit) -> None:
    import numpy as np

    at = np.arange(len(FEATURES))
    lost = [fit.permutation[feature] for feature in FEATURES]
    spread = [fit.permutation_spread[feature] for feature in FEATURES]
    look: dict[str, Any] = {"ecolor": "#333333", "error_kw": {"elinewidth": 0.9, "capsize": 2}}
    label = "R² lost when this column is shuffled"
    panel.barh(at - 0.2, lost, 0.38, xerr=spread, color=PERMUTATION, label=label, **look)
    share = [fit.impurity[feature] for feature in FEATURES]
    panel.barh(at + 0.2, share, 0.38, color=IMPURITY, label="share of the variance split off in training (impurity)")
    panel.set_yticks(at, [FEATURE_LABELS[feature] for feature in FEATURES])
    panel.invert_yaxis()
    panel.spines["left"].set_visible(False)
    panel.axvline(0, color="#444444", linewidth=0.8)
    panel.set_title(f"{picture_text(name)}\nn = {fit.runs:,}, R² {fit.r2_cv:.2f}".replace("-", "−"))


def _importance_caption() -> Iterator[str]:
    yield f"{LEGEND}, × the product of two; n runs, full softmax included."
    yield (
        "R²: the share of the differences between runs that the forest predicts for runs it has not seen (5-fold "
        "cross-validation; 1 = all, 0 = no better than the mean). R² lost: by how much it falls when the values of "
        "one column are shuffled among the runs not seen: what the forest needs most loses most, and can lose "
        "more than it had."
    )
    yield (
        "Lines: one standard deviation over folds and shuffles (average: over the datasets). Columns that say the "
        "same, as bs and bs×sl do, share their importance."
    )


def _batch_size_scale(sizes: pd.Series[float]) -> LogNorm:
    from matplotlib.colors import LogNorm

    low, high = sizes.min(), sizes.max()
    return LogNorm(low, high if high > low else 2 * low)


def _memory_panel(panel: Axes, name: str, runs: pd.DataFrame, norm: LogNorm) -> PathCollection:
    """Draw the runs of one dataset: circles with sampled negatives, diamonds with the full softmax, and their front."""
    front = _pareto_front(runs)
    shown = _thinned(runs)
    full = shown["full"] == 1
    look: dict[str, Any] = {"cmap": "viridis_r", "norm": norm, "linewidths": 0.5}
    right, top = runs[MEMORY].max(), front[QUALITY].max()
    panel.plot(
        [*front[MEMORY], right], [*front[QUALITY], top], color=FRONT, linewidth=1.6, drawstyle="steps-post", zorder=1
    )
    points = panel.scatter(
        shown.loc[~full, MEMORY], shown.loc[~full, QUALITY], c=shown.loc[~full, "bs"], s=24, edgecolors="white", **look
    )
    diamonds = shown[full]
    panel.scatter(diamonds[MEMORY], diamonds[QUALITY], c=diamonds["bs"], s=34, marker="D", edgecolors="k", **look)
    _memory_axis(panel, runs[MEMORY].min(), right)
    panel.set_title(f"{picture_text(name)}   {len(runs):,} run{'' if len(runs) == 1 else 's'}")
    panel.grid(alpha=0.25, linewidth=0.6)
    return points


def _memory_axis(panel: Axes, left: float, right: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_xscale("log", base=2)
    if right < 8 * left:  # powers of two alone would leave one or two ticks
        panel.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("peak allocated memory (GiB, log scale)")


def _thinned(runs: pd.DataFrame) -> pd.DataFrame:
    if len(runs) <= MOST_POINTS:
        return runs
    thinned: pd.DataFrame = runs.sort_values(MEMORY, kind="stable").iloc[:: math.ceil(len(runs) / MOST_POINTS)]
    return thinned


def _pareto_front(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that no run with as little memory surpasses, by rising memory."""
    ordered = runs.sort_values([MEMORY, QUALITY], ascending=[True, False])
    front: pd.DataFrame = ordered[ordered[QUALITY] > ordered[QUALITY].cummax().shift(fill_value=-math.inf)]
    return front


def _label_batch_sizes(bar: Colorbar, sizes: pd.Series[float]) -> None:
    known = sorted(sizes.unique())
    if len(known) > 12:
        known = known[:: math.ceil(len(known) / 12)]
    bar.set_ticks(known, labels=[f"{size:g}" for size in known])
    bar.minorticks_off()


def _memory_legend(full: bool) -> list[Artist]:
    from matplotlib.lines import Line2D

    handles: list[Artist] = [
        Line2D([], [], color=FRONT, linewidth=1.6, label="best quality within the memory (Pareto front)"),
        Line2D([], [], color="#777777", marker="o", linestyle="", label="sampled negatives"),
    ]
    if full:
        handles.append(Line2D([], [], color="#777777", marker="D", mec="k", linestyle="", label="full softmax"))
    return handles


def _memory_caption(hidden: int) -> Iterator[str]:
    yield (
        "A point is a run, as high as its NDCG@10 on the test part and as far right as its peak of allocated memory; "
        "the line rises where more memory bought more quality among these runs."
    )
    if hidden:
        yield f"{hidden:,} datasets with fewer runs are not shown."
