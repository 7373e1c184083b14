"""Time, memory and value of one contestant on one set of inputs."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from srsplan.kernels.losses import Loss
from srsplan.profiler.bench.contestants import Contestant, Run, label_of
from srsplan.profiler.bench.inputs import Inputs
from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.predicted import ledger_bytes
from srsplan.profiler.bench.shapes import Shape
from srsplan.profiler.bench.timing import Pace, pace, times

Status = Literal["ok", "oom", "failed", "absent", "late"]
"""The end of a contestant; "late" is one that did not begin within the minutes of its shape."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The result of a contestant on a shape."""

    shape: Shape
    logits: Logits
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
    """The error relative to the first full softmax that ran, but for srsplan's Triton kernels, which are judged and do
    not judge: None where only they ran. Sampled forms draw negatives of their own: None."""
    repeats: int | None = None
    """The number of repeats that `total_ms` is the median of."""

    @property
    def label(self) -> str:
        """The contestant's name as screens show it."""
        return label_of(self.contestant, self.loss, self.tokens_per_set)


class Call:
    """A contestant on its inputs, ready to be timed."""

    def __init__(self, run: Run, inputs: Inputs, shape: Shape) -> None:
        self.inputs, self.device = inputs, inputs.hidden.device
        self._run, self._shape = run, shape

    def forward(self) -> Tensor:
        """Return the loss, in the inputs' type as training computes it."""
        with _autocast(self.inputs):
            return self._run(self.inputs, self._shape)

    def both(self) -> None:
        """Run forward and backward; the gradients are dropped."""
        self.forward().backward()
        self.inputs.clear()


def measure(
    contestant: Contestant,
    inputs: Inputs,
    shape: Shape,
    logits: Logits,
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
        return replace(found, status="ok", **_figures(Call(contestant.run, inputs, shape), repeats))
    except Exception as error:  # somebody else's code: what it raises is its result
        return replace(found, **failure(error))
    finally:
        inputs.clear()
        release(inputs.hidden.device)


def not_run(contestant: Contestant, shape: Shape, logits: Logits, dtype: torch.dtype) -> Measurement:
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


def _figures(call: Call, repeats: int | None) -> dict[str, Any]:
    value = float(call.forward().detach())
    if not math.isfinite(value):
        raise ArithmeticError(f"the loss is {value}")
    call.both()
    peak, seen = _peak(call) if call.device.type == "cuda" else (None, None)
    forward_ms, total_ms = times(call.forward, call.device, repeats), times(call.both, call.device, repeats, seen)
    return {
        "forward_ms": statistics.median(forward_ms), "total_ms": statistics.median(total_ms), "peak_bytes": peak,
        "value": value, "repeats": len(total_ms), "fastest_ms": min(total_ms), "slowest_ms": max(total_ms),
    }  # fmt: skip


def _peak(call: Call) -> tuple[int, Pace]:
    """Return the allocated peak of forward and backward above the inputs, and the pace of that call."""
    torch.cuda.synchronize(call.device)
    before = torch.cuda.memory_allocated(call.device)
    torch.cuda.reset_peak_memory_stats(call.device)
    seen = pace(call.both, call.device)
    return torch.cuda.max_memory_allocated(call.device) - before, seen


def _autocast(inputs: Inputs) -> AbstractContextManager[object]:
    if inputs.hidden.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(inputs.hidden.device.type, dtype=inputs.hidden.dtype)
