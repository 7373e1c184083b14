"""The ledger against 24 training steps measured on an H200."""

from __future__ import annotations

import csv

import pytest
from measured_model import Measured, trace
from paths import SHARED


def rows() -> list[dict[str, str]]:
    if not SHARED.exists():
        return []
    with (SHARED / "measured" / "h200_step_memory.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.evidence
@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(list(row.values())[:7]))
def test_allocated_peak_equals_the_gpu(row: dict[str, str]) -> None:
    catalog, batch_size, seq_len, negatives = (int(row[n]) for n in ("catalog", "batch_size", "seq_len", "negatives"))
    step = Measured(row["loss"], catalog, batch_size, seq_len, negatives, row["amp"], row["adam"])
    recorded, second_step = trace(step)
    measured = int(row["allocated_peak_bytes"])
    assert recorded.peak(second_step).allocated_bytes == pytest.approx(measured, rel=0.005)
