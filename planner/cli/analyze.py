"""`srsplan analyze`: what earlier runs say about batch size, sequence length and negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srsplan.models.errors import InputError
from srsplan.planner.cli import console

if TYPE_CHECKING:
    from rich.table import Table

    from srsplan.planner.analysis.importance import Analysis, AnalysisOptions, DatasetAnalysis, ForestFit
    from srsplan.planner.analysis.run_tables import RunTable


class ImageFormat(str, Enum):
    """File formats of the plots."""

    PNG = "png"
    SVG = "svg"


def analyze_command(
    runs: Annotated[Path, typer.Argument(help="Run table: .csv, .csv.gz or .parquet with the public column names.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the plots.")] = Path(
        "srsplan.analysis"
    ),
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Format of the plots.")] = ImageFormat.PNG,
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Draw nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON instead of tables.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of forests, folds and shuffles.")] = 0,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Do not merge rows that repeat a configuration.")
    ] = False,
    keep_collapsed: Annotated[
        bool, typer.Option("--keep-collapsed", help="Keep runs with NDCG@10 under 1% of the best of their dataset.")
    ] = False,
    keep_full: Annotated[
        bool, typer.Option("--keep-full", help="Rank full-softmax runs above all others in the Spearman tables.")
    ] = False,
) -> None:
    """Correlate the three knobs with quality, fit forests, and say which figures to trust."""
    from srsplan.planner.analysis.importance import AnalysisOptions
    from srsplan.planner.analysis.run_tables import RunOptions, load_runs

    table = load_runs(runs, RunOptions(keep_duplicates=keep_duplicates, keep_collapsed=keep_collapsed))
    if not no_plots:
        _prepare_folder(output)
    analysis = _analyze(table, AnalysisOptions(seed=seed, keep_full=keep_full))
    if as_json:
        console.print_json(analysis.to_json())
    else:
        _show(analysis, table)
    if not no_plots:
        _draw(analysis, table, output, image_format, quiet=as_json)


def _prepare_folder(folder: Path) -> None:
    """Refuse an unusable folder before the forests take their time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (
            "a file stands in its way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        )
        raise InputError(f"cannot make the folder {folder}: {reason}", "give another one with -o") from error


def _analyze(table: RunTable, options: AnalysisOptions) -> Analysis:
    """Analyse with a progress bar on stderr, one step per forest."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from srsplan.planner.analysis.importance import analyze

    columns = (TextColumn("fitting forests"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console.err, transient=True) as progress:
        task = progress.add_task("", total=None)
        done = -1

        def on_step(what: str, steps: int) -> None:
            nonlocal done
            done += 1
            progress.update(task, completed=done, total=steps, description=what)

        return analyze(table, options, on_step)


def _draw(analysis: Analysis, table: RunTable, folder: Path, image_format: ImageFormat, quiet: bool) -> None:
    from srsplan.planner.analysis.plots import draw_all

    paths = draw_all(analysis, table, folder, image_format.value)
    screen = console.err if quiet else console.out
    for path in paths:
        screen.print(f"plot: {path}", markup=False, soft_wrap=True)


def _show(analysis: Analysis, table: RunTable) -> None:
    from srsplan.planner.analysis.importance import METRICS

    datasets = len(table.datasets)
    console.out.print(
        f"{table.path}: {analysis.rows} runs of {datasets} dataset{'s' if datasets > 1 else ''}, "
        f"{analysis.rows_analysed} analysed.",
        markup=False,
    )
    console.out.print(_bullets(analysis.notes))
    for metric in METRICS:
        shown = _spearman_table(analysis, metric)
        if shown is not None:
            console.out.print("", shown)
    forests = [metric for metric in METRICS if _any_forest(analysis, metric)]
    if not forests:
        console.out.print("\nNo forest could be fitted.")
        return
    console.out.print("", _score_table(analysis, forests))
    console.out.print(
        "Do not trust in-sample R²: a forest remembers the rows it was fitted to. The other two are measured on "
        "runs it had not seen."
    )
    console.out.print("", _importance_table(analysis, forests), "")


def _bullets(notes: Sequence[str]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for note in notes:
        grid.add_row("  •", escape(note))
    return grid


def _any_forest(analysis: Analysis, metric: str) -> bool:
    return any(found.forest[metric] is not None for found in analysis.datasets.values())


def _new_table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("dataset", no_wrap=True, overflow="ellipsis", max_width=24)
    return table


def _add_row(table: Table, name: str, cells: list[str]) -> None:
    """One dataset; a line above the average, which is none."""
    from rich.markup import escape

    from srsplan.planner.analysis.importance import AVERAGE

    if name == AVERAGE:
        table.add_section()
    table.add_row(escape(name), *cells)


def _spearman_table(analysis: Analysis, metric: str) -> Table | None:
    """Rank correlations with one metric, the strongest of a row in bold; None when there is none."""
    from srsplan.planner.analysis.importance import FEATURE_LABELS, FEATURES, METRIC_LABELS

    rows = {name: found.spearman[metric] for name, found in analysis.datasets.items()}
    if all(value is None for values in rows.values() for value in values.values()):
        return None
    table = _new_table(f"Spearman's ρ with {METRIC_LABELS[metric]}")
    for feature in FEATURES:
        table.add_column(FEATURE_LABELS[feature], justify="right", min_width=6)
    for name, values in rows.items():
        strongest = max((abs(value) for value in values.values() if value is not None), default=math.inf)
        _add_row(table, name, [_correlation(values[feature], strongest) for feature in FEATURES])
    return table


def _correlation(value: float | None, strongest: float) -> str:
    if value is None:
        return "–"
    text = f"{value:+.2f}"
    return f"[bold cyan]{text}[/]" if abs(value) == strongest else text


def _score_table(analysis: Analysis, metrics: list[str]) -> Table:
    """R2 of three kinds; one column per metric, so that three metrics fit 80 characters."""
    from srsplan.planner.analysis.importance import METRIC_LABELS

    table = _new_table("R² of the forests: in-sample, out of bag (oob), 5-fold cross-validated (cv)")
    for metric in metrics:
        table.add_column(f"{METRIC_LABELS[metric]}\n[dim]   in[/]   oob    cv", no_wrap=True)
    for name, found in analysis.datasets.items():
        _add_row(table, name, [_scores(found.forest[metric]) for metric in metrics])
    return table


def _scores(fit: ForestFit | None) -> str:
    if fit is None:
        return "    –     –     –"
    return f"[dim]{fit.r2_in_sample:5.2f}[/] [bold]{fit.r2_out_of_bag:5.2f}[/] {fit.r2_cv:5.2f}"


def _importance_table(analysis: Analysis, metrics: list[str]) -> Table:
    from srsplan.planner.analysis.importance import METRIC_LABELS

    table = _new_table("What matters most: R² lost on held-out runs when a column is shuffled")
    for metric in metrics:
        table.add_column(METRIC_LABELS[metric])
    for name, found in analysis.datasets.items():
        _add_row(table, name, [_strongest(found, metric) for metric in metrics])
    return table


def _strongest(found: DatasetAnalysis, metric: str, count: int = 2) -> str:
    """The leading features of a forest with their permutation importance."""
    from srsplan.planner.analysis.importance import FEATURE_LABELS

    fit = found.forest[metric]
    if fit is None:
        return "–"
    leading = sorted(fit.permutation.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{FEATURE_LABELS[feature]} {value:.2f}" for feature, value in leading)
