"""A probe on a real card: one child process per configuration, so that nothing of one spoils the next."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from srsplan.models.config import Configuration
from srsplan.models.errors import SrsplanError
from srsplan.profiler.probes.child import Answer, ask
from srsplan.profiler.probes.probe import EVALUATION_USERS, TIMED_STEPS
from srsplan.profiler.probes.records import Findings, ProbeRecord, Status
from srsplan.profiler.versions import installed

CHILD = (sys.executable, "-m", "srsplan.profiler.probes.cuda_child")
LOST = (
    "no cuda-capable device", "no cuda gpus are available", "busy or unavailable", "fallen off the bus",
    "gpu is lost", "unable to determine the device handle", "driver shutting down",
)  # fmt: skip
"""Words of CUDA and its driver about a card that is gone: no later probe would fare better."""


class CardLost(SrsplanError):
    """The card disappeared: not the configuration's fault, so nothing is recorded of the probe."""


@dataclass(frozen=True, kw_only=True)
class CudaProbe:
    """Runs the training step in a child, under a hard cap where the card stands for a smaller one."""

    gpu: str
    device: str
    """The driver's name of the card that is here."""
    driver: str = ""
    cap_bytes: int | None = None
    """Reserved bytes the child may hold: the capacity of a smaller card, so that out-of-memory is real."""
    timeout_s: float = 300.0
    steps: int = TIMED_STEPS
    """Steps that are timed, after the warm-up and before the evaluation."""
    evaluation_users: int = EVALUATION_USERS
    command: tuple[str, ...] = CHILD
    torch_device: str = "cuda"

    def blank(self, configuration: Configuration) -> ProbeRecord:
        """Return a record without findings."""
        return ProbeRecord(
            configuration=configuration, status="failed", basis="measured", gpu=self.gpu, device=self.device,
            driver=self.driver, cap_bytes=self.cap_bytes, torch=installed("torch"), triton=installed("triton"),
        )  # fmt: skip

    def run(self, configuration: Configuration) -> ProbeRecord:
        """Start the child, wait, classify how it ended. A child that hangs is killed with everything it started."""
        task = {
            "configuration": configuration.to_dict(), "device": self.torch_device, "cap_bytes": self.cap_bytes,
            "steps": self.steps, "evaluation_users": self.evaluation_users,
        }  # fmt: skip
        began = time.perf_counter()
        answer = ask(self.command, task, self.timeout_s)
        if answer.code is None:
            found: dict[str, Any] = {"status": "timeout", "error_tail": f"no answer within {self.timeout_s:g} s"}
        else:
            found = _outcome(answer.code, answer)
        seconds = round(time.perf_counter() - began, 3)
        return self.blank(configuration).changed(**found, seconds=seconds)


def _outcome(code: int, answer: Answer) -> dict[str, Any]:
    """Return what the child found, or why it found nothing. CardLost where the card itself is gone."""
    if code == 0 and answer.line:
        try:
            found = Findings.model_validate_json(answer.line)
        except ValidationError:
            return {"status": "failed", "error_tail": f"the child answered {answer.line[:200]!r}"}
        return {**found.model_dump(exclude_unset=True), "time_basis": "measured"}
    if is_lost(answer.err):
        raise CardLost(
            f"the card does not answer: {answer.tail.splitlines()[-1]}", "what was probed is kept; start again then"
        )
    return {"status": classify(code, answer.err), "error_tail": answer.tail}


def is_lost(err: str) -> bool:
    """Tell whether a child said that the card itself is gone."""
    return any(phrase in err.lower() for phrase in LOST)


def classify(code: int, err: str) -> Status:
    """Return how a child ended, by its exit code and what it said: out of memory is never guessed from a crash."""
    said = err.lower()
    if "illegal memory access" in said or "illegal address" in said:
        return "illegal_access"
    if "outofmemoryerror" in said or "cuda out of memory" in said:
        return "oom_device"
    if code == -signal.SIGKILL or "memoryerror" in said or "can't allocate memory" in said:
        return "oom_host"
    return "failed"
