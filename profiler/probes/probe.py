"""The seam between planning and hardware: a configuration in, a record out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

from srsplan.models.config import Configuration
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.versions import installed

EVALUATION_USERS = 256
"""Users of the evaluation batch whose peak a probe reads."""
TIMED_STEPS = 10
"""Steps after the warm-up: the median and the 95th percentile are theirs."""


class Probe(Protocol):
    """Tries one configuration. Never raises for what the configuration does: the record's status says it."""

    def run(self, configuration: Configuration) -> ProbeRecord:
        """Try the configuration and return what was found."""
        ...

    def blank(self, configuration: Configuration) -> ProbeRecord:
        """Return a record without findings: its key is that of the record that `run` would return."""
        ...


@dataclass(frozen=True)
class SimulatedProbe:
    """The ledger in place of a GPU: it knows the allocated peak exactly, but no reserved bytes and no times."""

    gpu: str
    capacity_bytes: int

    def blank(self, configuration: Configuration) -> ProbeRecord:
        """Return a record without findings."""
        return ProbeRecord(configuration=configuration, status="failed", basis="simulated", gpu=self.gpu, device="meta")

    def run(self, configuration: Configuration) -> ProbeRecord:
        """Trace the step and one evaluation batch on meta tensors; `oom_device` where they exceed the card."""
        from srsplan.profiler.memory.simulate import EvaluationSizes, simulate_evaluation, simulate_step

        began = time.perf_counter()
        sizes = EvaluationSizes(users=EVALUATION_USERS, seen_pairs=EVALUATION_USERS * configuration.seq_len)
        allocated = simulate_step(configuration).allocated_bytes
        evaluation = simulate_evaluation(configuration, sizes).allocated_bytes
        return self.blank(configuration).changed(
            status="ok" if max(allocated, evaluation) <= self.capacity_bytes else "oom_device",
            allocated_bytes=allocated,
            evaluation_bytes=evaluation,
            seconds=round(time.perf_counter() - began, 3),
            torch=version("torch"),
            triton=installed("triton"),
        )
