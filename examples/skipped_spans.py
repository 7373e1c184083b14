"""How much of the full softmax's backward may be skipped after training? One run's folder is all it takes.

    srsplan train --data video.txt --loss cce --split leave-one-out -o run
    python examples/skipped_spans.py run

A span is 128 tokens x 256 items (kernels/full_softmax/kernel.py): backward skips those whose largest share of the
softmax is below a threshold. Prints the fraction of spans below several thresholds for the tokens of one training
batch, with the items in the order of the table, by popularity (rare items together), and at random.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from srsplan.models import load_run
from srsplan.models.data.batches import TrainBatches
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Split, split
from srsplan.models.training.inputs import step_inputs

CPU = torch.device("cpu")
TOKENS, ITEMS = 128, 256
THRESHOLDS = {"fp16's 2^-35": 2**-35, "2^-24": 2**-24, "1e-6": 1e-6, "1e-5": 1e-5, "1e-4": 1e-4}


def shares(folder: Path) -> tuple[Tensor, Split]:
    """Softmax [M, V] of the trained model for the targets of the first batch of an epoch."""
    run = json.loads((folder / "config.json").read_text())
    interactions = read_interactions(
        Path(run["data"]),
        min_user_interactions=run["minimums"]["user"],
        min_item_interactions=run["minimums"]["item"],
    )
    parts = split(interactions, run["split"], seed=run["settings"]["seed"])
    trained = load_run(folder)
    configuration, model = trained.configuration, trained.model
    batches = TrainBatches(parts.train, configuration.batch_size, configuration.seq_len, seed=1)
    batch = step_inputs(next(iter(batches.epoch(0))), CPU)
    with torch.no_grad():
        hidden = model(batch.sequences)
        return torch.softmax(hidden @ model.item_table.T, 1), parts


def below(share: Tensor, threshold: float) -> float:
    """Fraction of spans whose largest entry is below a threshold."""
    tokens, spans = len(share) // TOKENS, -(-share.shape[1] // ITEMS)
    padded = F.pad(share[: tokens * TOKENS], (0, spans * ITEMS - share.shape[1]))
    largest = padded.view(tokens, TOKENS, spans, ITEMS).amax((1, 3))
    return float((largest < threshold).float().mean())


def main(folder: Path) -> None:
    """Three orders of the items, five thresholds."""
    share, parts = shares(folder)
    counts = torch.from_numpy(parts.item_counts[1:])
    orders = {
        "of the table": torch.arange(len(counts)),
        "by popularity": counts.argsort(descending=True),
        "at random": torch.randperm(len(counts), generator=torch.Generator().manual_seed(0)),
    }
    table = Table("items", *THRESHOLDS, box=None, title="spans that backward skips")
    for name, order in orders.items():
        table.add_row(name, *(f"{below(share[:, order], threshold):.1%}" for threshold in THRESHOLDS.values()))
    entries = (f"{float((share < threshold).float().mean()):.1%}" for threshold in THRESHOLDS.values())
    table.add_row("single entries", *entries)
    Console().print(table)
    entropy = -(share * share.clamp(min=1e-30).log()).sum(1).mean()
    print(f"{len(share):,} tokens, {share.shape[1]:,} items, mean entropy {float(entropy):.2f} nats")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
