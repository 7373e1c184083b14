"""What predictions rest on: a memory model and the constants of step times, as assumed or as probes corrected them."""

from __future__ import annotations

from dataclasses import dataclass

from srsplan.planner.step_time import Rates
from srsplan.profiler.memory.model import MemoryModel


@dataclass(frozen=True)
class Fit:
    """A memory model corrected by probes, the constants of step times, and what both are worth, in words."""

    model: MemoryModel
    rates: Rates
    step_basis: str
    sentence: str
    context_bytes: int | None = None
    """CUDA context as the probes measured it, None where they did not."""
