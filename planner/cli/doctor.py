"""`srsplan doctor`: does everything work on this machine, and is what it takes what srsplan predicts?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from srsplan.kernels.losses import PLANNED
from srsplan.models.checks import find_loss
from srsplan.models.config import Precision
from srsplan.models.errors import InputError
from srsplan.planner.cli import console, options

if TYPE_CHECKING:
    from rich.table import Table

    from srsplan.planner.doctor import Report

LONGEST_TIMEOUT_S = 86_400.0
MARKS = {"good": "[green]good[/]", "not good": "[bold red]not good[/]", "not checked": "[dim]not checked[/]"}
NOT_GOOD = 1
"""Exit code where something that was checked is not good."""


def doctor_command(
    losses: Annotated[str, typer.Option("--losses", help="Comma-separated.")] = ",".join(PLANNED),
    dim: options.Dim = 256,
    precision: options.PrecisionOption = "fp16",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds after which a single check is ended.")] = 300.0,
    json: options.Json = False,
) -> None:
    """Check this machine: versions, card, memory against its prediction, kernels; exit code 1 if one is not good."""
    from srsplan.planner.examination import Wanted, bench_here, examine

    if not 0 < timeout <= LONGEST_TIMEOUT_S:
        raise InputError(f"--timeout {timeout:g} is not above zero and at most a day", "300 seconds are usual")
    wanted = Wanted(
        losses=tuple(dict.fromkeys(find_loss(name.strip()).name for name in losses.split(","))),
        dim=dim,
        precision=cast(Precision, precision),
        timeout_s=timeout,
    )
    for loss in wanted.losses:
        wanted.configuration(loss)  # refuses impossible sizes before anything is looked at
    report = examine(wanted, bench_here(timeout), lambda sentence: console.err.print(sentence, style="dim"))
    if json:
        console.print_json(report.document())
    else:
        show(report)
    if not report.good:
        raise typer.Exit(NOT_GOOD)


def show(report: Report) -> None:
    """Print the table, then what to do about each line that is not good."""
    console.out.print(table_of(report))
    for line in report.lines:
        if line.status == "not good":
            console.out.print(f"[bold]{console.markup(line.name)}[/]: {console.markup(line.advice)}", soft_wrap=True)
    skipped = sum(line.status == "not checked" for line in report.lines)
    checked = "everything that was checked is good" if report.good else "not everything is good"
    console.out.print(f"{checked}; {skipped} not checked" if skipped else checked, style="bold")


def table_of(report: Report) -> Table:
    """Return a table with a section for each topic."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=True)
    for name in ("", "found", ""):
        table.add_column(name, overflow="fold", no_wrap=name == "")
    topic = ""
    for line in report.lines:
        if line.topic != topic:
            topic = line.topic
            table.add_row(f"[bold]{topic}[/]")
        table.add_row(f"  {console.markup(line.name)}", console.markup(line.found), MARKS[line.status])
    return table
