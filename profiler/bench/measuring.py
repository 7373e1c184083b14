"""Time, memory and value of one contestant on one set of inputs."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from srsplan.kernels.losses import Loss
from srsplan.profiler.bench.contestants import Contestant, Run
from srsplan.profiler.bench.inputs import Inputs
from srsplan.profiler.bench.predicted import ledger_bytes
from srsplan.profiler.bench.shapes import Shape

WARM_UPS = 3
SECONDS_EACH = 1.0
"""Seconds for which a contestant is repeated, 3 to 50 times, where nobody says how often."""

SLOW_SECONDS = 5.0
"""Seconds from which on a call is timed once."""

FLUSHED_BYTES = 256 << 20
"""Bytes written between repeats on CUDA, so that nothing is found in the second-level cache."""

Status = Literal["ok", "oom", "failed", "absent"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The result of a contestant on a shape."""

    shape: Shape
    logits: str
    contestant: str
    loss: Loss
    tokens_per_set: int
    status: Status
    reason: str = ""
    forward_ms: float | None = None
    total_ms: float | None = None
    """Milliseconds of forward and backward."""
    fastest_ms: float | None = None
    slowest_ms: float | None = None
    """The fastest and slowest of the repeats of which `total_ms` is the median."""
    peak_bytes: int | None = None
    """Allocated peak above the inputs, both gradients included; measured on CUDA."""
    ledger_bytes: int | None = None
    """The same peak by the ledger, for srsplan's own forms."""
    value: float | None = None
    """The mean loss."""
    loss_error: float | None = None
    """The error relative to the first full softmax that ran. Sampled forms draw negatives of their own: None."""
    repeats: int | None = None
    """The number of repeats that `total_ms` is the median of."""


def measure(
    contestant: Contestant,
    inputs: Inputs,
    shape: Shape,
    logits: str,
    free_bytes: Callable[[], int],
    repeats: int | None = None,
) -> Measurement:
    """Run a contestant, or say why not. Never raises for what the contestant does."""
    found = not_run(contestant, shape, logits, inputs.hidden.dtype)
    if contestant.run is None or found.reason:
        return found
    try:
        needed = found.ledger_bytes
        if needed is not None and needed > (free := free_bytes()):
            return replace(found, status="oom", reason=f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        return replace(found, status="ok", **_figures(contestant.run, inputs, shape, repeats))
    except Exception as error:  # somebody else's code: what it raises is its result
        return replace(found, **failure(error))
    finally:
        inputs.clear()
        release(inputs.hidden.device)


def not_run(contestant: Contestant, shape: Shape, logits: str, dtype: torch.dtype) -> Measurement:
    """Return the measurement of a contestant that has not run: absent, with the reason where it cannot."""
    return Measurement(
        shape=shape,
        logits=logits,
        contestant=contestant.name,
        loss=contestant.loss,
        tokens_per_set=contestant.tokens_per_set,
        status="absent",
        reason=contestant.absence(shape, dtype),
        ledger_bytes=ledger_bytes(contestant, shape, dtype),
    )


def failure(error: Exception) -> dict[str, Any]:
    """Return status and reason of a measurement that raised; a CPU's allocator has no exception of its own."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return {"status": "oom", "reason": "out of memory"}
    return {"status": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def release(device: torch.device) -> None:
    """Give back what is cached; after a kernel's fault the device refuses even that, and later ones fail by name."""
    if device.type == "cuda":
        gc.collect()
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _figures(run: Run, inputs: Inputs, shape: Shape, repeats: int | None) -> dict[str, Any]:
    device = inputs.hidden.device

    def forward() -> Tensor:
        with _autocast(inputs):
            return run(inputs, shape)

    def both() -> None:
        forward().backward()
        inputs.clear()

    value = float(forward().detach())
    if not math.isfinite(value):
        raise ArithmeticError(f"the loss is {value}")
    both()
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        both()
        peak = torch.cuda.max_memory_allocated(device) - before
    forward_ms, total_ms = times(forward, device, repeats), times(both, device, repeats)
    return {
        "forward_ms": statistics.median(forward_ms), "total_ms": statistics.median(total_ms), "peak_bytes": peak,
        "value": value, "repeats": len(total_ms), "fastest_ms": min(total_ms), "slowest_ms": max(total_ms),
    }  # fmt: skip


def _autocast(inputs: Inputs) -> AbstractContextManager[object]:
    if inputs.hidden.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(inputs.hidden.device.type, dtype=inputs.hidden.dtype)


def times(run: Callable[[], object], device: torch.device, repeats: int | None = None) -> list[float]:
    """Time `repeats` calls after warm-up, in milliseconds; None takes as many as SECONDS_EACH allows."""
    began = time.perf_counter()
    run()
    _wait(device)
    once = time.perf_counter() - began
    if device.type == "cuda" and once < SECONDS_EACH:
        for _ in range(WARM_UPS - 1):
            run()
        _wait(device)
        once = (time.perf_counter() - began) / WARM_UPS
    return list(_times(run, device, repeats or _repeats(once)))


def _repeats(seconds: float) -> int:
    return 1 if seconds > SLOW_SECONDS else max(3, min(50, round(SECONDS_EACH / max(seconds, 1e-6))))


def _times(run: Callable[[], object], device: torch.device, repeats: int) -> Iterator[float]:
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    for _ in range(repeats):
        if flushed is None:
            began = time.perf_counter()
            run()
            yield 1e3 * (time.perf_counter() - began)
            continue
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        yield start.elapsed_time(end)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
