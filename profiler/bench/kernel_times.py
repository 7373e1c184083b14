"""The time of each kernel of a contestant, as the card's own profiler sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from srsplan.profiler.bench.measuring import Call, Measurement, Status, failure

PROFILED_CALLS = 3
LONGEST_NAME = 200
"""Characters of a kernel's name that are kept: templates of C++ have thousands."""
UNAVAILABLE = "times of kernels are not available on a CPU: they want a GPU"


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """A kernel within one forward and backward of a contestant."""

    of: Measurement
    status: Status = "ok"
    reason: str = ""
    kernel: str = ""
    calls: float | None = None
    """Its launches within one forward and backward."""
    kernel_ms: float | None = None
    """Milliseconds of all of them together."""
    share: float | None = None
    """Their share of the time of all kernels."""


class Event(Protocol):
    """The part of a profiler's event that is read."""

    name: str
    device_type: DeviceType
    is_user_annotation: bool

    @property
    def time_range(self) -> Interval:
        """The time that it took."""
        ...


class Interval(Protocol):
    """A part of the profiler's time."""

    def elapsed_us(self) -> float:
        """Return microseconds."""
        ...


def kernel_times(found: Measurement, call: Call) -> Iterator[KernelTime]:
    """Yield the kernels of a contestant that ran, the longest first; one row that says why where there are none."""
    if call.device.type != "cuda":
        yield KernelTime(of=found, status="absent", reason=UNAVAILABLE)
        return
    try:
        rows = list(summed(found, _profiled(call.both, call.device), PROFILED_CALLS))
    except Exception as error:  # the profiler's own: it may not be allowed to see the card
        yield KernelTime(of=found, **failure(error))
        return
    yield from rows or [KernelTime(of=found, status="failed", reason="the profiler saw no kernel")]


def summed(found: Measurement, events: Iterable[Event], calls: int) -> Iterator[KernelTime]:
    """Yield a row for each kernel among the events of so many calls, the longest first."""
    spent: dict[str, list[float]] = {}
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            spent.setdefault(event.name, []).append(event.time_range.elapsed_us())
    total = sum(sum(each) for each in spent.values())
    for name, each in sorted(spent.items(), key=lambda item: -sum(item[1])):
        yield KernelTime(
            of=found,
            kernel=name[:LONGEST_NAME],
            calls=len(each) / calls,
            kernel_ms=1e-3 * sum(each) / calls,
            share=sum(each) / max(total, 1e-9),
        )


def _profiled(run: Callable[[], object], device: torch.device) -> Iterable[Event]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_CALLS):
            run()
        torch.cuda.synchronize(device)
    events: Iterable[Event] = profiler.events()
    return events
