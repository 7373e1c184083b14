"""Fits the constants of planner/timing.py to a table of measured steps and prints their errors.

    python examples/calibrate_step_time.py h200_step_memory.csv

The table's steps are those of another SASRec (feed-forward four times as wide, no padding), so its shape is counted.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from srsplan.models.config import Configuration
from srsplan.planner.timing import StepCost, step_cost

H200_TFLOPS, H200_BANDWIDTH = 989e12, 4.8e12
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
    seconds = np.array([float(row["step_s"]) for row in rows])
    costs = [cost_of(row) for row in rows]
    terms = np.array(
        [[c.product_flops / H200_TFLOPS, c.moved_bytes / H200_BANDWIDTH, c.launches * 1e-6] for c in costs]
    )
    factors, _ = nnls(terms / seconds[:, None], np.ones(len(rows)))
    errors = terms @ factors / seconds - 1
    held_out = []
    for left in range(len(rows)):
        keep = np.arange(len(rows)) != left
        fitted, _ = nnls(terms[keep] / seconds[keep, None], np.ones(len(rows) - 1))
        held_out.append(terms[left] @ fitted / seconds[left] - 1)
    print(
        f"efficiency of products {1 / factors[0]:.3f}, of bandwidth {1 / factors[1]:.3f}, {factors[2]:.1f} us a launch"
    )
    for row, error, out in zip(rows, errors, held_out, strict=True):
        print(
            f"{row['loss']:7} {row['catalog']:>8} {row['batch_size']:>5} x {row['seq_len']:<5} {error:+.0%} {out:+.0%}"
        )
    print(f"held out: median {np.median(np.abs(held_out)):.0%}, worst {np.max(np.abs(held_out)):.0%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
