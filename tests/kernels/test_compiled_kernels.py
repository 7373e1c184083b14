"""The kernels compile for cards that are not here, within their registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from paths import ROOT

from srsplan.kernels.launches.table import (
    SAMPLED_BACKWARD,
    SAMPLED_FORWARD,
    SHARED_MEMORY_BYTES,
    SPAN_ITEMS,
    softmax_table,
)

SPILLED_BYTES = 40
"""Ten registers of a thread, outside the loop: the assembler's rounding, not a lack."""
EPILOGUE_SPILLED_BYTES = {("softmax_forward", 512): 352}
"""Beside [64, 512] sums the targets' rows are loaded once more, after the loop, which itself spills nothing."""
VARIANT_SPILLED_BYTES = {"sparse": 128, "frozen table": 160}
"""More is allowed where spans are looked at one by one, of which few are worked on, and where no span is kept: forward
of D 256 then holds the places of the targets' rows in other registers, before and after its loop."""


def compiled(*arguments: object) -> list[dict[str, Any]]:
    """Rows of compile_kernels.py, which must not be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tests" / "compile_kernels.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("capability", "dims"), [(80, ()), (90, ()), (86, (256, 1024)), (89, (1024,)), (100, (256, 1024))]
)
def test_every_launch_fits_the_card(capability: int, dims: tuple[int, ...]) -> None:
    """Every hidden size for the two families that most cards of data centres are, the largest for the others."""
    rows = compiled(capability, *dims)
    assert len(rows) == 5 * (len(dims) or len(SAMPLED_FORWARD))
    for row in rows:
        assert row["shared_bytes"] <= SHARED_MEMORY_BYTES[capability], row
        assert row["registers"] <= 255, row
        allowed = EPILOGUE_SPILLED_BYTES.get((row["kernel"], row["dim"]), SPILLED_BYTES)
        assert row["spilled_bytes"] <= allowed, row


@pytest.mark.parametrize("capability", [80, 90])
def test_every_sampler_type_and_option_compiles(capability: int) -> None:
    """At D 256: samplers, log-Q or not, repeatable sums, spans skipped, a catalog that is split, all types, numbers
    in memory, one input frozen."""
    rows = compiled(capability, "variants")
    assert len(rows) == 2 * 10 + 2 + 3 * 2 + 2 + 2
    for row in rows:
        assert row["shared_bytes"] <= SHARED_MEMORY_BYTES[90 if capability == 90 else 86], row
        assert row["spilled_bytes"] <= VARIANT_SPILLED_BYTES.get(row["variant"], SPILLED_BYTES), row


def test_sizes_of_one_are_constants_of_the_compiler() -> None:
    """The first token, the second step, a single set: a launch then passes no tensor but a constant."""
    assert len(compiled(80, "ones")) == 5 + 5


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("capability", SHARED_MEMORY_BYTES)
def test_launches_of_the_full_softmax_agree_on_spans(capability: int, fp32: bool) -> None:
    """A byte of forward is about a block of rows and a span: backward's blocks and tiles must divide them."""
    forward, loss, table = (
        softmax_table(f"softmax_{name}", capability, fp32) for name in ("forward", "forward_loss", "backward_table")
    )
    assert list(forward) == list(loss) == list(table)
    assert list(SAMPLED_FORWARD) == list(SAMPLED_BACKWARD)
    for dim, launch in table.items():
        assert forward[dim].block_m % launch.block_m == loss[dim].block_m % launch.block_m == 0
        assert all(SPAN_ITEMS % each.block_n == 0 for each in (launch, forward[dim], loss[dim]))
