"""Do the plans hold? Rank 1 of recommend, for catalogs, budgets and losses, trains under a hard cap of its budget.

    python examples/plans_under_a_cap.py

On a machine without a GPU this is simulated: the ledger's trace of twenty steps and an evaluation through the model of
the caching allocator, capped at what the plan may use. Prints per plan whether it runs, how often the cap forces memory
to be given back in the last two steps, and how much of the budget is used.
"""

from __future__ import annotations

from itertools import product

from srsplan.models.config import LOSSES, Architecture
from srsplan.planner.budget import make_budget
from srsplan.planner.confirm import confirm
from srsplan.planner.gpus import find_gpu
from srsplan.planner.memory import MemoryModel
from srsplan.planner.search import Search, Space
from srsplan.planner.workload import WorstCase

CATALOGS = (30_000, 300_000, 1_600_000)
BUDGETS_GB = (8, 16, 24, 40, 80)
STEPS = 20


def main() -> None:
    """One line a plan."""
    gpu, model = find_gpu("h200"), MemoryModel()
    ran, used, plans = 0, 0.0, 0
    for catalog, gigabytes, loss in product(CATALOGS, BUDGETS_GB, LOSSES):
        space = Space(
            catalog=catalog, losses=(loss,), architecture=Architecture(), precision="fp16", workload=WorstCase()
        )
        budget = make_budget(gigabytes * 10**9, gpu)
        outcome = Search(space, budget, gpu, model).run()
        if not outcome.choices:
            print(f"{catalog:>9,} {gigabytes:>3} GB {loss:4}  nothing fits")
            continue
        choice = outcome.choices[0]
        found = confirm(choice, budget, gpu, steps=STEPS)
        share = found.reserved_bytes / budget.usable_bytes
        plans, ran, used = plans + 1, ran + (found.fits and not found.retries), used + share
        verdict = "runs" if found.fits else "OUT OF MEMORY"
        print(
            f"{catalog:>9,} {gigabytes:>3} GB {loss:4}  {verdict}, {found.retries} retries, "
            f"{share:4.0%} of {budget.usable_bytes / 2**30:.1f} GiB reserved"
        )
    print(f"{ran} of {plans} plans run without a retry, {used / plans:.0%} of the usable budget is used on average")


if __name__ == "__main__":
    main()
