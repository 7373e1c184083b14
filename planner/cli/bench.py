"""`srsplan bench`: the loss kernels side by side, with the device's own limits, in one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from srsplan.planner.cli import bench_screen, console, options
from srsplan.profiler.bench.request import HELP, Asked, request_of

if TYPE_CHECKING:
    from srsplan.profiler.bench.bout import Bout
    from srsplan.profiler.bench.environment import Environment
    from srsplan.profiler.bench.results import Found


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Asked):
    """The options of `srsplan bench`, as typer reads them: those of `Asked`, with its defaults."""

    shapes: Annotated[str | None, typer.Option("--shapes", help=HELP["shapes"])] = Asked.shapes
    scale: Annotated[float | None, typer.Option("--scale", help=HELP["scale"])] = Asked.scale
    losses: Annotated[str, typer.Option("--losses", help=HELP["losses"])] = Asked.losses
    only: Annotated[str | None, typer.Option("--only", help=HELP["only"])] = Asked.only
    logits: Annotated[str, typer.Option("--logits", help=HELP["logits"])] = Asked.logits
    deviation: Annotated[str, typer.Option("--deviation", help=HELP["deviation"])] = Asked.deviation
    peers: Annotated[bool, typer.Option("--peers", help=HELP["peers"])] = Asked.peers
    dtype: Annotated[str | None, typer.Option("--dtype", help=HELP["dtype"])] = Asked.dtype
    device: Annotated[str, typer.Option("--device", help=HELP["device"])] = Asked.device
    repeats: Annotated[int | None, typer.Option("--repeats", help=HELP["repeats"])] = Asked.repeats
    kernels: Annotated[bool, typer.Option("--kernels", help=HELP["kernels"])] = Asked.kernels
    sweep: Annotated[bool, typer.Option("--sweep", help=HELP["sweep"])] = Asked.sweep
    minutes: Annotated[float, typer.Option("--minutes", help=HELP["minutes"])] = Asked.minutes
    output: Annotated[Path | None, typer.Option("-o", "--output", help=HELP["output"])] = Asked.output
    json: Annotated[bool, typer.Option("--json", help=HELP["json"])] = Asked.json


@options.options_of(BenchOptions)
def bench_command(asked: BenchOptions) -> None:
    """Time and memory of every form of the losses, beside eager PyTorch, others' kernels and the device's limits."""
    request = request_of(asked)

    from srsplan.profiler.bench.bout import run_bout  # torch
    from srsplan.profiler.bench.results import document_of

    with Screen(asked.json) as screen:
        report = run_bout(request, screen)
    if asked.json:
        console.print_json({**report.environment.document(), **document_of(report.found)})
    else:
        bench_screen.print_results(report.found)
    if report.failure is not None:
        raise report.failure


class Screen:
    """Shows how a bout goes: its head on stdout, unless JSON is wanted, and one bar on stderr."""

    def __init__(self, json: bool) -> None:
        columns = (
            TextColumn("contestants"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
        )  # fmt: skip
        self._json = json
        self._progress = Progress(*columns, console=console.err)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def introduced(self, bout: Bout, environment: Environment) -> None:
        """Print the hardware and the device's limits, say what is scaled down, and start the bar."""
        from srsplan.profiler.bench.lines import head_lines, scaled_line

        if bout.scaled:
            console.err.print(scaled_line(bout.scaled), soft_wrap=True, markup=False)
        if not self._json:
            console.out.print(head_lines(environment), markup=False, soft_wrap=True)
        self._progress.update(self._task, total=len(bout.matches))
        self._progress.start()

    def began(self, match: str) -> None:
        """Name what runs beside the bar."""
        self._progress.update(self._task, description=match)

    def finished(self, found: Found) -> None:
        """Advance the bar by a contestant."""
        from srsplan.profiler.bench.results import Result

        self._progress.advance(self._task, isinstance(found, Result))

    def warned(self, sentence: str) -> None:
        """Say above the bar what the file lacks."""
        self._progress.console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
