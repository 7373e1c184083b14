"""`srsplan compare`: configurations x data x seeds, trained and compared."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from srsplan.models.errors import InputError, MissingExtra, SrsplanError
from srsplan.planner.cli import console
from srsplan.planner.cli.options import Json
from srsplan.planner.comparison.scheduling import MOST_JOBS

NEEDED = ("torch", "matplotlib", "scipy", "statsmodels", "scikit_posthocs")
"""Packages without which the tables could not be made after hours of training."""


def compare_command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A YAML file with data, seeds and runs: docs/compare.md"),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder; else the file's, or its own name.")
    ] = None,
    jobs: Annotated[
        str, typer.Option("--jobs", help="Runs at once; auto: one a core, on a GPU as many as its memory holds.")
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train again what lies there with other options than the file's.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make the tables from the runs that have ended; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train many configurations with several seeds, each run once, and say which differences can be trusted."""
    _check_packages()
    at_once = _jobs(jobs)
    from srsplan.planner.cli.compare_runs import compare, report  # imports torch
    from srsplan.planner.cli.compare_screen import show

    done = report(file, output) if report_only else compare(file, output, at_once, overwrite=overwrite)
    if as_json:
        console.print_json(done.document)
    else:
        show(done)
    if done.failed:
        raise SrsplanError(
            f"{len(done.failed)} of {done.asked} runs failed", "mend what their messages name; what has ended is kept"
        )


def _check_packages() -> None:
    missing = next((name for name in NEEDED if find_spec(name) is None), None)
    if missing is not None:
        raise MissingExtra(missing.replace("scikit_", "scikit-"), "compare", "`srsplan compare`")


def _jobs(text: str) -> int | None:
    """Return how many runs are to be started at once; None for as many as seem right."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= MOST_JOBS):
        raise InputError(f"--jobs {text[:80]!r} is no number of runs", f"give 1 to {MOST_JOBS}, or auto")
    return int(text)
