"""The screen of `srsplan analyze`: treatment of the runs, correlations, scores of the forests, what matters most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from srsplan.planner.analysis.correlation import Correlation
from srsplan.planner.analysis.features import AVERAGE, FEATURE_LABELS, FEATURES, LEGEND, METRIC_LABELS, METRICS
from srsplan.planner.analysis.forests import ForestFit
from srsplan.planner.analysis.importance import Analysis, DatasetAnalysis
from srsplan.planner.analysis.run_tables import RunTable
from srsplan.planner.cli import console

MOST_DATASETS = 20
"""Rows of a table; `--json` has every dataset."""


def show(analysis: Analysis, table: RunTable) -> None:
    """Print the findings for people."""
    shown, hidden = _largest(analysis)
    runs, datasets = _count(analysis.rows, "run"), _count(len(analysis.datasets) - 1, "dataset")
    files = f" in {_count(table.files, 'file')}" if table.files > 1 and table.source != f"{table.files} files" else ""
    console.out.print(
        console.plain(f"{table.source}: {runs} of {datasets}{files}, {analysis.rows_analysed:,} analysed."),
        markup=False,
    )
    more = [f"Shown are the {len(shown) - 1} datasets with the most runs; --json has {hidden:,} more."]
    console.out.print(_bullets([*analysis.notes, *(more if hidden else [])]))
    _show_correlations(analysis, shown)
    _show_forests(analysis, shown)


def _largest(analysis: Analysis) -> tuple[dict[str, DatasetAnalysis], int]:
    """Return the datasets that are shown, their average last where there are several, and how many are not shown."""
    names = [name for name in analysis.datasets if name != AVERAGE]
    kept = set(sorted(names, key=lambda name: -analysis.datasets[name].rows)[:MOST_DATASETS])
    shown = [name for name in names if name in kept] + ([AVERAGE] if len(names) > 1 else [])
    return {name: analysis.datasets[name] for name in shown}, len(names) - len(kept)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _bullets(notes: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for note in notes:
        grid.add_row("  •", console.markup(note))
    return grid


def _show_correlations(analysis: Analysis, shown: Mapping[str, DatasetAnalysis]) -> None:
    found = [metric for metric in METRICS if _has_correlations(analysis, metric)]
    for metric in found:
        console.out.print("", _spearman_table(shown, metric))
    if found:
        console.out.print(f"{LEGEND}. Bold: the 95% interval excludes 0 (--json has the intervals).")


def _has_correlations(analysis: Analysis, metric: str) -> bool:
    return any(value is not None for value in analysis.datasets[AVERAGE].spearman[metric].values())


def _show_forests(analysis: Analysis, shown: Mapping[str, DatasetAnalysis]) -> None:
    metrics = [metric for metric in METRICS if analysis.datasets[AVERAGE].forest[metric] is not None]
    if not metrics:
        console.out.print("\nNo forest could be fitted.")
        return
    fitted = {name: found for name, found in shown.items() if any(found.forest.values())}
    console.out.print("", _score_table(fitted, metrics))
    console.out.print(
        "R² is the share of the differences between runs that a forest predicts. Do not trust the in-sample one: a "
        "forest remembers the rows it was fitted to. The other two are measured on runs it had not seen."
    )
    console.out.print("", _importance_table(fitted, metrics), "")


def _new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("dataset", no_wrap=True, overflow="ellipsis", max_width=24)
    return table


def _add_row(table: Table, name: str, cells: list[str]) -> None:
    """Add the row of one dataset; a line stands above the average, which is none."""
    if name == AVERAGE:
        table.add_section()
    table.add_row(console.markup(name).replace("\n", "\\n"), *cells)


def _spearman_table(shown: Mapping[str, DatasetAnalysis], metric: str) -> Table:
    """Return a table of rank correlations with one metric: the strongest of a row coloured, those off zero bold."""
    table = _new_table(f"Spearman's ρ with {METRIC_LABELS[metric]}")
    table.add_column("n", justify="right")
    for feature in FEATURES:
        table.add_column(FEATURE_LABELS[feature], justify="right", min_width=6)
    for name, found in shown.items():
        row = found.spearman[metric]
        present = [one for one in row.values() if one is not None]
        strongest = max((abs(one.rho) for one in present), default=math.inf)
        runs = f"{max((one.runs for one in present), default=0):,}"
        _add_row(table, name, [runs, *(_correlation(row[feature], strongest) for feature in FEATURES)])
    return table


def _correlation(one: Correlation | None, strongest: float) -> str:
    if one is None:
        return "–"
    text = f"{one.rho:+.2f}"
    looks = (["bold"] if one.clear else []) + (["cyan"] if abs(one.rho) == strongest else [])
    return f"[{' '.join(looks)}]{text}[/]" if looks else text


def _score_table(shown: Mapping[str, DatasetAnalysis], metrics: list[str]) -> Table:
    """Return a table of the three kinds of R2; one column per metric, so that three metrics fit 80 characters."""
    table = _new_table("R² of the forests: in-sample, out of bag (oob), 5-fold cross-validated (cv)")
    for metric in metrics:
        table.add_column(f"{METRIC_LABELS[metric]}\n[dim]   in[/]   oob    cv", no_wrap=True)
    for name, found in shown.items():
        _add_row(table, name, [_scores(found.forest[metric]) for metric in metrics])
    return table


def _scores(fit: ForestFit | None) -> str:
    if fit is None:
        return "    –     –     –"
    return f"[dim]{fit.r2_in_sample:5.2f}[/] [bold]{fit.r2_out_of_bag:5.2f}[/] {fit.r2_cv:5.2f}"


def _importance_table(shown: Mapping[str, DatasetAnalysis], metrics: list[str]) -> Table:
    table = _new_table("What matters most: R² lost on held-out runs when a column is shuffled")
    for metric in metrics:
        table.add_column(METRIC_LABELS[metric])
    for name, found in shown.items():
        _add_row(table, name, [_strongest(found, metric) for metric in metrics])
    return table


def _strongest(found: DatasetAnalysis, metric: str, count: int = 2) -> str:
    """Return the leading features of a forest with their permutation importance."""
    fit = found.forest[metric]
    if fit is None:
        return "–"
    leading = sorted(fit.permutation.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{FEATURE_LABELS[feature]} {value:.2f}" for feature, value in leading)
