"""A probe on a real card: one child process per configuration, so that nothing of one spoils the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any, get_args

from srsplan.models.config import Configuration
from srsplan.models.errors import SrsplanError
from srsplan.profiler.probe import installed
from srsplan.profiler.records import ProbeRecord, Status, is_figure

CHILD = (sys.executable, "-m", "srsplan.profiler.cuda_child")
TAIL_LINES, TAIL_CHARACTERS = 5, 2000
KEPT_BYTES = 1 << 18
"""Of what a child writes: the end says how it ended."""
CLOSING_S = 1.0
"""For a child's pipes to close after its end; what it left behind may hold them open."""
FIGURES = {
    "allocated_bytes", "reserved_bytes", "evaluation_bytes", "context_bytes", "step_ms_median", "step_ms_p95"
}  # fmt: skip
"""What a child may say beside its status."""

LOST = (
    "no cuda-capable device", "no cuda gpus are available", "torch.cuda.is_available() is false",
    "busy or unavailable", "fallen off the bus", "gpu is lost", "unable to determine the device handle",
)  # fmt: skip
"""Said by CUDA and its driver of a card that is gone: no later probe would fare better. Not among them: a launch failure
ends its process only; if it took the card along, the next child says so."""


class CardLost(SrsplanError):
    """The card disappeared: not the configuration's fault. `record` says so of the probe."""

    def __init__(self, record: ProbeRecord) -> None:
        """`record` of the probe that found no card any more: failed, with what was said."""
        super().__init__(
            f"the card does not answer: {record.error_tail}",
            "what was probed before is kept; when the card is back, the same command goes on from there",
        )
        self.record = record


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
    command: tuple[str, ...] = CHILD
    torch_device: str = "cuda"

    def blank(self, configuration: Configuration) -> ProbeRecord:
        """A record without findings."""
        return ProbeRecord(
            configuration=configuration, status="failed", basis="measured", gpu=self.gpu, device=self.device,
            cap_bytes=self.cap_bytes, driver=self.driver, torch=installed("torch"), triton=installed("triton"),
        )  # fmt: skip

    def run(self, configuration: Configuration) -> ProbeRecord:
        """Start the child, wait, classify how it ended. A child that hangs is killed with everything it started.

        CardLost where the child found no card any more.
        """
        task = {"configuration": configuration.to_dict(), "device": self.torch_device, "cap_bytes": self.cap_bytes}
        began = time.perf_counter()
        found = self._child(json.dumps(task).encode())
        record = replace(self.blank(configuration), **found, seconds=round(time.perf_counter() - began, 3))
        if record.status == "failed" and lost(record.error_tail):
            raise CardLost(record)
        return record

    def _child(self, task: bytes) -> dict[str, Any]:
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
        child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            start_new_session=True,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        ends = _End(child.stdout), _End(child.stderr)
        try:
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(task)
            code = child.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            return {"status": "timeout", "error_tail": f"no answer within {self.timeout_s:g} s"}
        finally:
            if child.poll() is None or not all(end.closed_within(CLOSING_S) for end in ends):
                _kill(child)
        return _outcome(code, *(end.text() for end in ends))


class _End:
    """The end of what a child writes to a pipe, read as it comes: a child that says much fills neither pipe nor memory."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = bytearray()
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while part := os.read(pipe.fileno(), 1 << 16):
                self._kept += part
                del self._kept[:-KEPT_BYTES]

    def closed_within(self, seconds: float) -> bool:
        self._reader.join(seconds)
        return not self._reader.is_alive()

    def text(self) -> str:
        self._reader.join(CLOSING_S)
        return self._kept.decode(errors="replace")


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and what it started; the group outlives the child where something holds its pipes."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _outcome(code: int, out: str, err: str) -> dict[str, Any]:
    """What the child found, or why it found nothing."""
    lines = out.strip().splitlines()
    if code == 0 and lines:
        try:
            return {**_answer(json.loads(lines[-1])), "time_basis": "measured"}
        except ValueError:
            return {"status": "failed", "error_tail": f"the child answered {lines[-1][:200]!r}"}
    said = err.strip().splitlines()
    gone = [line for line in said if lost(line)]
    tail = gone[-1] if gone else "\n".join(said[-TAIL_LINES:])
    silent = f"the child ended with code {code} and said nothing"
    return {"status": classify(code, err), "error_tail": tail[-TAIL_CHARACTERS:] or silent}


def lost(said: str) -> bool:
    """Whether it is said of a card that is gone."""
    return any(phrase in said.lower() for phrase in LOST)


def _answer(document: Any) -> dict[str, Any]:
    """A child's answer; ValueError unless it is an object of a status and figures that can be."""
    if not isinstance(document, dict) or document.get("status") not in get_args(Status):
        raise ValueError("no status")
    for name, value in document.items():
        if name != "status" and not (name in FIGURES and is_figure(name, value)):
            raise ValueError(name)
    return document


def classify(code: int, err: str) -> Status:
    """A child's end, from its exit code and what it said: out of memory is never guessed from a crash."""
    said = err.lower()
    if "illegal memory access" in said or "illegal address" in said:
        return "illegal_access"
    if "outofmemoryerror" in said or "cuda out of memory" in said:
        return "oom_device"
    if code == -signal.SIGKILL or "memoryerror" in said or "can't allocate memory" in said:
        return "oom_host"
    return "failed"
