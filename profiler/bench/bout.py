"""The whole comparison: contestants on shapes, one result after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.training.device import find_device
from srsplan.models.training.step import DTYPES
from srsplan.profiler.bench import limits
from srsplan.profiler.bench.ceilings import Ceilings, times_the_floor
from srsplan.profiler.bench.contestants import Contestant, chosen, contestants
from srsplan.profiler.bench.environment import Environment, free_bytes, measure_environment
from srsplan.profiler.bench.inputs import Inputs, make_inputs
from srsplan.profiler.bench.kernel_times import KernelTime, kernel_times
from srsplan.profiler.bench.logits import Logits, largest
from srsplan.profiler.bench.measuring import Call, Measurement, failure, measure, not_run, release
from srsplan.profiler.bench.peers import peers
from srsplan.profiler.bench.request import Asked, Request
from srsplan.profiler.bench.results import Found, Result, ResultsFile, check_results_file, line_of
from srsplan.profiler.bench.shapes import SHAPES, Shape
from srsplan.profiler.bench.sweep import LaunchTime, launch_times

CPU_SHAPES = (
    Shape(name="2048x20Kx64x128", tokens=2048, catalog=20_000, dim=64, negatives=128),
    Shape(name="1024x5Kx256x512", tokens=1024, catalog=5000, dim=256, negatives=512),
)
"""Shapes that are compared on a CPU where nobody names any."""
CPU_SCALE = 0.01
"""Share of the named shapes, whose whole would take a CPU minutes to hours."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Contestants that are given the same inputs."""

    shape: Shape
    logits: Logits
    entrants: Sequence[Contestant]


@dataclass(frozen=True, kw_only=True)
class Bout:
    """The comparison that a request comes to on this machine."""

    shapes: Sequence[Shape]
    logits: Sequence[Logits]
    entrants: Sequence[Contestant]
    dtype: torch.dtype
    device: torch.device
    repeats: int | None = None
    kernels: bool = False
    sweep: bool = False
    minutes: float = Asked.minutes
    scaled: Sequence[str] = ()
    """Named shapes that are scaled down without being asked."""

    def rounds(self, shape: Shape) -> Iterator[Round]:
        """Yield the rounds of a shape. Sampled forms skip nothing: of random logits they take one deviation."""
        for logits in self.logits:
            given: dict[Shape, list[Contestant]] = {}
            for each in self.entrants:
                if not each.loss.sampled or logits in largest(self.logits):
                    given.setdefault(shape.given_to(each.loss), []).append(each)
            for to_all, entrants in given.items():
                yield Round(shape=to_all, logits=logits, entrants=entrants)

    @property
    def matches(self) -> list[tuple[Shape, Contestant]]:
        """Every contestant on every shape and kind of logits that it is given."""
        rounds = (each for shape in self.shapes for each in self.rounds(shape))
        return [(each.shape, entrant) for each in rounds for entrant in each.entrants]


class Listener(Protocol):
    """Listener that is told how a bout goes."""

    def introduced(self, bout: Bout, environment: Environment) -> None:
        """Note that everything is checked, and that the device's limits are measured."""

    def began(self, match: str) -> None:
        """Note that a contestant, or the making of inputs, begins."""

    def finished(self, found: Found) -> None:
        """Note that a result is there, and on disk where a file is wanted."""

    def warned(self, sentence: str) -> None:
        """Note that the file of results cannot be written any more."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A bout's results."""

    environment: Environment
    found: Sequence[Found]
    failure: SrsplanError | None
    """Error that kept results out of the file that was asked for; None where all of them are in it."""


def run_bout(request: Request, listener: Listener) -> Report:
    """Run the comparison; each result is on disk before the next begins.

    InputError, before any work, for a file that cannot be made, for shapes that do not fit in memory, and for what
    would take hours.
    """
    bout = make_bout(request)
    environment = measure_environment(bout.dtype, bout.device)
    limits.check_time(bout.matches, environment.ceilings, bout.repeats)
    listener.introduced(bout, environment)
    every = []
    with ResultsFile(request.output) as file:
        for each in run_all(bout, lambda: free_bytes(bout.device), listener.began):
            every.append(_beside_the_floor(each, environment.ceilings))
            before = file.failure
            file.add({**line_of(every[-1]), **environment.origin()})
            if file.failure is not None and before is None:
                listener.warned(file.failure.message)
            listener.finished(every[-1])
    return Report(environment=environment, found=every, failure=file.failure)


def _beside_the_floor(found: Measurement | KernelTime | LaunchTime, ceilings: Ceilings) -> Found:
    if isinstance(found, Measurement):
        return Result(measured=found, times_the_floor=times_the_floor(found, ceilings))
    return found


def make_bout(request: Request) -> Bout:
    """Find the device, the shapes and the contestants, and check that they can be had."""
    limits.check_repeats(request.repeats)
    if request.output is not None:
        check_results_file(request.output)
    device = find_device(request.device)
    on_cpu = device.type == "cpu"
    shapes, scaled = chosen_shapes(request, on_cpu)
    bout = Bout(
        shapes=shapes,
        logits=request.logits,
        entrants=_entrants(request, device),
        dtype=DTYPES[request.dtype or ("fp32" if on_cpu else "fp16")],
        device=device,
        repeats=request.repeats,
        kernels=request.kernels,
        sweep=request.sweep,
        minutes=request.minutes,
        scaled=scaled,
    )
    limits.check_memory({shape: None for shape, _ in bout.matches}, bout.dtype, free_bytes(device))
    return bout


def _entrants(request: Request, device: torch.device) -> list[Contestant]:
    """Return the contestants that are asked for; InputError where a sweep would have nothing to time."""
    pool = [*contestants(device), *(peers(device) if request.peers else ())]
    entrants = chosen([each for each in pool if each.loss.name in request.losses], request.only)
    if request.sweep and not any(each.on_triton and each.run is not None for each in entrants):
        raise InputError(
            f"--sweep: none of the contestants is a Triton kernel that runs on {device.type}",
            "leave it out; on a GPU, --only triton takes those that have launches",
        )
    return entrants


def chosen_shapes(request: Request, on_cpu: bool) -> tuple[list[Shape], list[str]]:
    """Return the shapes as they are compared, and the names of those that are scaled down without being asked."""
    shapes = list(request.shapes or (CPU_SHAPES if on_cpu else SHAPES.values()))
    limits.check_count(shapes)
    if request.scale is not None:
        return [shape.scaled(request.scale) for shape in shapes], []
    named = [shape.name for shape in shapes if shape.name in SHAPES] if on_cpu else []
    return [shape.scaled(CPU_SCALE) if shape.name in named else shape for shape in shapes], named


def run_all(
    bout: Bout, free: Callable[[], int], announce: Callable[[str], object]
) -> Iterator[Measurement | KernelTime | LaunchTime]:
    """Yield one finding after another; `free` says what bytes the device has left, `announce` what begins."""
    for shape in bout.shapes:
        hall = _Hall(bout, free, announce)
        for each in bout.rounds(shape):
            yield from hall.round(each)


def _error(value: float, reference: float | None) -> float | None:
    return None if reference is None else abs(value - reference) / max(abs(reference), 1e-30)


class _Hall:
    """The place of a shape's rounds: what they share, and the clock that runs meanwhile."""

    def __init__(self, bout: Bout, free: Callable[[], int], announce: Callable[[str], object]) -> None:
        self._bout, self._free, self._announce = bout, free, announce
        self._ends = time.monotonic() + 60 * bout.minutes

    def late(self) -> str:
        """Return the reason why nothing more may begin; "" while it may."""
        if time.monotonic() < self._ends:
            return ""
        return f"the {self._bout.minutes:g} minutes of a shape were over: give more --minutes, or --only some"

    def round(self, each: Round) -> Iterator[Measurement | KernelTime | LaunchTime]:
        """Yield what is found of every contestant; a failure to make the inputs is everyone's result."""
        if late := self.late():
            yield from self._without_inputs(each, {"status": "late", "reason": late})
            return
        self._announce(f"{each.shape.name}: {each.logits.title}")
        try:
            inputs = make_inputs(each.shape, each.logits, self._bout.dtype, self._bout.device)
        except Exception as error:  # out of memory, or a device that an earlier contestant has broken
            why = failure(error)
            yield from self._without_inputs(each, {**why, "reason": f"making the inputs: {why['reason']}"})
            return
        finally:
            release(self._bout.device)
        yield from self._with_inputs(each, inputs)

    def _without_inputs(self, each: Round, why: dict[str, Any]) -> Iterator[Measurement]:
        for entrant in each.entrants:
            found = not_run(entrant, each.shape, each.logits, self._bout.dtype)
            yield found if found.reason else replace(found, **why)

    def _with_inputs(self, each: Round, inputs: Inputs) -> Iterator[Measurement | KernelTime | LaunchTime]:
        reference = None
        for entrant in each.entrants:
            if late := self.late():
                yield from self._without_inputs(replace(each, entrants=[entrant]), {"status": "late", "reason": late})
                continue
            self._announce(f"{each.shape.name}: {entrant.label}")
            found = measure(entrant, inputs, each.shape, each.logits, self._free, self._bout.repeats)
            if not found.loss.sampled and found.value is not None:
                reference = reference or (None if entrant.on_triton else found.value)
                found = replace(found, loss_error=_error(found.value, reference))
            yield found
            if entrant.run is not None and found.status == "ok":
                yield from self._within(entrant, found, Call(entrant.run, inputs, each.shape))

    def _within(self, entrant: Contestant, found: Measurement, call: Call) -> Iterator[KernelTime | LaunchTime]:
        """Yield what is asked for of a contestant's kernels."""
        if self._bout.kernels:
            yield from kernel_times(found, call)
        if self._bout.sweep and entrant.on_triton:
            self._announce(f"{found.shape.name}: launches of {entrant.label}")
            yield from launch_times(found, call, self.late)
        release(self._bout.device)
