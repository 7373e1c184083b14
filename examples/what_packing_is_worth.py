"""What packing is worth: rank 1 of `recommend` on a small budget, before batches were packed and now, side by side.

    python examples/what_packing_is_worth.py datasets.csv [video.txt ml-100k.inter ...]

The figures before are in without_packing_2026-11-21.csv: rectangles of batch size x length, one for each part of a
batch, planned by the commit before packing for the same data and budgets (GeForce cards of 8 and 12 GB). `datasets.csv`
has the columns dataset, items, users and mean_length; files of interactions are read as `recommend --data` does. Prints
a table in Markdown: expected bytes of the GPU, calculated times.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from srsplan.models.errors import NothingFits
from srsplan.models.units import format_duration, format_gib
from srsplan.planner import api

BEFORE = Path(__file__).parent / "without_packing_2026-11-21.csv"
COLUMNS = ("data", "budget", "before", "expected", "epoch", "now", "pass x passes", "expected", "epoch")


def questions(datasets: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """What is known of every data set, as arguments of `plan`."""
    known: dict[str, dict[str, Any]] = {path.name: {"data": path} for path in files}
    with datasets.open() as lines:
        for row in csv.DictReader(lines):
            known[row["dataset"]] = {
                "catalog": int(row["items"]), "users": int(row["users"]), "mean_length": float(row["mean_length"])
            }  # fmt: skip
    return known


def before_cells(row: dict[str, str]) -> list[str]:
    """The choice of a line of the file of figures."""
    negatives = f", ns {int(row['negatives']):,}" if row["negatives"] else ""
    knobs = f"{row['loss']} {int(row['batch_size']):,} x {row['seq_len']}{negatives}"
    return [knobs, format_gib(float(row["expected_bytes"])), format_duration(float(row["epoch_seconds"]))]


def now_cells(question: dict[str, Any], gigabytes: str) -> list[str]:
    """The first choice of the present code."""
    try:
        choice = api.plan(budget=f"{gigabytes}GB", **question).choices[0]
    except NothingFits:
        return ["nothing fits", "", "", ""]
    negatives = "" if choice.negatives is None else f", ns {choice.negatives:,}"
    knobs = f"{choice.loss} {choice.batch_size:,} x {choice.seq_len}{negatives}"
    passes = f"{choice.pass_tokens:,} x {choice.passes}"
    return [knobs, passes, format_gib(choice.memory.reserved_bytes), format_duration(choice.epoch_seconds or 0.0)]


def main(
    datasets: Annotated[Path, typer.Argument(help="A table of data sets.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Files of interactions.")] = None,
) -> None:
    """One line for each data set and budget."""
    known = questions(datasets, files or [])
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with BEFORE.open() as lines:
        for row in csv.DictReader(lines):
            if row["data"] in known:
                cells = [*before_cells(row), *now_cells(known[row["data"]], row["budget_gb"])]
                print(f"| {' | '.join([row['data'], row['budget_gb'] + ' GB', *cells])} |")


if __name__ == "__main__":
    typer.run(main)
