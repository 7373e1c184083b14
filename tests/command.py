"""Runs the command line the way a shell does, in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from srsplan.planner.cli import app as cli


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The error in one line, however it was wrapped."""
        return " ".join(self.err.split())


def srsplan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Ended:
    """`srsplan ARGUMENTS` in this process, exit code included."""
    monkeypatch.setattr(sys, "argv", ["srsplan", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return Ended(code, captured.out, captured.err)


def process(*arguments: object, folder: Path | None = None) -> Ended:
    """`srsplan ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-c", "from srsplan.planner.cli.app import main; main()", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)
