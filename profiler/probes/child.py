"""A child process that is given a task as JSON and answers with one line of it. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srsplan.models.training.allocator_settings import with_expandable_segments

TAIL_LINES, TAIL_CHARACTERS = 5, 2000
"""Lines and characters that are kept at most of what a failed child wrote to stderr."""


@dataclass(frozen=True)
class Answer:
    """How a child ended, and what it wrote."""

    code: int | None
    """Its exit code; None where it was ended because it took too long."""
    out: str = ""
    err: str = ""

    @property
    def line(self) -> str:
        """The last line of its output; "" where there is none."""
        return (self.out.strip().splitlines() or [""])[-1]

    @property
    def tail(self) -> str:
        """The last lines that it wrote to stderr."""
        return "\n".join(self.err.strip().splitlines()[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def ask(command: tuple[str, ...], task: Mapping[str, Any], timeout_s: float) -> Answer:
    """Start a child with the allocator's setting that plans assume, wait, return how it ended.

    A child that hangs is killed with everything it started; so is one whose parent is interrupted.
    """
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", env=with_expandable_segments(os.environ), start_new_session=True,
    )  # fmt: skip
    try:
        out, err = child.communicate(json.dumps(task), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(child)
        return Answer(None)
    except BaseException:
        _kill(child)
        raise
    return Answer(child.returncode, out, err)


def _kill(child: subprocess.Popen[str]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
