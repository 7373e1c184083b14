"""The kernels compile for cards that are not here, within their registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from paths import ROOT

from srsplan.kernels.tuning import SAMPLED_BACKWARD, SAMPLED_FORWARD, SHARED_MEMORY_BYTES, SOFTMAX

SPILLED_BYTES = 16
"""Four registers of a thread, outside the loop: the assembler's rounding, not a lack."""


def compiled(*arguments: object) -> list[dict[str, Any]]:
    """Rows of compile_kernels.py, which must not be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("capability", "dims"), [(80, ()), (90, ()), (86, (256, 1024)), (89, (1024,)), (100, (256, 1024))]
)
def test_every_launch_fits_the_card(capability: int, dims: tuple[int, ...]) -> None:
    """Every hidden size for the two families that most cards of data centres are, the largest for the others."""
    rows = compiled(capability, *dims)
    sizes = len(dims) or len(SOFTMAX)
    assert sizes <= len(SAMPLED_FORWARD) == len(SAMPLED_BACKWARD) == len(SOFTMAX)
    assert len(rows) == 5 * sizes
    for row in rows:
        assert row["shared_bytes"] <= SHARED_MEMORY_BYTES[capability], row
        assert row["registers"] <= 255, row
        assert row["spilled_bytes"] <= SPILLED_BYTES, row


def test_every_sampler_type_and_option_compiles_for_the_smallest_card() -> None:
    """At D 256: four samplers, log-Q or not, repeatable sums, fp16, bf16 and fp32, a table of another type."""
    rows = compiled(80, "variants")
    assert len(rows) == 2 * 9 + 3 * 4
    for row in rows:
        assert row["shared_bytes"] <= min(SHARED_MEMORY_BYTES.values()), row
        assert row["spilled_bytes"] <= SPILLED_BYTES, row
