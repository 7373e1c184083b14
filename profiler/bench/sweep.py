"""Every launch that a Triton kernel may have, timed on a contestant's own tensors.

A contestant runs once while its kernels are noted, each with the function that starts it by another launch. They are
then started alone, one launch after another: what is timed is the kernel, not the operator around it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from srsplan.kernels.launches.autotune import Key, candidates
from srsplan.kernels.launches.table import Launch
from srsplan.profiler.bench.measuring import Call, Measurement, Status, failure
from srsplan.profiler.bench.timing import times, wait

Timer = Callable[[Callable[[], object]], float]
"""Milliseconds of a call that has been made before."""


@dataclass(frozen=True, kw_only=True)
class LaunchTime:
    """A launch of a kernel, on the tensors of a contestant."""

    of: Measurement
    kernel: str
    launch: Launch | None
    """None where the kernel could not be noted at all."""
    status: Status = "ok"
    reason: str = ""
    """What the compiler or the card had against it."""
    kernel_ms: float | None = None
    of_table: bool = False
    """True for the launch that the table has, which everybody gets."""
    best: bool = False
    """True for the fastest, which is said once more after all of its kernel."""


@dataclass(frozen=True)
class Started:
    """A kernel that a contestant started."""

    kernel: str
    launches: tuple[Launch, ...]
    """The table's launch first, then the others that it may have."""
    run: Callable[[Launch], object]


def launch_times(found: Measurement, call: Call, late: Callable[[], str]) -> Iterator[LaunchTime]:
    """Yield a row for every launch of every kernel; `late` says why nothing more may begin, "" while it may."""
    try:
        with noted() as kernels:
            call.both()
    except Exception as error:  # it has run before: the card is broken
        yield LaunchTime(of=found, kernel="", launch=None, **failure(error))
        return
    for each in kernels:
        yield from swept(found, each, late, lambda run: statistics.median(times(run, call.device)), call.device)


@contextmanager
def noted() -> Iterator[list[Started]]:
    """Note every kernel that is started within, once each; it gets the launch of the table."""
    from srsplan.kernels.launches import call  # Triton is not installed everywhere

    found: dict[str, Started] = {}
    kernels: list[Started] = []

    def launch_on(
        device: torch.device, key: Key, default: Launch, run: Callable[[Launch], object], *tiles: Any, **more: Any
    ) -> tuple[Launch, bool]:
        if key.kernel not in found:
            found[key.kernel] = Started(key.kernel, tuple(candidates(default, *tiles, **more)), run)
            kernels.append(found[key.kernel])
        return default, False

    with patch.object(call, "launch_on", launch_on):
        yield kernels


def swept(
    found: Measurement, each: Started, late: Callable[[], str], timer: Timer, device: torch.device
) -> Iterator[LaunchTime]:
    """Yield a row for every launch of a kernel, and the fastest once more."""
    rows = []
    for number, launch in enumerate(each.launches):
        row = LaunchTime(of=found, kernel=each.kernel, launch=launch, of_table=number == 0)
        if reason := late():
            yield replace(row, status="late", reason=reason)
            break
        rows.append(replace(row, **_timed(each.run, launch, timer, device)))
        yield rows[-1]
    ran = [(row.kernel_ms, number) for number, row in enumerate(rows) if row.kernel_ms is not None]
    if ran:
        yield replace(rows[min(ran)[1]], best=True)


def _timed(run: Callable[[Launch], object], launch: Launch, timer: Timer, device: torch.device) -> dict[str, Any]:
    try:
        run(launch)  # compiled before the clock starts
        wait(device)
        return {"kernel_ms": timer(lambda: run(launch))}
    except Exception as error:  # the compiler's and the driver's refusals have no common type
        return failure(error)
