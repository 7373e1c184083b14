"""What a profile changes in the planner: the ratios of reserved to predicted bytes, and step times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from srsplan.models.errors import InputError
from srsplan.planner import step_time as timing
from srsplan.planner.step_time import Rates
from srsplan.planner.step_time_fit import FEWEST as FEWEST_TIMES
from srsplan.planner.step_time_fit import Timed, fit_rates
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel, Ratios
from srsplan.profiler.probes.gpus import Gpu, find_gpu
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import load

FEWEST = 3
"""Fewer measured probes than this do not replace what srsplan assumes."""


@dataclass(frozen=True)
class Fit:
    """A memory model corrected by probes, the constants of step times, and what both are worth, in words."""

    model: MemoryModel
    rates: Rates
    step_basis: str
    sentence: str
    context_bytes: int | None = None
    """Measured beside reserved bytes."""


def model_of(path: Path) -> Fit:
    """The fit of a profile's records; InputError where the file holds none that ran."""
    records = [record for record in load(path).records if record.allocated_bytes is not None]
    if not records:
        raise InputError(f"{path} holds no probe that ran", "run srsplan profile again, with smaller catalogs")
    measured = [record for record in records if record.status == "ok" and record.reserved_bytes is not None]
    error = f"closed form within {_worst_error(records):.2%} of {len(records)} probes"
    if len(measured) < FEWEST:
        assumed = f"{path}: {error}; none measured on a card, reserved bytes and times stay as assumed"
        return Fit(MemoryModel(), Rates(), timing.BASIS, assumed)
    ratios, (rates, basis) = _ratios(measured, path), _times(measured)
    sentence = (
        f"{path}: {error}; {len(measured)} measured: reserved {ratios.reserved:.3f} times the prediction, at most "
        f"{ratios.upper:.3f}; steps: {basis}"
    )
    contexts = [each.context_bytes for each in measured if each.context_bytes is not None]
    return Fit(MemoryModel(ratios), rates, basis, sentence, max(contexts) if contexts else None)


def scaled_time(record: ProbeRecord, others: Sequence[ProbeRecord], gpu: Gpu) -> ProbeRecord:
    """A simulated record with the time of the same configuration measured on another card, transferred."""
    for other in others:
        if (
            other.basis == "measured"
            and other.step_ms_median is not None
            and other.configuration == record.configuration
        ):
            here, there = (timing.step_ms(record.configuration, card) for card in (gpu, find_gpu(other.gpu)))
            factor = here / there
            return replace(
                record,
                step_ms_median=other.step_ms_median * factor,
                step_ms_p95=None if other.step_ms_p95 is None else other.step_ms_p95 * factor,
                time_basis=f"scaled from {other.gpu}",
            )
    return record


def _predicted(record: ProbeRecord) -> int:
    return int(MemoryModel().allocated([record.configuration])[0])


def _worst_error(records: Sequence[ProbeRecord]) -> float:
    return max(abs(_predicted(record) / (record.allocated_bytes or 1) - 1) for record in records)


def _ratios(measured: Sequence[ProbeRecord], path: Path) -> Ratios:
    model = MemoryModel()
    found = [(each.reserved_bytes or 0) / lifetime.steady(each.configuration, model.program) for each in measured]
    basis = f"{len(found)} probes of {path}"
    return Ratios(reserved=max(1.0, median(found)), upper=max(1.0, max(found)), basis=basis)


def _times(measured: Sequence[ProbeRecord]) -> tuple[Rates, str]:
    """Constants fitted to the probes where there are enough of them, else the assumed ones, scaled; and their worth."""
    steps = [
        Timed(
            cost=timing.step_cost(record.configuration), gpu=find_gpu(record.gpu),
            precision=record.configuration.precision, step_ms=record.step_ms_median,
        )
        for record in measured
        if record.step_ms_median is not None
    ]  # fmt: skip
    cards = ", ".join(sorted({step.gpu.name for step in steps}))
    if len(steps) >= FEWEST_TIMES:
        fit = fit_rates(steps)
        return fit.rates, f"fitted to probes on {cards}, other cards transferred; {fit.describe()}"
    if not steps:
        return Rates(), timing.BASIS
    scale = median(step.step_ms / timing.cost_ms(step.cost, step.gpu, step.precision, Rates()) for step in steps)
    return Rates().slower(scale), f"{scale:.2f} times the calculated time, from {len(steps)} probes on {cards}"
