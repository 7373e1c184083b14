"""Fits the constants of planner/timing.py to a table of measured steps and prints their errors.

    python examples/calibrate_step_time.py h200_step_memory.csv

The table's steps are those of another SASRec (feed-forward four times as wide, no padding), so its shape is counted.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from srsplan.models.config import Configuration
from srsplan.planner.step_time import StepCost, step_cost
from srsplan.planner.step_time_fit import Timed, fit_rates
from srsplan.profiler.probes.catalogue import find_gpu

NAMES = {"ce": "ce", "ce_neg": "ce-", "bce": "bce"}


def cost_of(row: dict[str, str]) -> StepCost:
    """Counts of a measured step."""
    negatives = {"ce": None, "ce_neg": int(row["negatives"]), "bce": 1}[row["loss"]]
    configuration = Configuration(
        loss=NAMES[row["loss"]],
        catalog=int(row["catalog"]),
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
        negatives=negatives,
    )
    return step_cost(configuration, feed_forward=4, foreach=row["adam"] == "foreach")


def main(path: Path) -> None:
    """Fit, print, compare."""
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    card = find_gpu("h200")
    fit = fit_rates(
        [Timed(cost=cost_of(row), gpu=card, precision="fp16", step_ms=1e3 * float(row["step_s"])) for row in rows]
    )
    for row, error in zip(rows, fit.held_out, strict=True):
        print(f"{row['loss']:7} {row['catalog']:>8} {row['batch_size']:>5} x {row['seq_len']:<5} held out {error:+.0%}")
    print(f"{fit.rates}\n{fit.describe()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
