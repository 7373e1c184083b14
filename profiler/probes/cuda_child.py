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
from srsplan.models.data.batches import Packed
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.inputs import packed_items
from srsplan.models.training.ranking import rank
from srsplan.models.training.step import StepInputs, TrainingStep
from srsplan.profiler.probes.probe import EVALUATION_USERS, TIMED_STEPS

WARM_UP_STEPS = 3
"""Steps that are not timed: kernels are compiled and tuned, and the allocator finds its blocks."""


def random_pass(configuration: Configuration, device: torch.device) -> StepInputs:
    """Return the fullest pass, of random items: all the tokens there can be, in as many sequences."""
    sequences = random_sequences(configuration.tokens, configuration.sequences, configuration.catalog, device)
    return StepInputs(sequences, torch.randint(configuration.catalog, (configuration.tokens,), device=device))


def random_sequences(tokens: int, sequences: int, catalog: int, device: torch.device) -> PackedItems:
    """Return packed random items in sequences of nearly equal length."""
    offsets = np.linspace(0, tokens, sequences + 1).round().astype(np.int64)
    packed = Packed(np.random.default_rng(0).integers(1, catalog + 1, tokens), offsets)
    return packed_items(packed, device)


def measure(
    configuration: Configuration, device: torch.device, steps: int = TIMED_STEPS, users: int = EVALUATION_USERS
) -> dict[str, Any]:
    """Return the peaks (bytes) and times (milliseconds) of warm steps, and the peak of one evaluation batch.

    One step more, after the evaluation, shows that training goes on.
    """
    step = TrainingStep(configuration, device, item_counts=np.ones(configuration.catalog, np.int64))
    passes = [random_pass(configuration, device)] * (1 + configuration.several_passes)
    for _ in range(WARM_UP_STEPS):
        _step(step, passes)
    _reset(device)
    before = _retries(device)
    times = [_timed(step, passes, device) for _ in range(steps)]
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
    _step(step, passes)
    _reset(device)
    return found


def _step(step: TrainingStep, passes: list[StepInputs]) -> None:
    targets = torch.cat([each.targets for each in passes]) if step.configuration.draws_from_batch else None
    step.run_passes(passes, sum(len(each.targets) for each in passes), targets)


def _evaluate(step: TrainingStep, users: int) -> Tensor:
    configuration, device = step.configuration, step.device
    step.model.eval()
    tokens = min(users * configuration.seq_len, max(configuration.tokens, configuration.seq_len))
    histories = random_sequences(tokens, min(users, tokens), configuration.catalog, device)
    return rank(step.model, histories, None, min(100, configuration.catalog), step.autocast)


def _timed(step: TrainingStep, passes: list[StepInputs], device: torch.device) -> float:
    began = time.perf_counter()
    _step(step, passes)
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
