"""The check itself: all cases of a loss, and a race on the run's own shape where they are right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import torch

from srsplan.kernels.losses import Sampler
from srsplan.kernels.verification.cases import CARD_SIZES, INTERPRETED_SIZES, Case, cases_of
from srsplan.kernels.verification.compare import Compared, Fault, Instruments, compare
from srsplan.kernels.verification.race import race
from srsplan.kernels.verification.subject import RunShape, Subject
from srsplan.kernels.verification.verdict import Verdict

MOST_SHAPES = 30
"""Shapes whose times a verdict holds: the oldest make room."""


def check(
    subject: Subject,
    device: torch.device,
    instruments: Instruments,
    *,
    shape: RunShape | None = None,
    samplers: Sequence[Sampler] = (),
) -> Verdict:
    """Compare every case with float64 and, where all are right, time both forms on `shape`.

    A sampled loss is checked with its own sampler and with `samplers`. Raises nothing for what the kernels do: an
    exception is a fault, and after the first no other case runs, because a GPU's context may be lost with it.
    """
    began = time.perf_counter()
    sizes = CARD_SIZES if device.type == "cuda" else INTERPRETED_SIZES
    cases = cases_of(subject, (subject.sampler, *samplers), sizes, device)
    faults: list[str] = []
    worst, lasting = 0.0, True
    for case in cases:
        found, lasting = _compared(case, subject, device, instruments)
        faults += map(str, found.faults)
        worst = max(worst, found.worst)
        if found.worst == float("inf"):
            break
    verdict = Verdict(
        faults=faults, cases=len(cases), worst=0.0 if faults else worst, seconds=0.0, date=date.today().isoformat(),
        lasting=lasting,
    )  # fmt: skip
    if shape is not None and not faults:
        verdict = timed(verdict, subject, shape, device, instruments)
    return replace(verdict, seconds=round(time.perf_counter() - began, 3))


def timed(
    verdict: Verdict, subject: Subject, shape: RunShape, device: torch.device, instruments: Instruments
) -> Verdict:
    """Return the verdict with the times on one more shape; with a fault where the kernels do not run there."""
    try:
        found = race(subject, shape, device, instruments)
    except Exception as error:  # the compiler's and the driver's refusals have no common type
        fault = Fault(f"{shape.tokens:,} tokens and {shape.catalog:,} items", raised(error))
        return replace(verdict, faults=[*verdict.faults, str(fault)])
    others = {name: times for name, times in verdict.times.items() if name != str(shape)}
    return replace(verdict, times=dict([*others.items(), (str(shape), found)][-MOST_SHAPES:]))


def _compared(case: Case, subject: Subject, device: torch.device, instruments: Instruments) -> tuple[Compared, bool]:
    """Return what a case showed, an exception as a fault; and whether that is about the kernels, not about memory."""
    try:
        return compare(case, subject, device, instruments), True
    except torch.cuda.OutOfMemoryError as error:
        return Compared((Fault(case.name, raised(error)),), float("inf")), False
    except Exception as error:  # the compiler's and the driver's refusals have no common type
        return Compared((Fault(case.name, raised(error)),), float("inf")), True


def raised(error: Exception) -> str:
    """Return an exception in one line."""
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}{': ' if said else ''}{said}"
