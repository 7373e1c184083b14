"""What several GPUs need, on paper: the buffers they send each other through, against formulas written out here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from command import Ended

Run = Callable[..., Ended]

BATCH, LENGTH, DIM, GPUS, NEGATIVES = 512, 200, 256, 8, 64
TOKENS = BATCH * LENGTH
LOOKED_UP = 4 * TOKENS * DIM
"""fp32 rows that a GPU's tokens get from the others' shards."""


@pytest.mark.parametrize(
    ("loss", "more", "exchanged"),
    [
        ("cce", [], LOOKED_UP + GPUS * TOKENS * DIM * 2),
        ("ce-", ["--negatives", NEGATIVES], LOOKED_UP + 4 * TOKENS * NEGATIVES * DIM),
        ("bce", [], LOOKED_UP + 4 * TOKENS * DIM),
    ],
)
def test_a_sharded_table_needs_buffers(run: Run, loss: str, more: list[object], exchanged: int) -> None:
    """With so few items sharding saves nothing: the difference of the two layouts is what they exchange."""
    sizes = ["--catalog", 100, "--batch-size", BATCH, "--seq-len", LENGTH, "--dim", DIM]
    document = run("estimate", "--loss", loss, *sizes, *more, "--gpus", GPUS, "--json").json
    replicated, sharded = document["several_gpus"]
    for key in ("reserved_bytes", "upper_bytes"):
        assert sharded[key] - replicated[key] == pytest.approx(exchanged, rel=0.02)
    assert replicated["upper_bytes"] == document["memory"]["upper_bytes"]
    assert (sharded["per_gpu_batch"], sharded["global_batch"]) == (BATCH, GPUS * BATCH)


def test_a_sharded_table_is_smaller(run: Run) -> None:
    """Of 4 S, an eighth stays on each GPU."""
    sizes = ["--catalog", "5M", "--batch-size", 16, "--seq-len", 16, "--negatives", 32]
    document = run("estimate", "--loss", "cce-", *sizes, "--gpus", GPUS, "--json").json
    replicated, sharded = document["several_gpus"]
    saved = replicated["upper_bytes"] - sharded["upper_bytes"]
    assert saved == pytest.approx(document["fixed_floor_bytes"] * (1 - 1 / GPUS), rel=0.1)
