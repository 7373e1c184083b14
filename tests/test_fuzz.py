"""A few hostile command lines, and a fuzzer that notices what it is for. Thousands: `python tests/fuzz.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import fuzz
import pytest
from paths import ROOT


def test_hostile_command_lines(tmp_path: Path) -> None:
    failures = tmp_path / "failures.jsonl"
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--cases", "12", "--failures", str(failures)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 cases ran" in done.stdout
    assert "\n0 failed" in done.stdout


BROKEN = {
    "traceback": "import traceback\ntry: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc()\nsys.exit(2)",
    "exit 1": "raise KeyError('exp_avg')",
    "exit 7": "sys.exit(7)",
    "exit -9": "os.kill(os.getpid(), 9)",
    "no message": "sys.exit(2)",
    "escape sequence": "print('\\x1b[2J')",
    "memory": "held = bytearray(3 << 30)",
    "timeout": "import time; time.sleep(60)",
    "destroyed thesis.txt": "open('thesis.txt', 'w').write('gone')",
    "destroyed special": "os.replace('package.json', 'special'); open('package.json', 'w').write('{}')",
    "": "print('all is well')",
}


@pytest.mark.parametrize("failure", BROKEN)
def test_the_fuzzer_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """Each kind of failure, put into a verb."""
    good = tmp_path / "good"
    (good / "mine").mkdir(parents=True)
    for name, content in fuzz.MINE.items():
        (good / name).write_bytes(content)

    def drawn(_: Random, __: str | None, folder: Path) -> list[str]:
        os.mkfifo(folder / "special")
        return ["gpus"]

    def broken() -> None:
        exec(BROKEN[failure], {"os": os, "sys": sys})

    monkeypatch.setattr("srsplan.planner.cli.gpus.gpus_command", broken)
    monkeypatch.setattr(fuzz, "drawn", drawn)
    monkeypatch.setattr(fuzz, "WAITING", 1.0 if failure == "timeout" else 30.0)
    began = time.monotonic()
    assert fuzz.attempt(0, 0, None, good, tmp_path).failure == failure
    assert time.monotonic() - began < 30
