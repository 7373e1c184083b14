"""A run as a process of its own: started without a shell, everything it prints in a log, ended with its parent.

    python -m srsplan.planner.comparison.processes PARENT train ...        what `start` runs

The child asks the system to be killed when its parent dies (Linux), so that a comparison that was killed leaves no
training behind that would keep its folder locked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from srsplan.models.errors import SrsplanError
from srsplan.planner.comparison.output import PlannedRun

CHILD = (sys.executable, "-m", "srsplan.planner.comparison.processes")
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""
PARENT_GONE = 1
POLITE_SECONDS = 20.0
"""Seconds that a run has to end itself after Ctrl-C: it saves nothing then, it only says how to go on."""
LAST_BYTES = 20_000
"""Bytes at the end of a log in which its error is looked for."""


@dataclass(kw_only=True)
class Process:
    """A run that was started, and may have ended."""

    run: PlannedRun
    child: subprocess.Popen[bytes]
    log_start: int
    """Bytes of the log that earlier attempts left."""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the run was started."""
        return time.monotonic() - self.began

    @property
    def code(self) -> int | None:
        """Exit code; None while the run goes on."""
        return self.child.poll()

    def failure(self) -> str | None:
        """Return what an ended run says went wrong, in one line; None where it was trained and tested."""
        if self.code == 0 and self.run.ended:
            return None
        return _error_in(self.run.log, self.log_start) or f"it ended with exit code {self.code} and without a message"


def start(run: PlannedRun, threads: int) -> Process:
    """Start a run, or go on with it where its folder holds one; SrsplanError where the system refuses."""
    words = [*CHILD, str(os.getpid()), "train", *run.words, *how_to_start(run)]
    try:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            log_start = log.tell()
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=_environment(threads), start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise SrsplanError(f"cannot start the run {run.folder}: {error.strerror}", "make room, then go on") from error
    return Process(run=run, child=child, log_start=log_start)


def how_to_start(run: PlannedRun) -> list[str]:
    """Return the option that a run needs for what lies in its folder: nothing, an unfinished run, or another one."""
    return ["--overwrite"] if run.replaces else ["--resume"] * run.begun


def stop(processes: list[Process]) -> None:
    """End runs as Ctrl-C does, and kill those that do not end."""
    for process in processes:
        if process.code is None:
            process.child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + POLITE_SECONDS
    for process in processes:
        try:
            process.child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.child.kill()
            process.child.wait()


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a run: so many threads, unless the user has said how many; lines of a fixed width."""
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}


def _error_in(log: Path, start: int) -> str | None:
    """Return the message and the hint that a run ended with, from the part of the log that begins at `start`."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    said = [at for at, line in enumerate(lines) if line.startswith("error:")]
    if not said:
        return lines[-1].strip() or None if lines else None
    tail = [line.strip() for line in lines[said[-1] :]]
    return "; ".join(line.removeprefix("error:").strip() for line in tail[:2] if line.startswith(("error:", "try:")))


def die_with_parent(parent: int) -> None:
    """Ask to be killed when the process `parent` dies; end at once where it has gone already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(PARENT_GONE)


def _main() -> None:
    """Run `srsplan` with the words after the parent's number."""
    die_with_parent(int(sys.argv.pop(1)))
    from srsplan.planner.cli.app import main

    main()


if __name__ == "__main__":
    _main()
