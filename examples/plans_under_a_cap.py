"""Do the plans hold? Rank 1 of recommend, for catalogs, budgets and losses, trains under a hard cap of its budget.

    python examples/plans_under_a_cap.py [--plans 24] [-o plans.csv]

On a card that holds the largest budget every plan trains twenty steps, evaluates a batch and goes on, in a process that
may reserve what the plan may use and no more. Without one this is simulated: the ledger's trace of the same through the
model of the caching allocator. Prints for each plan whether it runs, how often the cap forces memory to be given back
after the first steps (in the last two, where it is simulated), and how much of the budget is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture
from srsplan.planner.budget import Budget, make_budget
from srsplan.planner.confirm import confirm
from srsplan.planner.search import Choice, Prices, Space, recommend
from srsplan.planner.workload import WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import find_gpu

CATALOGS = (30_000, 300_000, 1_600_000)
BUDGETS_GB = (8, 16, 24, 40, 80)
STEPS = 20
CARD = find_gpu("h200")


def plans() -> Iterator[tuple[int, str, Budget, Choice]]:
    """Gigabytes, loss, budget and rank 1 of what fits."""
    model = MemoryModel()
    for catalog, gigabytes, loss in product(CATALOGS, BUDGETS_GB, LOSSES):
        space = Space(
            catalog=catalog, losses=(loss,), architecture=Architecture(), precision="fp16", workload=WorstCase()
        )
        budget = make_budget(gigabytes * 10**9, CARD)
        found = recommend(space, Prices(space.workload, budget, CARD, model))
        if found.choices:
            yield gigabytes, loss, budget, found.choices[0]


def main(
    count: Annotated[int | None, typer.Option("--plans", min=1, help="At most so many, evenly taken.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a table.")] = None,
) -> None:
    """One line a plan."""
    every = list(plans())
    chosen = every if count is None else [every[at * len(every) // count] for at in range(min(count, len(every)))]
    rows = []
    for gigabytes, loss, budget, choice in chosen:
        found = confirm(choice, budget, CARD, steps=STEPS)
        configuration, share = choice.configuration, found.reserved_bytes / budget.usable_bytes
        rows.append(
            {
                "date": date.today().isoformat(), "budget_gb": gigabytes, "usable_bytes": budget.usable_bytes,
                "loss": loss, "catalog": configuration.catalog, "batch_size": configuration.batch_size,
                "seq_len": configuration.seq_len, "negatives": configuration.negatives or 0,
                "pass_tokens": configuration.tokens, "passes": choice.passes, "fits": found.fits,
                "retries": found.retries, "reserved_bytes": found.reserved_bytes,
                "allocated_bytes": found.allocated_bytes, "predicted_bytes": choice.memory.reserved_bytes,
                "upper_bytes": choice.memory.upper_bytes,
                "basis": found.basis,
            }
        )  # fmt: skip
        print(
            f"{configuration.catalog:>9,} {gigabytes:>3} GB {loss:4}  {'runs' if found.fits else 'OUT OF MEMORY'}, "
            f"{found.retries} retries, {share:4.0%} of {budget.usable_bytes / 2**30:.1f} GiB reserved, "
            f"{choice.passes} passes of {configuration.tokens:,} tokens"
        )
        if output is not None:
            pd.DataFrame(rows).to_csv(output, index=False)
    table = pd.DataFrame(rows)
    smooth, binding = (table.fits & (table.retries == 0)).sum(), table[table.passes > 1]
    planned, used = (binding[name] / binding.usable_bytes for name in ("upper_bytes", "reserved_bytes"))
    print(
        f"{table.fits.sum()} of {len(table)} plans run, {smooth} without a late retry; where memory binds (several "
        f"passes, {len(binding)} plans) they plan for {planned.mean():.1%} of the usable budget on average, at least "
        f"{planned.min():.1%}, and reserved {used.mean():.1%} in full passes alone ({table.basis[0]})"
    )


if __name__ == "__main__":
    typer.run(main)
