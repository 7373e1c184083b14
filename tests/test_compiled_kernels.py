"""The kernels compile for cards that are not here, within their registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from srsplan.kernels.tuning import SAMPLED_BACKWARD, SAMPLED_FORWARD, SHARED_MEMORY_BYTES, SOFTMAX

SPILLED_BYTES = 16
"""Four registers of a thread, outside the loop: the assembler's rounding, not a lack."""


@pytest.mark.parametrize("capability", SHARED_MEMORY_BYTES)
def test_every_launch_fits_the_card(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    other_samplers = 3 * 2
    assert len(rows) == len(SAMPLED_FORWARD) + len(SAMPLED_BACKWARD) + 3 * len(SOFTMAX) + other_samplers
    for row in rows:
        assert row["shared_bytes"] <= SHARED_MEMORY_BYTES[row["capability"]], row
        assert row["registers"] <= 255, row
        assert row["spilled_bytes"] <= SPILLED_BYTES, row
