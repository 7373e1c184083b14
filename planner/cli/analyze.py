"""`srsplan analyze`: what earlier runs say about batch size, sequence length and negatives."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srsplan.planner.cli import console

if TYPE_CHECKING:
    from srsplan.planner.analysis.importance import Analysis, AnalysisOptions
    from srsplan.planner.analysis.run_tables import RunTable

MOST_JOBS = 4
"""Processes that fit forests: of more, each would fit so few that its start is not worth it."""


class ImageFormat(str, Enum):
    """File formats of the plots."""

    PNG = "png"
    SVG = "svg"


def analyze_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS", help="Run tables (.csv, .csv.gz, .parquet), or folders of runs that `train` made."
        ),
    ],
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
    from srsplan.planner.analysis.forests import ForestOptions
    from srsplan.planner.analysis.importance import AnalysisOptions
    from srsplan.planner.analysis.run_tables import RunOptions, load_runs

    table = load_runs(runs, RunOptions(keep_duplicates=keep_duplicates, keep_collapsed=keep_collapsed))
    if not no_plots:
        _check_output(output, image_format)
    forests = ForestOptions(seed=seed, jobs=_jobs())
    analysis = _analyze(table, AnalysisOptions(forests=forests, keep_full=keep_full))
    _print(analysis, table, as_json)
    if not no_plots:
        _draw(analysis, table, output, image_format, quiet=as_json)


def _jobs() -> int:
    return min(MOST_JOBS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _check_output(folder: Path, image_format: ImageFormat) -> None:
    from srsplan.planner.analysis.pictures import NAMES
    from srsplan.planner.analysis.plots import check_folder

    check_folder(folder, NAMES, image_format.value)


def _analyze(table: RunTable, options: AnalysisOptions) -> Analysis:
    """Analyse with a progress bar on stderr, one step per forest."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from srsplan.planner.analysis.importance import analyze

    columns = (TextColumn("fitting forests"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console.err, transient=True) as progress:
        task = progress.add_task("", total=None)

        def on_step(what: str, steps: int) -> None:
            progress.update(task, advance=1, total=steps, description=console.markup(what))

        return analyze(table, options, on_step)


def _print(analysis: Analysis, table: RunTable, as_json: bool) -> None:
    from srsplan.planner.cli.analysis_screen import show

    if as_json:
        console.print_json({"source": table.source, "files": table.files, **analysis.to_json()})
    else:
        show(analysis, table)


def _draw(analysis: Analysis, table: RunTable, folder: Path, image_format: ImageFormat, quiet: bool) -> None:
    from srsplan.planner.analysis.pictures import draw_all
    from srsplan.planner.analysis.plots import write_pictures

    pictures = draw_all(analysis, table, image_format.value, _jobs())
    screen = console.err if quiet else console.out
    for path in write_pictures(pictures, folder, image_format.value):
        screen.print(console.plain(f"plot: {path}"), markup=False, soft_wrap=True)
