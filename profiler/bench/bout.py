"""The whole comparison: contestants on shapes, one result after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from srsplan.models.errors import SrsplanError
from srsplan.models.training.device import find_device
from srsplan.models.training.step import DTYPES
from srsplan.profiler.bench import limits
from srsplan.profiler.bench.ceilings import times_the_floor
from srsplan.profiler.bench.contestants import Contestant, contestants
from srsplan.profiler.bench.environment import Environment, free_bytes, measure_environment
from srsplan.profiler.bench.inputs import Inputs, make_inputs
from srsplan.profiler.bench.measuring import Measurement, failure, measure, not_run, release
from srsplan.profiler.bench.peers import peers
from srsplan.profiler.bench.results import Result, ResultsFile, check_results_file
from srsplan.profiler.bench.shapes import SHAPES, Shape

CPU_SHAPES = (
    Shape(name="2048x20Kx64x128", tokens=2048, catalog=20_000, dim=64, negatives=128),
    Shape(name="1024x5Kx256x512", tokens=1024, catalog=5000, dim=256, negatives=512),
)
"""Shapes that are compared on a CPU where nobody names any."""
CPU_SCALE = 0.01
"""Share of the named shapes, whose whole would take a CPU minutes to hours."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The comparison that a user wants."""

    shapes: Sequence[Shape]
    """The shapes by name or size; empty takes those of the device."""
    scale: float | None
    """Share of the shapes' tokens and items; None takes all, and on a CPU a hundredth of the named ones."""
    losses: Sequence[str]
    """Names of `contestants.COMPARED`."""
    logits: Sequence[str]
    """Kinds of logits, "random" and "trained"; see `make_inputs`."""
    peers: bool
    dtype: str | None
    """The compute type; None takes fp16, and on a CPU fp32."""
    device: str
    repeats: int | None
    """Repeats of every contestant; None takes as many as a second allows."""
    output: Path | None = None
    """The CSV file that every result goes to."""


@dataclass(frozen=True, kw_only=True)
class Bout:
    """The comparison that a request comes to on this machine."""

    shapes: Sequence[Shape]
    logits: Sequence[str]
    entrants: Sequence[Contestant]
    dtype: torch.dtype
    device: torch.device
    repeats: int | None = None
    scaled: Sequence[str] = ()
    """Named shapes that are scaled down without being asked."""

    @property
    def matches(self) -> int:
        """The number of results that there will be."""
        return len(self.shapes) * len(self.logits) * len(self.entrants)


class Listener(Protocol):
    """Listener that is told how a bout goes."""

    def introduced(self, bout: Bout, environment: Environment) -> None:
        """Note that everything is checked, and that the device's limits are measured."""

    def began(self, match: str) -> None:
        """Note that a contestant, or the making of inputs, begins."""

    def finished(self, result: Result) -> None:
        """Note that a result is there, and on disk where a file is wanted."""

    def warned(self, sentence: str) -> None:
        """Note that the file of results cannot be written any more."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A bout's results."""

    environment: Environment
    results: Sequence[Result]
    failure: SrsplanError | None
    """Error that kept results out of the file that was asked for; None where all of them are in it."""


def run_bout(request: Request, listener: Listener) -> Report:
    """Run the comparison; each result is on disk before the next begins.

    InputError, before any work, for a file that cannot be made, for shapes that do not fit in memory, and for what
    would take hours.
    """
    bout = make_bout(request)
    environment = measure_environment(bout.dtype, bout.device)
    limits.check_time(bout.shapes, len(bout.logits), bout.entrants, environment.ceilings, bout.repeats)
    listener.introduced(bout, environment)
    results = []
    with ResultsFile(request.output) as file:
        for found in run_all(bout, lambda: free_bytes(bout.device), listener.began):
            results.append(Result(measured=found, times_the_floor=times_the_floor(found, environment.ceilings)))
            before = file.failure
            file.add({**results[-1].row(), **environment.origin()})
            if file.failure is not None and before is None:
                listener.warned(file.failure.message)
            listener.finished(results[-1])
    return Report(environment=environment, results=results, failure=file.failure)


def make_bout(request: Request) -> Bout:
    """Find the device, the shapes and the contestants, and check that they can be had."""
    limits.check_repeats(request.repeats)
    if request.output is not None:
        check_results_file(request.output)
    device = find_device(request.device)
    on_cpu = device.type == "cpu"
    shapes, scaled = chosen_shapes(request, on_cpu)
    dtype = DTYPES[request.dtype or ("fp32" if on_cpu else "fp16")]
    limits.check_memory(shapes, dtype, free_bytes(device))
    entrants = [*contestants(device), *(peers(device) if request.peers else ())]
    return Bout(
        shapes=shapes,
        logits=request.logits,
        entrants=[each for each in entrants if each.loss.name in request.losses],
        dtype=dtype,
        device=device,
        repeats=request.repeats,
        scaled=scaled,
    )


def chosen_shapes(request: Request, on_cpu: bool) -> tuple[list[Shape], list[str]]:
    """Return the shapes as they are compared, and the names of those that are scaled down without being asked."""
    shapes = list(request.shapes or (CPU_SHAPES if on_cpu else SHAPES.values()))
    if request.scale is not None:
        return [shape.scaled(request.scale) for shape in shapes], []
    named = [shape.name for shape in shapes if shape.name in SHAPES] if on_cpu else []
    return [shape.scaled(CPU_SCALE) if shape.name in named else shape for shape in shapes], named


def run_all(bout: Bout, free: Callable[[], int], announce: Callable[[str], object]) -> Iterator[Measurement]:
    """Yield one measurement after another; `free` says what bytes the device has left, `announce` what begins."""
    for shape in bout.shapes:
        for logits in bout.logits:
            yield from _round(bout, shape, logits, free, announce)


def _round(
    bout: Bout, shape: Shape, logits: str, free: Callable[[], int], announce: Callable[[str], object]
) -> Iterator[Measurement]:
    """Yield the measurement of every contestant on the same inputs; a failure to make them is everyone's result."""
    announce(f"{shape.name}: {logits} inputs")
    try:
        inputs = make_inputs(shape, logits, bout.dtype, bout.device)
    except Exception as error:  # out of memory, or a device that an earlier contestant has broken
        yield from _without_inputs(bout, shape, logits, error)
        return
    finally:
        release(bout.device)
    yield from _with_inputs(bout, shape, logits, inputs, free, announce)


def _without_inputs(bout: Bout, shape: Shape, logits: str, error: Exception) -> Iterator[Measurement]:
    why = failure(error)
    for entrant in bout.entrants:
        found = not_run(entrant, shape, logits, bout.dtype)
        reason = f"making the inputs: {why['reason']}"
        yield found if found.reason else replace(found, status=why["status"], reason=reason)


def _with_inputs(
    bout: Bout, shape: Shape, logits: str, inputs: Inputs, free: Callable[[], int], announce: Callable[[str], object]
) -> Iterator[Measurement]:
    reference = None
    for entrant in bout.entrants:
        announce(f"{shape.name}: {entrant.name}")
        found = measure(entrant, inputs, shape, logits, free, bout.repeats)
        if not found.loss.sampled and found.value is not None:
            reference = reference or found.value
            found = replace(found, loss_error=abs(found.value - reference) / max(abs(reference), 1e-30))
        yield found
