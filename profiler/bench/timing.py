"""The time of a call: on a card between two events, with nothing of the host in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UPS = 3
SECONDS_EACH = 1.0
"""Seconds for which a contestant is repeated, 3 to 50 times, where nobody says how often."""
SLOW_SECONDS = 5.0
"""Seconds from which on a call is timed once."""
FLUSHED_BYTES = 256 << 20
"""Bytes written between repeats on CUDA, so that nothing is found in the second-level cache."""

CYCLES_A_SECOND = 2e9
"""Cycles of a fast card: a slower one sleeps longer than the host needs, which costs nothing that is timed."""
HOST_MARGIN = 1.5
"""The card sleeps so many times longer than the host was seen to need."""
LONGEST_SLEEP_SECONDS = 0.1
"""Seconds that a card sleeps at most: a host that waits for the card itself would be waited for twice."""


@dataclass(frozen=True)
class Pace:
    """What one call takes."""

    seconds: float
    """Seconds until the device is done."""
    host_seconds: float
    """Seconds until the host has handed everything over."""

    @property
    def sleep_cycles(self) -> int:
        """Cycles for which a card waits before a timed call, so that the host is ahead of it."""
        return int(CYCLES_A_SECOND * min(HOST_MARGIN * self.host_seconds, LONGEST_SLEEP_SECONDS))


def pace(run: Callable[[], object], device: torch.device) -> Pace:
    """Run a call once and return what it took."""
    wait(device)
    began = time.perf_counter()
    run()
    handed_over = time.perf_counter() - began
    wait(device)
    return Pace(time.perf_counter() - began, handed_over)


def times(
    run: Callable[[], object], device: torch.device, repeats: int | None = None, seen: Pace | None = None
) -> list[float]:
    """Time `repeats` calls after warm-up, in milliseconds; None takes as many as SECONDS_EACH allows.

    `seen` is the pace of a call that has been made already: what takes long is not made again without being timed.
    """
    seen = seen or pace(run, device)
    if device.type == "cuda" and seen.seconds < SECONDS_EACH:
        for _ in range(WARM_UPS - 1):
            seen = pace(run, device)
    repeats = repeats or _repeats(seen.seconds)
    return list(_card_times(run, device, repeats, seen) if device.type == "cuda" else _host_times(run, repeats))


def _repeats(seconds: float) -> int:
    return 1 if seconds > SLOW_SECONDS else max(3, min(50, round(SECONDS_EACH / max(seconds, 1e-6))))


def _host_times(run: Callable[[], object], repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        yield 1e3 * (time.perf_counter() - began)


def _card_times(run: Callable[[], object], device: torch.device, repeats: int, seen: Pace) -> Iterator[float]:
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)
    for _ in range(repeats):
        yield card_ms(run, flushed, seen.sleep_cycles)


def card_ms(run: Callable[[], object], flushed: Tensor, sleep_cycles: int) -> float:
    """Time a call between two events. The card sleeps before the first, while the host hands all of the call over.

    Without that, a call of many small kernels would be timed at the pace of the host that starts them.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flushed.zero_()
    torch.cuda._sleep(sleep_cycles)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(flushed.device)
    return float(start.elapsed_time(end))


def wait(device: torch.device) -> None:
    """Wait until a card is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
