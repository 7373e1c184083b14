"""Pictures of an analysis: what moves quality, and what memory buys. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srsplan.planner.analysis.importance import (
    AVERAGE,
    FEATURE_LABELS,
    FEATURES,
    METRIC_LABELS,
    METRICS,
    Analysis,
    ForestFit,
)
from srsplan.planner.analysis.run_tables import MEMORY, QUALITY, RunTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "svg.hashsalt": "srsplan",
}
# inches that titles and legends need, however few the panels
MIN_WIDTH = 9.0
PERMUTATION, IMPURITY, FRONT = "#1f5fa8", "#b9c6d6", "#c0392b"


def draw_all(analysis: Analysis, table: RunTable, folder: Path, image_format: Format = "png") -> list[Path]:
    """Draw every picture the table has data for into `folder`, which must exist; returns their paths in order."""
    drawings: dict[str, Figure | None] = {}
    with _style():
        drawings["spearman"] = draw_spearman(analysis)
        for metric in METRICS:
            drawings[f"importance_{metric}"] = draw_importance(analysis, metric)
        drawings["memory_quality"] = draw_memory_quality(table)
        return [
            _save(figure, folder / f"{name}.{image_format}") for name, figure in drawings.items() if figure is not None
        ]


def draw_spearman(analysis: Analysis) -> Figure | None:
    """Heat map of rank correlations, one panel per metric; None when no correlation exists."""
    import numpy as np

    names = list(analysis.datasets)
    metrics = [metric for metric in METRICS if _has_correlations(analysis, metric)]
    if not metrics:
        return None
    figure, panels = _panels(1, len(metrics), (1.6 + 4.1 * len(metrics), 1.9 + 0.5 * len(names)))
    for panel, metric in zip(panels, metrics, strict=True):
        cells = [[analysis.datasets[name].spearman[metric][feature] for feature in FEATURES] for name in names]
        values = np.array([[math.nan if cell is None else cell for cell in row] for row in cells])
        image = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        panel.set_title(METRIC_LABELS[metric])
        panel.set_xticks(range(len(FEATURES)), [FEATURE_LABELS[feature] for feature in FEATURES])
        panel.set_yticks(range(len(names)), names if panel is panels[0] else [])
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        # the mean is no dataset: a white line sets it apart
        panel.axhline(len(names) - 1.5, color="white", linewidth=4)
        _annotate(panel, cells)
    figure.colorbar(image, ax=panels, shrink=0.9, pad=0.01, label="Spearman's ρ")
    figure.suptitle(
        "Rank correlation with quality of batch size (bs), sequence length (sl), negatives (ns) and products"
    )
    return figure


def draw_importance(analysis: Analysis, metric: str) -> Figure | None:
    """Permutation next to impurity importance, one panel per dataset; None when no forest was fitted."""
    fits = {name: found.forest[metric] for name, found in analysis.datasets.items()}
    present = {name: fit for name, fit in fits.items() if fit is not None}
    if not present:
        return None
    columns = min(3, len(present))
    rows = math.ceil(len(present) / columns)
    figure, panels = _panels(rows, columns, (1 + 3.6 * columns, 1.4 + 2.5 * rows))
    for panel, (name, fit) in zip(panels, present.items(), strict=False):
        _importance_bars(panel, name, fit)
        panel.set_xlim(_importance_limits(present.values()))
    for unused in panels[len(present) :]:
        unused.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"What a random forest needs to predict {METRIC_LABELS[metric]}")
    return figure


def draw_memory_quality(table: RunTable) -> Figure | None:
    """Memory against NDCG@10, one panel per dataset, colour = batch size; None when no memory was recorded."""
    from matplotlib.colors import LogNorm

    if MEMORY not in table.frame.columns:
        return None
    frame = table.frame.join(table.knobs()).dropna(subset=[MEMORY, QUALITY])
    names = sorted(frame["dataset"].unique())
    if not names:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, panels = _panels(rows, columns, (1.6 + 3.6 * columns, 1.5 + (2.9 if columns > 1 else 4.2) * rows))
    low, high = frame["bs"].min(), frame["bs"].max()
    norm = LogNorm(low, high if high > low else 2 * low)
    for panel, name in zip(panels, names, strict=False):
        points = _memory_panel(panel, name, frame[frame["dataset"] == name], norm)
    for unused in panels[len(names) :]:
        unused.set_visible(False)
    _label_batch_sizes(figure.colorbar(points, ax=panels, shrink=0.8, pad=0.01, label="batch size"), frame["bs"])
    _legend_of_front(figure, full=bool(frame["full"].any()))
    figure.suptitle("What memory buys: peak allocated memory and NDCG@10 of each run")
    return figure


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure (inches) and its panels in reading order; no pyplot, so no display and nothing left open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(size[0], MIN_WIDTH), size[1]), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Figure, path: Path) -> Path:
    # without a date, equal runs give equal files
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _has_correlations(analysis: Analysis, metric: str) -> bool:
    return any(value is not None for value in analysis.datasets[AVERAGE].spearman[metric].values())


def _annotate(panel: Axes, cells: list[list[float | None]]) -> None:
    """Each coefficient in its cell, the strongest of a row in bold."""
    for row, values in enumerate(cells):
        strongest = max((abs(value) for value in values if value is not None), default=math.inf)
        for column, value in enumerate(values):
            text = "–" if value is None else f"{value:.2f}".replace("-", "−")
            dark = value is not None and abs(value) > 0.6
            bold = value is not None and abs(value) == strongest
            style: dict[str, Any] = {
                "color": "white" if dark else "#222222",
                "fontweight": "bold" if bold else "normal",
            }
            panel.text(column, row, text, ha="center", va="center", fontsize=9, **style)


def _importance_limits(fits: Iterable[ForestFit]) -> tuple[float, float]:
    """One scale for all panels, so that bars compare between datasets."""
    values = [value for fit in fits for value in (*fit.permutation.values(), *fit.impurity.values())]
    return min(0.0, *values) * 1.05, max(values) * 1.05


def _importance_bars(panel: Axes, name: str, fit: ForestFit) -> None:
    import numpy as np

    at = np.arange(len(FEATURES))
    for offset, values, color, label in (
        (-0.2, fit.permutation, PERMUTATION, "permutation: R² lost on held-out folds when shuffled"),
        (0.2, fit.impurity, IMPURITY, "impurity: share of variance split off in training"),
    ):
        panel.barh(at + offset, [values[feature] for feature in FEATURES], 0.38, color=color, label=label)
    panel.set_yticks(at, [FEATURE_LABELS[feature] for feature in FEATURES])
    panel.invert_yaxis()
    panel.spines["left"].set_visible(False)
    panel.axvline(0, color="#444444", linewidth=0.8)
    panel.set_title(f"{name}   R² out of bag {fit.r2_out_of_bag:.2f}")
    panel.set_xlabel("importance")


def _memory_panel(panel: Axes, name: str, runs: pd.DataFrame, norm: LogNorm) -> PathCollection:
    """Runs of one dataset: circles with sampled negatives, diamonds with the full softmax, and their front."""
    from matplotlib.ticker import LogLocator

    full = runs["full"] == 1
    look: dict[str, Any] = {"cmap": "viridis_r", "norm": norm, "linewidths": 0.5}
    front = _pareto_front(runs)
    right, top = runs[MEMORY].max(), front[QUALITY].max()
    panel.plot(
        [*front[MEMORY], right], [*front[QUALITY], top], color=FRONT, linewidth=1.6, drawstyle="steps-post", zorder=1
    )
    points = panel.scatter(
        runs.loc[~full, MEMORY], runs.loc[~full, QUALITY], c=runs.loc[~full, "bs"], s=24, edgecolors="white", **look
    )
    panel.scatter(
        runs.loc[full, MEMORY],
        runs.loc[full, QUALITY],
        c=runs.loc[full, "bs"],
        s=34,
        marker="D",
        edgecolors="k",
        **look,
    )
    panel.set_xscale("log", base=2)
    if right < 8 * runs[MEMORY].min():  # powers of two alone would leave one or two ticks
        panel.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_title(f"{name}   {len(runs)} runs")
    panel.set_xlabel("peak allocated memory (GiB, log scale)")
    panel.set_ylabel("NDCG@10")
    panel.grid(alpha=0.25, linewidth=0.6)
    return points


def _pareto_front(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that no run with as little memory surpasses, by rising memory."""
    ordered = runs.sort_values([MEMORY, QUALITY], ascending=[True, False])
    front: pd.DataFrame = ordered[ordered[QUALITY] > ordered[QUALITY].cummax().shift(fill_value=-math.inf)]
    return front


def _label_batch_sizes(bar: Colorbar, sizes: pd.Series[float]) -> None:
    known = sorted(sizes.unique())
    if len(known) <= 12:
        bar.set_ticks(known, labels=[f"{size:g}" for size in known])
        bar.minorticks_off()


def _legend_of_front(figure: Figure, full: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=FRONT, linewidth=1.6, label="best quality within the memory (Pareto front)"),
        Line2D([], [], color="#777777", marker="o", linestyle="", label="sampled negatives"),
    ]
    if full:
        handles.append(Line2D([], [], color="#777777", marker="D", mec="k", linestyle="", label="full softmax"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
