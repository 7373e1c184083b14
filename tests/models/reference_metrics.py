"""Writes reference_metrics.json: one small ranking, measured by other people's code.

    python3 -m venv peers && peers/bin/pip install ranx==0.3.21 rectools==0.19.0
    git clone https://github.com/apple/ml-negative-sampling
    peers/bin/python tests/models/reference_metrics.py ml-negative-sampling

The two libraries bring numba, LLVM and an older numpy, some 700 MB, too much for every run of the tests: the file is
kept instead. ranx measures NDCG, HitRate and MRR, RecTools the same and Coverage and Surprisal; the cohorts are those
of the function by which the authors of https://arxiv.org/abs/2410.17276 made their Table 2.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

FILE = Path(__file__).with_suffix(".json")
USERS, TRAIN_USERS, ITEMS, RANKS = 60, 83, 90, 20
KS = (1, 5, 10, 20)
Lists = list[list[int]]
Figures = dict[str, float]


def drawn(seed: int) -> tuple[Lists, Lists, list[int]]:
    """Draw train [users], rankings [users], some of them short, and targets; the last items nobody has in train."""
    random = np.random.default_rng(seed)
    popular = 1 / np.arange(1, ITEMS - 9)
    train = [
        random.choice(len(popular), random.integers(2, 25), replace=False, p=popular / popular.sum())
        for _ in range(TRAIN_USERS)
    ]
    top = [random.permutation(ITEMS)[: RANKS if random.random() < 0.8 else 7] + 1 for _ in range(USERS)]
    targets = [int(random.choice(row) if random.random() < 0.6 else random.integers(1, ITEMS + 1)) for row in top]
    return [(row + 1).tolist() for row in train], [row.tolist() for row in top], targets


def by_ranx(top: Lists, targets: list[int]) -> Figures:
    """Measure with ranx, whose scores say the order."""
    ranx = importlib.import_module("ranx")
    wanted = ranx.Qrels({str(user): {str(item): 1} for user, item in enumerate(targets)})
    found = ranx.Run(
        {str(user): {str(item): 1 / place for place, item in enumerate(row, 1)} for user, row in enumerate(top)}
    )
    names = {f"{ours}_{k}": f"{theirs}@{k}" for k in KS for ours, theirs in RANX_NAMES.items()}
    values = ranx.evaluate(wanted, found, list(names.values()), make_comparable=True)
    return {ours: float(values[theirs]) for ours, theirs in names.items()}


RANX_NAMES = {"NDCG": "ndcg", "HitRate": "hit_rate", "MRR": "mrr"}


def by_rectools(top: Lists, targets: list[int], train: Lists) -> Figures:
    """Measure with RecTools. Its inverse user frequency is in bits: Surprisal is that over log2 of the users."""
    metrics = importlib.import_module("rectools.metrics")
    reco = pd.DataFrame(
        [(user, item, place) for user, row in enumerate(top) for place, item in enumerate(row, 1)],
        columns=["user_id", "item_id", "rank"],
    )
    wanted = pd.DataFrame({"user_id": range(len(targets)), "item_id": targets})
    before = pd.DataFrame(
        [(user, item) for user, row in enumerate(train) for item in row], columns=["user_id", "item_id"]
    )
    known = before["item_id"].unique()
    found: Figures = {}
    for k in KS:
        found[f"NDCG_{k}"] = metrics.NDCG(k=k, divide_by_achievable=True).calc(reco, wanted)
        found[f"HitRate_{k}"] = metrics.HitRate(k=k).calc(reco, wanted)
        found[f"MRR_{k}"] = metrics.MRR(k=k).calc(reco, wanted)
        of_known = reco[reco["item_id"].isin(known)]
        found[f"Coverage_{k}"] = metrics.CatalogCoverage(k=k, normalize=True).calc(of_known, known)
        whole = reco[reco["user_id"].isin([user for user, row in enumerate(top) if len(row) >= k])]
        bits = metrics.MeanInvUserFreq(k=k).calc(whole, before)
        found[f"Surprisal_{k}_of_full_rows"] = bits / float(np.log2(len(train)))
    return {name: float(value) for name, value in found.items()}


def by_the_authors(train: Lists, checkout: Path) -> dict[str, list[int]] | None:
    """Return the items of each cohort, by util.py of the authors' repository; None where a tie crosses a border.

    They sort in no stable order, so that which of the tied items is in which cohort is chance.
    """
    sys.path.insert(0, str(checkout))
    util = importlib.import_module("util")
    nobody: dict[int, list[int]] = {user: [] for user in range(len(train))}
    cohorts, counts = util.obtain_cohorts([dict(enumerate(train)), nobody, nobody, len(train), ITEMS])
    found = {name: sorted(int(item) for item in cohorts[name]) for name in ("head", "mid", "tail")}
    head, mid, tail = ({int(counts[item - 1]) for item in items} for items in found.values())
    return None if head & mid or mid & tail else found


def main() -> None:
    """Draw until no tie crosses a border, measure, write."""
    cohorts, seed = None, 0
    while cohorts is None:
        seed += 1
        train, top, targets = drawn(seed)
        cohorts = by_the_authors(train, Path(sys.argv[1]))
    rows = {name: [user for user, target in enumerate(targets) if target in items] for name, items in cohorts.items()}
    parts = {name: ([top[user] for user in users], [targets[user] for user in users]) for name, users in rows.items()}
    document = {
        "versions": {name: version(name) for name in ("ranx", "rectools", "numpy")},
        "ks": KS, "items": ITEMS, "train": train, "top": top, "targets": targets,
        "ranx": by_ranx(top, targets),
        "rectools": by_rectools(top, targets, train),
        "cohorts": cohorts,
        "ranx of cohorts": {name: by_ranx(*part) for name, part in parts.items()},
    }  # fmt: skip
    FILE.write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
