"""The child process of a probe: reads a task on stdin, trains a few steps, prints one line of JSON and ends.

python -m srsplan.profiler.probes.cuda_child < task.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srsplan.models.config import Configuration
from srsplan.models.training.ranking import rank
from srsplan.models.training.step import StepInputs, TrainingStep
from srsplan.profiler.probes.probe import EVALUATION_USERS, TIMED_STEPS

WARM_UP_STEPS = 3
"""Steps that are not timed: kernels are compiled and tuned, and the allocator finds its blocks."""


def random_batch(configuration: Configuration, device: torch.device) -> StepInputs:
    """Return a batch of random items with as many valid targets as the fullest batch has."""
    shape, valid = (configuration.micro_batch_size, configuration.seq_len), configuration.fullest_tokens
    inputs = torch.randint(configuration.catalog, shape, device=device)
    positions = torch.randperm(configuration.tokens, device=device)[:valid].sort().values
    return StepInputs(inputs, positions, torch.randint(configuration.catalog, (valid,), device=device))


def measure(
    configuration: Configuration, device: torch.device, steps: int = TIMED_STEPS, users: int = EVALUATION_USERS
) -> dict[str, Any]:
    """Return the peaks (bytes) and times (milliseconds) of warm steps, and the peak of one evaluation batch.

    One step more, after the evaluation, shows that training goes on.
    """
    step = TrainingStep(configuration, device, item_counts=np.ones(configuration.catalog, np.int64))
    parts = [random_batch(configuration, device)] * configuration.micro_batches
    for _ in range(WARM_UP_STEPS):
        _step(step, parts)
    _reset(device)
    before = _retries(device)
    times = [_timed(step, parts, device) for _ in range(steps)]
    found: dict[str, Any] = {
        "status": "ok",
        "step_ms_median": statistics.median(times),
        "step_ms_p95": statistics.quantiles(times, n=20)[-1],
        **_peaks(device, ("allocated_bytes", "reserved_bytes")),
        "context_bytes": _context(device),
    }
    if before is not None:
        found["retries"] = (_retries(device) or 0) - before
    step.optimizer.zero_grad(set_to_none=True)
    _reset(device)
    _evaluate(step, users)
    found |= _peaks(device, ("evaluation_bytes",))
    _step(step, parts)
    _reset(device)
    return found


def _step(step: TrainingStep, parts: list[StepInputs]) -> None:
    step.run_parts(parts, sum(len(part.targets) for part in parts))


def _evaluate(step: TrainingStep, users: int) -> Tensor:
    configuration, device = step.configuration, step.device
    step.model.eval()
    inputs = torch.randint(configuration.catalog, (users, configuration.seq_len), device=device)
    last = torch.full((users,), configuration.seq_len - 1, device=device)
    return rank(step.model, inputs, last, None, min(100, configuration.catalog), step.autocast)


def _timed(step: TrainingStep, parts: list[StepInputs], device: torch.device) -> float:
    began = time.perf_counter()
    _step(step, parts)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began)


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device, names: tuple[str, ...]) -> dict[str, int | None]:
    """Return the allocator's peaks under these names; None on a CPU, where there is no allocator to ask."""
    if device.type != "cuda":
        return dict.fromkeys(names)
    return dict(zip(names, (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()), strict=False))


def _retries(device: torch.device) -> int | None:
    return int(torch.cuda.memory_stats(device)["num_alloc_retries"]) if device.type == "cuda" else None


def _context(device: torch.device) -> int | None:
    """Return the bytes that are gone of the card without being this process's allocator's."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def main() -> None:
    """Run one task and print what was found."""
    task = json.load(sys.stdin)
    device = torch.device(task["device"])
    if task["cap_bytes"] is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, task["cap_bytes"] / total), device)
    found = measure(Configuration.from_dict(task["configuration"]), device, task["steps"], task["evaluation_users"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
