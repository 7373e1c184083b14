"""What is the fullest batch worth to a memory formula? Checked on 997 published runs, or as many as you have.

    python examples/published_runs.py runs.csv

The runs are those published with "Faster and Memory-Efficient Training of Sequential Recommendation Models for Large
Catalogs": SASRec with eager CE and CE-, fp16 autocast. Their allocated peak, in bytes, follows one formula (S = 4 V D,
N = batch size x length, M = valid tokens):

    sampled   max(5.1 S, 3.2 S + 12 (D + 1) M ns) + 65 D N + 16 D M
    full      max(5.1 S, 3.5 S + 10 N V) + 65 D N

It is not srsplan's own formula, which is derived from its own step. Everything but M is in the table or published. M is
given in three ways, and the errors printed per dataset:

1. no padding: M = N, all that is known from batch size and length;
2. --mean-length: the dataset's published mean, through the bound of the fullest batch that `recommend` uses;
3. two runs of each length (the smallest and the largest batch, most negatives) tell the mean and the spread of a batch:
   M = a bs + b sqrt(bs); errors are on all other runs.

Positive: predicted more than was measured. D is the paper's 256, except for Zvuk (312) and Megamarket (512): what their
smallest runs hold says so, and with 256 the errors are four and fifteen times as large.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from srsplan.models.errors import SrsplanError
from srsplan.planner.analysis.run_tables import load_runs
from srsplan.planner.cli.console import print_error
from srsplan.planner.workload import MeanLength

GIB = 1 << 30
NS = "loss_sample_count"


@dataclass(frozen=True)
class Dataset:
    """Published sizes (the paper's table of datasets); D as said, or as the runs tell."""

    catalog: int
    mean_length: float
    dim: int = 256


DATASETS = {
    "movielens_20m": Dataset(15_000, 88.22),
    "beauty": Dataset(176_000, 7.46),
    "gowalla": Dataset(309_000, 54.98),
    "zvuk": Dataset(893_000, 656.93, dim=312),
    "30music": Dataset(909_000, 577.71),
    "megamarket": Dataset(1_661_000, 327.88, dim=512),
}


def predicted_bytes(sizes: Dataset, runs: pd.DataFrame, valid: pd.Series[float]) -> pd.Series[float]:
    """The formula above for every run, with so many valid tokens each."""
    table, tokens, dim = 4.0 * sizes.catalog * sizes.dim, runs.batch_size * runs.max_seq_len, sizes.dim
    full = np.isinf(runs[NS])
    negatives = runs[NS].where(~full, 0)
    sampled = np.maximum(5.1 * table, 3.2 * table + 12 * (dim + 1) * valid * negatives) + 16 * dim * valid
    softmax = np.maximum(5.1 * table, 3.5 * table + 10.0 * tokens * sizes.catalog)
    model: pd.Series[float] = 65.0 * dim * tokens
    return model + np.where(full, softmax, sampled)


def no_padding(runs: pd.DataFrame) -> pd.Series[float]:
    """M = N."""
    return (runs.batch_size * runs.max_seq_len).astype(float)


def by_mean_length(sizes: Dataset, runs: pd.DataFrame) -> pd.Series[float]:
    """The bound of the fullest batch for exponentially distributed lengths: nothing of the runs is used."""
    workload = MeanLength(sizes.mean_length)
    pairs = zip(runs.batch_size, runs.max_seq_len, strict=True)
    tokens = [float(workload.fullest_batch(int(size), int(length))) for size, length in pairs]
    return pd.Series(tokens, index=runs.index)


def by_two_runs(sizes: Dataset, runs: pd.DataFrame) -> tuple[pd.Series[float], list[int]]:
    """M = a bs + b sqrt(bs) per length, and the runs that a and b come from."""
    valid, used = no_padding(runs), []
    for length, group in runs[np.isfinite(runs[NS])].groupby("max_seq_len"):
        picked = [
            group[group.batch_size == size][NS].idxmax() for size in (group.batch_size.min(), group.batch_size.max())
        ]
        used += picked
        sizes_of = group.batch_size[picked].to_numpy(float)
        tokens = np.array([valid_tokens_of(sizes, runs.loc[[row]]) for row in picked])
        mean, spread = tokens[1] / sizes_of[1], 0.0
        if sizes_of[0] != sizes_of[1]:
            mean, spread = np.linalg.solve(np.stack([sizes_of, np.sqrt(sizes_of)], 1), tokens)
        same = runs.max_seq_len == length
        fitted = mean * runs.batch_size + spread * np.sqrt(runs.batch_size)
        valid = valid.where(~same, np.minimum(valid, fitted))
    return valid, used


def valid_tokens_of(sizes: Dataset, run: pd.DataFrame) -> float:
    """The valid tokens with which the formula gives what one run measured; at most all of them."""
    measured, (low, high) = float(run.max_allocated_memory.iloc[0]) * GIB, (0.0, float(no_padding(run).iloc[0]))
    for _ in range(50):
        middle = (low + high) / 2
        less = float(predicted_bytes(sizes, run, pd.Series(middle, index=run.index)).iloc[0]) < measured
        low, high = (middle, high) if less else (low, middle)
    return high


def errors_of(sizes: Dataset, runs: pd.DataFrame) -> dict[str, pd.Series[float]]:
    """Relative errors by where M is from."""
    fitted, used = by_two_runs(sizes, runs)
    inputs = {"no padding": no_padding(runs), "mean length": by_mean_length(sizes, runs), "two runs": fitted}
    errors = {
        name: predicted_bytes(sizes, runs, valid) / (runs.max_allocated_memory * GIB) - 1
        for name, valid in inputs.items()
    }
    errors["two runs"] = errors["two runs"].drop(used)
    return errors


def compare(path: Path) -> dict[str, dict[str, pd.Series[float]]]:
    """Errors per dataset of a run table, and where M is from; InputError for a file that is none."""
    frame = load_runs(path).frame
    frame = frame[frame.max_allocated_memory.notna()].reset_index(drop=True)
    known = [name for name in DATASETS if (frame.dataset == name).any()]
    return {name: errors_of(DATASETS[name], frame[frame.dataset == name]) for name in known}


def main(path: Path) -> None:
    """One row a dataset and input."""
    table = Table("dataset", "valid tokens from", "runs", "median", "most over", "most under", "> 5% under", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for dataset, errors in compare(path).items():
        for name, error in errors.items():
            table.add_row(
                dataset, name, str(len(error)), f"{error.abs().median():.1%}",
                f"{error.max():+.0%}", f"{error.min():+.0%}", f"{(error < -0.05).mean():.0%}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except SrsplanError as error:
        print_error(error)
        sys.exit(error.exit_code)
