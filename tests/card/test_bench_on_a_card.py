"""`srsplan bench` on a card: the host does not show, kernels have names, launches have times."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import torch

from srsplan.kernels.launches.autotune import candidates
from srsplan.kernels.launches.table import SAMPLED_FORWARD, launch_for
from srsplan.profiler.bench import __main__ as bare
from srsplan.profiler.bench.timing import times


def test_the_host_does_not_show(device: torch.device) -> None:
    """Three hundred additions to a thousand numbers: the card needs a few microseconds each, the host more."""
    numbers = torch.ones(1000, device=device)

    def many() -> None:
        for _ in range(300):
            numbers.add_(1)

    def waiting() -> None:
        many()
        time.sleep(0.02)

    quick, slow = (sorted(times(run, device, 5))[2] for run in (many, waiting))
    assert slow < quick + 5


def test_rows_of_contestants_kernels_and_launches(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    options = ("--shapes", "4096x20Kx64x64", "--logits", "random", "--kernels", "--sweep", "-o", path)
    assert bare.main([*map(str, options), "--only", "triton cce- 32 a set,triton cce,triton cce at 3e-5,eager"]) == 0
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    contestants = [row for row in rows if row["row"] == "contestant"]
    assert {row["status"] for row in contestants} == {"ok"}
    assert all(float(row["loss_error"]) < 1e-3 for row in contestants if row["loss"] == "ce")
    assert all(float(row["peak_bytes"]) > 0 for row in contestants)
    kernels = [row for row in rows if row["row"] == "kernel"]
    assert {row["status"] for row in kernels} == {"ok"}
    of_sampled = {row["kernel"] for row in kernels if row["contestant"] == "Triton cce-"}
    assert {"sampled_forward", "sampled_backward"} <= of_sampled
    launches = [row for row in rows if row["row"] == "launch" and row["kernel"] == "sampled_forward"]
    assert len(launches) == 1 + len(list(candidates(launch_for(SAMPLED_FORWARD, 64), (16, 32, 64))))
    ran = [float(row["kernel_ms"]) for row in launches if row["kernel_ms"]]
    assert [float(row["kernel_ms"]) for row in launches if row["best"] == "True"] == [min(ran)]
