"""The seam between planning and hardware: a configuration in, a record out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from srsplan.models.config import Configuration
from srsplan.profiler.probes.records import ProbeRecord

EVALUATION_USERS = 256
TIMED_STEPS = 10


class Probe(Protocol):
    """Tries one configuration. Never raises for what the configuration does: the record's status says it."""

    def run(self, configuration: Configuration) -> ProbeRecord:
        """One record."""
        ...

    def blank(self, configuration: Configuration) -> ProbeRecord:
        """What its record would be called: for its key."""
        ...


@dataclass(frozen=True)
class SimulatedProbe:
    """The ledger in place of a GPU: the allocated peak, exact; no reserved bytes, no times."""

    gpu: str
    capacity_bytes: int

    def blank(self, configuration: Configuration) -> ProbeRecord:
        """A record without findings."""
        return ProbeRecord(configuration=configuration, status="failed", basis="simulated", gpu=self.gpu, device="meta")

    def run(self, configuration: Configuration) -> ProbeRecord:
        """The step and one evaluation batch on meta tensors; `oom_device` where they exceed the card."""
        from srsplan.profiler.memory.simulate import EvaluationSizes, simulate_evaluation, simulate_step

        began = time.perf_counter()
        sizes = EvaluationSizes(users=EVALUATION_USERS, seen_pairs=EVALUATION_USERS * configuration.seq_len)
        allocated = simulate_step(configuration).allocated_bytes
        evaluation = simulate_evaluation(configuration, sizes).allocated_bytes
        return ProbeRecord(
            configuration=configuration,
            status="ok" if max(allocated, evaluation) <= self.capacity_bytes else "oom_device",
            basis="simulated",
            gpu=self.gpu,
            device="meta",
            allocated_bytes=allocated,
            evaluation_bytes=evaluation,
            seconds=round(time.perf_counter() - began, 3),
            torch=version("torch"),
            triton=installed("triton"),
        )


def installed(package: str) -> str:
    """Its version, "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
