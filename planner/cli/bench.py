"""`srsplan bench`: the loss kernels side by side, with the device's own limits, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from srsplan.kernels.losses import CE, CE_NEG
from srsplan.models.errors import InputError
from srsplan.models.units import parse_count
from srsplan.planner.cli import bench_screen, console, options
from srsplan.profiler.bench.shapes import SHAPES, Shape

if TYPE_CHECKING:
    from srsplan.profiler.bench.bout import Bout
    from srsplan.profiler.bench.environment import Environment
    from srsplan.profiler.bench.results import Result

LOSSES = (CE.name, CE_NEG.name)
LOGITS = ("random", "trained")
DTYPES = ("fp16", "bf16", "fp32")
EXAMPLE = "2048x20Kx64x128"


def bench_command(
    shapes: Annotated[
        str | None, typer.Option("--shapes", help="ml20m, beauty, gowalla, zvuk, 30music, megamarket, or MxVxDxNS.")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Share of the shapes' tokens and items; on a CPU 0.01 of the named ones."),
    ] = None,
    losses: Annotated[str, typer.Option("--losses", help="ce (full softmax), ce- (sampled), or ce,ce-.")] = "ce,ce-",
    logits: Annotated[str, typer.Option("--logits", help="random, trained, or both.")] = "both",
    peers: Annotated[bool, typer.Option("--peers", help="Also what others publish, where it is installed.")] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="fp16, bf16 or fp32; on a CPU fp32.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Times each is timed [default: 3 to 50, about a second].")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="CSV file that every result goes to.")] = None,
    json: options.Json = False,
) -> None:
    """Time and memory of every form of the losses, beside eager PyTorch, others' kernels and the device's limits."""
    from srsplan.profiler.bench.bout import Request, run_bout

    if scale is not None and not 0 < scale <= 1:
        raise InputError(f"--scale {scale:g} is outside (0, 1]", "0.1 takes a tenth of the tokens and of the items")
    request = Request(
        shapes=[parse_shape(each) for each in shapes.split(",")] if shapes is not None else [],
        scale=scale,
        losses=_chosen("--losses", losses, LOSSES),
        logits=_chosen("--logits", ",".join(LOGITS) if logits.strip() == "both" else logits, LOGITS),
        peers=peers,
        dtype=None if dtype is None else _one_of("--dtype", dtype, DTYPES),
        device=device,
        repeats=repeats,
        output=output,
    )
    with Screen(json) as screen:
        report = run_bout(request, screen)
    if json:
        rows = [result.row() for result in report.results]
        console.print_json({**report.environment.document(), "results": rows})
    else:
        bench_screen.print_results(report.results)
    if report.failure is not None:
        raise report.failure


def _chosen(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        _one_of(option, name, known)
    return names


def _one_of(option: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise InputError(f"unknown {option} {name!r}", f"known are {', '.join(known)}")
    return name


def parse_shape(text: str) -> Shape:
    """Parse a named shape or MxVxDxNS, counts such as 20K allowed; InputError otherwise."""
    if text.strip() in SHAPES:
        return SHAPES[text.strip()]
    parts = text.strip().split("x")
    if len(parts) != 4:
        raise InputError(
            f"unknown shape {text!r}",
            f"named ones are {', '.join(SHAPES)}; or tokens x items x dim x negatives: {EXAMPLE}",
        )
    tokens, catalog, dim, negatives = (parse_count(part, "--shapes") for part in parts)
    if negatives >= catalog:
        raise InputError(f"shape {text!r}: {negatives} negatives of {catalog} items", "give fewer negatives than items")
    if dim % 8:
        raise InputError(f"shape {text!r}: dim {dim} is no multiple of 8", f"use {dim // 8 * 8 + 8}")
    return Shape(name=text.strip(), tokens=tokens, catalog=catalog, negatives=negatives, dim=dim)


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
        if bout.scaled:
            console.err.print(bench_screen.scaled_line(bout.scaled), soft_wrap=True, markup=False)
        if not self._json:
            console.out.print(bench_screen.head_lines(environment), markup=False, soft_wrap=True)
        self._progress.update(self._task, total=bout.matches)
        self._progress.start()

    def began(self, match: str) -> None:
        """Name what runs beside the bar."""
        self._progress.update(self._task, description=match)

    def finished(self, result: Result) -> None:
        """Advance the bar."""
        self._progress.advance(self._task)

    def warned(self, sentence: str) -> None:
        """Say above the bar what the file lacks."""
        self._progress.console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
