"""Do the sampled and the full losses train equally good models? One table, several seeds.

    python examples/quality_parity.py video.txt -o parity

Trains the same SASRec with `cce-` (32 tokens share a set of 512 negatives, and 1; 512 by popularity; 2,048), `ce-`
and `cce`, each with every seed,
by `srsplan train` (leave-one-out: video.txt has no timestamps), and prints the test NDCG@10 of full ranking. A run that
is done is not done again and one that was killed goes on, so the script can be started as often as one likes. On a CPU
core a run takes 5 to 20 minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

SAMPLED = ["--negatives", "512", "--tokens-per-set"]
FORMS = {
    "cce-, 32 a set": ["--loss", "cce-", *SAMPLED, "32"],
    "cce-, 1 a set": ["--loss", "cce-", *SAMPLED, "1"],
    "ce-": ["--loss", "ce-", "--negatives", "512"],
    "cce": ["--loss", "cce"],
    "cce-, 32 a set, by popularity": ["--loss", "cce-", *SAMPLED, "32", "--sampler", "popularity"],
    "cce-, 32 a set of 2,048": ["--loss", "cce-", "--negatives", "2048", "--tokens-per-set", "32"],
}
MODEL = ["--dim", "64", "--batch-size", "256", "--seq-len", "50", "--dropout", "0.2"]
TRAINING = ["--epochs", "14", "--split", "leave-one-out"]


def train(data: Path, form: str, seed: int, folder: Path) -> float:
    """Test NDCG@10 of one run; a finished run's is read from its folder."""
    metrics = folder / "metrics.json"
    if not metrics.exists():
        resume = ["--resume"] if (folder / "state.json").exists() else ["--overwrite"]
        command = [str(Path(sys.executable).with_name("srsplan")), "train", "--data", str(data), "-o", str(folder)]
        subprocess.run([*command, *FORMS[form], *MODEL, *TRAINING, "--seed", str(seed), *resume], check=True)
    found: float = json.loads(metrics.read_text())["test"]["NDCG_10"]
    return found


def main(
    data: Path,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the runs.")] = Path("parity"),
    seeds: Annotated[int, typer.Option(help="Runs of every form.")] = 3,
) -> None:
    """Train what is missing, print the table, write it as CSV."""
    found = {
        (form, seed): train(data, form, seed, output / f"{number}-{seed}")
        for seed in range(1, seeds + 1)
        for number, form in enumerate(FORMS)
    }
    rows = pd.Series(found).rename_axis(["form", "seed"]).rename("test_ndcg_10").reset_index()
    rows.to_csv(output / "quality_parity.csv", index=False)
    means = {form: rows.test_ndcg_10[rows.form == form].mean() for form in FORMS}
    table = Table("form", "runs", "mean", "against the mean of all", box=None)
    for form, mean in means.items():
        values = ", ".join(f"{value:.4f}" for value in rows.test_ndcg_10[rows.form == form])
        table.add_row(form, values, f"{mean:.4f}", f"{mean / np.mean([*means.values()]) - 1:+.1%}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
