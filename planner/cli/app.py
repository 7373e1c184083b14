"""The command line: one typer application, one edge where errors become exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from srsplan.models.errors import SrsplanError
from srsplan.planner.cli import console
from srsplan.planner.cli.analyze import analyze_command
from srsplan.planner.cli.bench import bench_command
from srsplan.planner.cli.estimate import estimate_command
from srsplan.planner.cli.gpus import gpus_command
from srsplan.planner.cli.profile import profile_command
from srsplan.planner.cli.recommend import recommend_command
from srsplan.planner.cli.train import train_command

app = typer.Typer(
    name="srsplan",
    help="Plan, measure and train sequential recommenders within a GPU memory budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"srsplan {version('srsplan')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Plan, measure and train sequential recommenders within a GPU memory budget."""


app.command("recommend")(recommend_command)
app.command("estimate")(estimate_command)
app.command("profile")(profile_command)
app.command("train")(train_command)
app.command("gpus")(gpus_command)
app.command("analyze")(analyze_command)
app.command("bench")(bench_command)


def main() -> None:
    """Run the command line; translate every srsplan error into one message and its exit code."""
    try:
        app()
    except SrsplanError as error:
        console.print_error(error)
        sys.exit(error.exit_code)
