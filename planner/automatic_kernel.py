"""`train --kernel auto` on a GPU: the Triton kernels are checked there, and the faster form that is right is used.

A check that fails, crashes or cannot be done leads to the chunked form: it never ends a training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from srsplan.kernels.dispatch import refuse_triton
from srsplan.kernels.losses import LOSSES, Kernel
from srsplan.kernels.verification.check import raised
from srsplan.kernels.verification.verdict import REPORT, Verdict
from srsplan.models.config import Configuration
from srsplan.models.training.step import DTYPES
from srsplan.models.units import format_duration
from srsplan.profiler.probes.kernel_check import KernelCheck, card_here, shape_of, subject_of

FAILED = "the Triton kernels did not pass their check on this card"


@dataclass(frozen=True, kw_only=True)
class Automatic:
    """The kernel that a training uses, and why."""

    kernel: Kernel
    reason: str
    """What the loss says of itself, with the figures."""
    warning: str = ""
    """What failed and how to report it; "" where nothing did."""


def check_here(device: torch.device) -> KernelCheck | None:
    """Return the check of the card that a training runs on; None on a CPU, where the chunked form runs."""
    return KernelCheck(card=card_here()) if device.type == "cuda" else None


def automatic_kernel(configuration: Configuration, check: KernelCheck, say: Callable[[str], None]) -> Automatic:
    """Choose the kernel of a chunked loss, by a remembered verdict or by a check that takes a minute at most.

    `say` is told where a check begins. Never raises for what happens in the check.
    """
    loss, dtype = LOSSES[configuration.loss], DTYPES[configuration.precision]
    try:
        refuse_triton(loss, torch.device("cuda"), configuration.architecture.dim, dtype)
    except ValueError as error:
        return Automatic(kernel="chunked", reason=str(error))
    try:
        return _checked(configuration, check, say)
    except Exception as error:  # whatever it is, it is no reason not to train
        warning = (
            f"warning: the check of the Triton kernels failed ({raised(error)}): chunked PyTorch is used; {REPORT}"
        )
        return Automatic(kernel="chunked", reason=FAILED, warning=warning)


def _checked(configuration: Configuration, check: KernelCheck, say: Callable[[str], None]) -> Automatic:
    subject, shape = subject_of(configuration), shape_of(configuration)
    verdict = check.known(subject, shape)
    when = "" if verdict is None else f"; checked on {verdict.date} with this card, driver and versions"
    if verdict is None:
        say("checking the Triton kernels on this card, once for its driver and versions (--kernel chunked skips it)")
        verdict = check.run(subject, shape)
        when = f"; checked in {format_duration(verdict.seconds)}"
    if not verdict.right:
        return Automatic(kernel="chunked", reason=FAILED, warning=_warning(verdict))
    return Automatic(kernel=verdict.kernel(shape), reason=verdict.sentence(shape) + when)


def _warning(verdict: Verdict) -> str:
    """Return what failed, that the training goes on without it, and what to do."""
    more = f" (and {len(verdict.faults) - 1} more)" if len(verdict.faults) > 1 else ""
    way_out = REPORT if verdict.lasting else "the next start tries again"
    return f"warning: {FAILED}: {verdict.faults[0]}{more}; chunked PyTorch is used; {way_out}"
