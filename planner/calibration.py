"""Corrections of a plan by a profile: ratios of reserved to predicted bytes, the CUDA context, and step times.

It stands in the planner and not beside the probes: it relates records to what is predicted without them, and the
prediction of step times is the planner's. The probes know nothing of it; `scaled_time` is handed to their loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from srsplan.models.errors import InputError
from srsplan.planner import step_time as timing
from srsplan.planner.fit import Fit
from srsplan.planner.step_time import Rates
from srsplan.planner.step_time_fit import FEWEST as FEWEST_TIMES
from srsplan.planner.step_time_fit import Timed, fit_rates
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel, Ratios
from srsplan.profiler.probes.catalogue import Gpu, load_gpus
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import load

FEWEST = 3
"""Fewer measured probes than this do not replace what srsplan assumes."""


def model_of(path: Path) -> Fit:
    """Return the fit of a profile's records; InputError where the file is no profile or holds no probe that ran."""
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
    """Return a record without a time with that of the same configuration measured on another card, transferred.

    `gpu` is the card of the record. The factor is that between the calculated times of both cards. The record comes
    back as it is where it has a time, or nothing of the kind was measured.
    """
    if record.step_ms_median is not None:
        return record
    for other in others:
        card = _catalogued(other.gpu)
        if _has_time(other) and card is not None and other.configuration == record.configuration:
            factor = timing.step_ms(record.configuration, gpu) / timing.step_ms(record.configuration, card)
            times = {
                name: None if value is None else value * factor
                for name, value in (("step_ms_median", other.step_ms_median), ("step_ms_p95", other.step_ms_p95))
            }
            return record.changed(**times, time_basis=f"scaled from {other.gpu}")
    return record


def _has_time(record: ProbeRecord) -> bool:
    return record.basis == "measured" and record.step_ms_median is not None


def _catalogued(name: str) -> Gpu | None:
    """Return the card of that name; None for one outside the catalogue, whose speed is not known."""
    return next((gpu for gpu in load_gpus() if gpu.name == name), None)


def _worst_error(records: Sequence[ProbeRecord]) -> float:
    """Return the largest relative error of predicted allocated bytes."""
    model = MemoryModel()
    groups: dict[str, list[ProbeRecord]] = {}
    for record in records:
        form = expressions.program_key(record.configuration.loss, record.configuration, many_chunks=False)
        groups.setdefault(form, []).append(record)
    return max(
        abs(int(predicted) / (record.allocated_bytes or 1) - 1)
        for group in groups.values()
        for record, predicted in zip(group, model.allocated([each.configuration for each in group]), strict=True)
    )


def _ratios(measured: Sequence[ProbeRecord], path: Path) -> Ratios:
    """Return measured reserved bytes over predicted ones; a ratio below 1 is not trusted."""
    model = MemoryModel()
    steady = {each: lifetime.steady(each, model.program) for each in {record.configuration for record in measured}}
    found = [(each.reserved_bytes or 0) / steady[each.configuration] for each in measured]
    basis = f"{len(found)} probes of {path}"
    return Ratios(reserved=max(1.0, median(found)), upper=max(1.0, max(found)), basis=basis)


def _times(measured: Sequence[ProbeRecord]) -> tuple[Rates, str]:
    """Return constants fitted to the probes, or the assumed ones scaled where those are few, and their worth."""
    steps = [
        Timed(
            cost=timing.step_cost(record.configuration), gpu=card,
            precision=record.configuration.precision, step_ms=record.step_ms_median,
        )
        for record in measured
        if record.step_ms_median is not None and (card := _catalogued(record.gpu)) is not None
    ]  # fmt: skip
    cards = ", ".join(sorted({step.gpu.name for step in steps}))
    if len(steps) >= FEWEST_TIMES:
        fit = fit_rates(steps)
        return fit.rates, f"fitted to probes on {cards}, other cards transferred; {fit.describe()}"
    if not steps:
        return Rates(), timing.BASIS
    scale = median(step.step_ms / timing.cost_ms(step.cost, step.gpu, step.precision, Rates()) for step in steps)
    return Rates().slower(scale), f"{scale:.2f} times the calculated time, from {len(steps)} probes on {cards}"
