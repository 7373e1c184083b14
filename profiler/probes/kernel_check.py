"""Verdicts on the Triton kernels of the card that is here: remembered, or found in a child process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache

import torch
from pydantic import TypeAdapter, ValidationError

from srsplan.kernels.losses import Sampler
from srsplan.kernels.verification.remembered import read_verdicts, remember
from srsplan.kernels.verification.subject import Card, RunShape, Subject
from srsplan.kernels.verification.verdict import Verdict, failed
from srsplan.models.config import Configuration
from srsplan.models.training.step import DTYPES
from srsplan.profiler.probes.child import Answer, ask
from srsplan.profiler.probes.cuda_probe import classify, is_lost
from srsplan.profiler.probes.detect import driver_version
from srsplan.profiler.versions import installed

CHILD = (sys.executable, "-m", "srsplan.profiler.probes.kernel_child")
TIMEOUT_S = 600.0
CRASHES = tuple(-each for each in (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV))
"""Exit codes of a process that fell over its own instructions: it would do so again."""


@dataclass(frozen=True, kw_only=True)
class KernelCheck:
    """Checks the kernels on one card, each subject in a child process of its own."""

    card: Card
    device: str = "cuda"
    command: tuple[str, ...] = CHILD
    timeout_s: float = TIMEOUT_S

    def known(self, subject: Subject, shape: RunShape | None) -> Verdict | None:
        """Return a remembered verdict that answers for a shape: with its times, or that the kernels are wrong."""
        found = self._remembered(subject)
        if found is None or (found.right and shape is not None and str(shape) not in found.times):
            return None
        return found

    def run(
        self, subject: Subject, shape: RunShape | None, samplers: Sequence[Sampler] = (), *, anew: bool = False
    ) -> Verdict:
        """Check in a child, and remember what is found. Never raises for what the kernels or the child do.

        Kernels that are known to be right are only timed on the new shape, unless they are to be checked `anew`.
        """
        known = None if anew else self._remembered(subject)
        task = {
            "device": self.device, "subject": asdict(subject), "samplers": list(samplers),
            "shape": None if shape is None else asdict(shape),
            "verdict": asdict(known) if known is not None and known.right else None,
        }  # fmt: skip
        verdict = _verdict_of(ask(self.command, task, self.timeout_s), self.timeout_s)
        if verdict.lasting:  # autotuning may have found launches meanwhile: they are part of the key
            remember(self.card.name, self.card.key(subject), verdict)
        return verdict

    def _remembered(self, subject: Subject) -> Verdict | None:
        return read_verdicts(self.card.name).get(self.card.key(subject))


def _verdict_of(answer: Answer, timeout_s: float) -> Verdict:
    """Return the verdict that a child wrote, or that it crashed: then it says why, and whether it would do so again."""
    today = date.today().isoformat()
    if answer.code is None:
        return failed(f"the check gave no answer within {timeout_s:g} s", today, lasting=False)
    try:
        found = TypeAdapter(Verdict).validate_json(answer.line)
    except ValidationError:
        found = None
    if found is not None and (answer.code == 0 or not found.right):
        return found
    status = classify(answer.code, answer.err)
    said = (answer.tail.splitlines() or ["it said nothing"])[-1][:200]
    lasting = (status == "illegal_access" or answer.code in CRASHES) and not is_lost(answer.err)
    return failed(f"the check ended with code {answer.code} ({status}): {said}", today, lasting=lasting)


def subject_of(configuration: Configuration) -> Subject:
    """Return what is to be checked for a training."""
    return Subject(
        loss=configuration.loss,
        dim=configuration.architecture.dim,
        dtype=str(DTYPES[configuration.precision]).removeprefix("torch."),
        sampler=configuration.sampler,
        tokens_per_set=configuration.tokens_per_set,
    )


def shape_of(configuration: Configuration) -> RunShape:
    """Return the sizes of a training's loss in a full pass."""
    return RunShape(
        tokens=configuration.tokens, catalog=configuration.catalog, negatives=configuration.negatives
    )  # fmt: skip


@cache
def card_here() -> Card:
    """Return the present card with the driver's and the packages' versions; there must be one."""
    major, minor = torch.cuda.get_device_capability()
    api = getattr(torch._C, "_cuda_getDriverVersion", lambda: "")()
    return Card(
        name=torch.cuda.get_device_name(),
        capability=f"{major}.{minor}",
        driver=f"{driver_version()} (CUDA {api})",
        torch=torch.__version__,
        triton=installed("triton"),
        srsplan=installed("srsplan"),
    )
