"""The child process that checks the Triton kernels: a wrong address in one of them ends this process and no training.

python -m srsplan.profiler.probes.kernel_child < task.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from pydantic import TypeAdapter

from srsplan.kernels.verification.check import check, timed
from srsplan.kernels.verification.compare import Instruments
from srsplan.kernels.verification.subject import RunShape, Subject
from srsplan.kernels.verification.verdict import Verdict
from srsplan.profiler.bench.timing import times
from srsplan.profiler.memory.ledger import Ledger


def instruments_of(device: torch.device) -> Instruments:
    """Return the timer of `srsplan bench`, the card's allocator, and the ledger that says what it should show."""
    return Instruments(
        timer=lambda run: _time(run, device),
        measured_bytes=_measured if device.type == "cuda" else None,
        predicted_bytes=predicted,
    )


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Return the median milliseconds of a call; what is compiled for its shape is compiled before."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return statistics.median(times(run, device))


def _measured(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def predicted(run: Callable[[], object]) -> int:
    """Return the allocated peak of a call on meta tensors, by the ledger."""
    ledger = Ledger(warm_process=True)
    with ledger:
        run()
    return ledger.trace.peak().allocated_bytes


def verdict_on(task: dict[str, Any]) -> Verdict:
    """Check what the task names; where it holds a verdict already, take the times on one more shape."""
    device = torch.device(task["device"])
    subject, instruments = Subject(**task["subject"]), instruments_of(device)
    shape = None if task["shape"] is None else RunShape(**task["shape"])
    if task["verdict"] is not None and shape is not None:
        known = TypeAdapter(Verdict).validate_python(task["verdict"])
        return timed(known, subject, shape, device, instruments)
    return check(subject, device, instruments, shape=shape, samplers=task["samplers"])


def main() -> None:
    """Run one task and print the verdict."""
    verdict = verdict_on(json.load(sys.stdin))
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
