"""`srsplan predict`: what a trained run recommends to the users of a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srsplan.models.errors import InputError
from srsplan.planner.cli import console, data_progress, options

if TYPE_CHECKING:
    import pyarrow as pa

    from srsplan.models.prediction.predicting import Listener, PredictionOrder, PreparedPrediction

MOST_SHOWN = 20
"""Users whose recommendations are printed; more go into a file."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The options of the command line as they were given."""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that `train` made.")]
    data: Annotated[
        Path,
        typer.Option("--data", help="Interactions: csv(.gz), parquet or a folder of it, .inter, `user item` text."),
    ]
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .parquet or .csv file; without it a few users are printed.")
    ] = None
    top: Annotated[int, typer.Option("--top", "-k", help="Items for each user.")] = 10
    user: Annotated[list[str] | None, typer.Option("--user", help="One user; may be given several times.")] = None
    users: Annotated[Path | None, typer.Option("--users", help="Text with a user id a line; else all users.")] = None
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Recommend what is in a user's history as well.")] = (
        False
    )
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto"
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output where it exists.")] = False
    user_column: options.UserColumn = None
    item_column: options.ItemColumn = None
    timestamp_column: options.TimestampColumn = None
    json: options.Json = False


@options.options_of(PredictOptions)
def predict_command(asked: PredictOptions) -> None:
    """Recommend the best items to the users of a file, in the file's own ids."""
    from srsplan.models.prediction import predicting  # imports torch

    with data_progress.shown():
        prepared = predicting.prepare(_order(asked))
    users = len(prepared.histories.sequences)
    if asked.output is None and users > MOST_SHOWN:
        raise InputError(
            f"the recommendations of {users:,} users are too many to print", "name a file: -o recommendations.parquet"
        )
    if not asked.json:
        for note in prepared.histories.notes:
            console.err.print(note, style="dim", markup=False, soft_wrap=True)
    began = time.monotonic()
    with _bar() as listener:
        if asked.output is None:
            _print(prepared, list(predicting.tables(prepared, listener)), asked.json)
            return
        rows = predicting.write(prepared, listener)
    _report(prepared, rows, time.monotonic() - began, asked.json)


def _order(asked: PredictOptions) -> PredictionOrder:
    from srsplan.models.data.column_names import Columns
    from srsplan.models.prediction.predicting import PredictionOrder

    return PredictionOrder(
        run=asked.run,
        data=asked.data,
        columns=Columns(user=asked.user_column, item=asked.item_column, timestamp=asked.timestamp_column),
        best=asked.top,
        users=tuple(asked.user or ()),
        users_file=asked.users,
        keep_seen=asked.keep_seen,
        device=asked.device,
        output=asked.output,
        overwrite=asked.overwrite,
    )


@contextmanager
def _bar() -> Iterator[Listener]:
    """Show a bar of users on a terminal; it vanishes at the end."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("users"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("eta"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console.err, transient=True, disable=not console.err.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, users: progress.update(task, completed=done, total=users)


def _print(prepared: PreparedPrediction, parts: list[pa.Table], as_json: bool) -> None:
    """Print every row of a few users: one line a user with the items, best first, or JSON with scores."""
    rows = [row for part in parts for row in part.to_pylist()]
    if as_json:
        console.print_json({**_document(prepared, len(rows)), "recommendations": rows})
        return
    items: dict[Any, list[str]] = {}
    for row in rows:
        items.setdefault(row["user_id"], []).append(f"{row['item_id']} ({row['score']:.3f})")
    for user, found in items.items():
        console.out.print(f"{console.plain(user)}: {console.plain(', '.join(found))}", markup=False, soft_wrap=True)


def _report(prepared: PreparedPrediction, rows: int, seconds: float, as_json: bool) -> None:
    from srsplan.models.units import format_duration

    if as_json:
        console.print_json({**_document(prepared, rows), "seconds": seconds})
        return
    users = len(prepared.histories.sequences)
    console.out.print(
        f"{users:,} users, {rows:,} rows in {format_duration(seconds)}: {console.plain(prepared.order.output)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _document(prepared: PreparedPrediction, rows: int) -> dict[str, Any]:
    order, output = prepared.order, prepared.order.output
    return {
        "run": str(order.run),
        "data": str(order.data),
        "output": None if output is None else str(output),
        "k": order.best,
        "seen_items_filtered": not order.keep_seen,
        "users": len(prepared.histories.sequences),
        "rows": rows,
        "notes": list(prepared.histories.notes),
    }
