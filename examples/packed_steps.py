"""What does a step cost without padding? Packed sequences against the same model on a padded rectangle, on a CPU.

    python examples/packed_steps.py --data video.txt -o packed_steps.json

Two data sets, batches of 256 sequences, loss cce, D = 64, fp32: the file that is given (Amazon Video by leave-one-out),
at most 50 items of a sequence; and generated ones as short as those of Amazon Beauty, a mean of 18 tokens where 200 are
possible, of 12,101 items by Zipf's law. The padded step is what srsplan did before: every batch as wide as its longest
sequence, padding left out of the loss alone. Both take the same batches in turn, with one thread and with torch's
default; the figures are medians. Several threads wait for each other by spinning: where the machine has other work as
well, only those of one thread mean anything.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.batches import Batch, TrainBatches
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Sequences, split
from srsplan.models.sasrec import Block, SASRec
from srsplan.models.training.inputs import step_inputs
from srsplan.models.training.step import TrainingStep

CPU = torch.device("cpu")
BATCH_SIZE, DIM = 256, 64
BEAUTY_ITEMS, BEAUTY_USERS, BEAUTY_TOKENS = 12_101, 22_363, 18
WARM_UP = 2
"""Steps that are not counted."""

Seconds = tuple[float, float]
"""Of the CPU, and of the clock."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The medians of one data set and number of threads."""

    data: str
    threads: int
    tokens: float
    """Tokens of a batch, mean."""
    fill: float
    """Share of batch_size x seq_len that they are."""
    padded_tokens: float
    """Tokens of its rectangle, mean."""
    packed_cpu_seconds: float
    padded_cpu_seconds: float
    packed_seconds: float
    padded_seconds: float

    @property
    def ratio(self) -> float:
        """How much cheaper a packed step is."""
        return self.padded_cpu_seconds / self.packed_cpu_seconds


def beauty_like(seed: int = 0) -> Sequences:
    """Lengths are geometric, at most 201 items; items by Zipf's law."""
    draw = np.random.default_rng(seed)
    lengths = np.minimum(draw.geometric(1 / BEAUTY_TOKENS, BEAUTY_USERS), 200) + 1
    shares = 1 / np.arange(1, BEAUTY_ITEMS + 1)
    items = draw.choice(BEAUTY_ITEMS, int(lengths.sum()), p=shares / shares.sum()) + 1
    return Sequences(np.cumsum([0, *lengths]), items.astype(np.int32))


def packed_step(step: TrainingStep, batch: Batch) -> None:
    """One step, as `srsplan train` takes it."""
    step.run(step_inputs(batch, CPU))


def padded_step(step: TrainingStep, batch: Batch) -> None:
    """One step on a rectangle [B, L]; item 0 stands at padding."""
    lengths = torch.from_numpy(np.diff(batch.offsets))
    valid = torch.arange(batch.longest) < lengths[:, None]
    rows = torch.zeros(len(batch), batch.longest, dtype=torch.int64)
    rows[valid] = torch.from_numpy(batch.items - 1)
    step.model.train()
    step.optimizer.zero_grad(set_to_none=True)
    assert isinstance(step.model, SASRec)
    hidden = padded_sasrec(step.model, rows).flatten(0, 1).index_select(0, valid.flatten().nonzero().flatten())
    step.loss_call(hidden, step.model.item_table, torch.from_numpy(batch.targets - 1)).backward()
    step.optimizer.step()


def padded_sasrec(model: SASRec, rows: Tensor) -> Tensor:
    """The model's own layers on items [B, L]: hidden states [B, L, D]."""
    dropout = model.sizes.dropout
    x = F.embedding(rows, model.item_table) * math.sqrt(model.sizes.dim)
    x = F.dropout(x + model.position_embedding.weight[: rows.shape[1]], dropout)
    for block in model.blocks:
        assert isinstance(block, Block)
        x = x + F.dropout(padded_attention(block, block.attention_norm(x), dropout), dropout)
        x = x + F.dropout(block.feed_forward(block.feed_forward_norm(x)), dropout)
    hidden: Tensor = model.norm(x)
    return hidden


def padded_attention(block: Block, x: Tensor, dropout: float) -> Tensor:
    """Causal attention of every row [B, L, D], padding included."""
    batch, length, dim = x.shape
    heads = block.attention.heads
    joined = block.attention.project_in(x).view(batch, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    query, key, value = joined.unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    found: Tensor = block.attention.project_out(mixed.transpose(1, 2).reshape(batch, length, dim))
    return found


def timed(take: Callable[[TrainingStep, Batch], None], step: TrainingStep, batch: Batch) -> Seconds:
    """Seconds of the CPU, over all threads, and of the clock."""
    began = time.process_time(), time.perf_counter()
    take(step, batch)
    return time.process_time() - began[0], time.perf_counter() - began[1]


def measured(name: str, train: Sequences, catalog: int, seq_len: int, steps: int) -> Iterator[Row]:
    """One row for one thread and one for torch's default."""
    configuration = Configuration(
        loss="cce", catalog=catalog, batch_size=BATCH_SIZE, seq_len=seq_len, precision="fp32",
        architecture=Architecture(dim=DIM),
    )  # fmt: skip
    full = [batch for batch in TrainBatches(train, BATCH_SIZE, seq_len, seed=0).epoch(0) if len(batch) == BATCH_SIZE]
    batches = list(islice(cycle(full), WARM_UP + steps))
    default = torch.get_num_threads()
    for threads in sorted({1, default}):
        torch.set_num_threads(threads)
        packed, padded = TrainingStep(configuration, CPU), TrainingStep(configuration, CPU)
        pairs = [(timed(packed_step, packed, batch), timed(padded_step, padded, batch)) for batch in batches][WARM_UP:]
        tokens = float(np.mean([len(batch.items) for batch in batches[WARM_UP:]]))
        yield Row(
            data=name, threads=threads, tokens=tokens, fill=tokens / configuration.batch_tokens,
            padded_tokens=float(np.mean([len(batch) * batch.longest for batch in batches[WARM_UP:]])),
            packed_cpu_seconds=median(ours[0] for ours, _ in pairs),
            padded_cpu_seconds=median(theirs[0] for _, theirs in pairs),
            packed_seconds=median(ours[1] for ours, _ in pairs),
            padded_seconds=median(theirs[1] for _, theirs in pairs),
        )  # fmt: skip
    torch.set_num_threads(default)


def shown(rows: list[Row]) -> Table:
    """The rows as a table."""
    table = Table("data", "threads", "tokens", "padded", "packed", "padded", "cheaper", "faster", box=None)
    for row in rows:
        table.add_row(
            row.data, str(row.threads), f"{row.tokens:,.0f}", f"{row.padded_tokens:,.0f}",
            f"{row.packed_cpu_seconds:.2f} CPU s", f"{row.padded_cpu_seconds:.2f} CPU s", f"{row.ratio:.2f} x",
            f"{row.padded_seconds / row.packed_seconds:.2f} x",
        )  # fmt: skip
    return table


def main(
    data: Annotated[Path | None, typer.Option(help="Interactions without timestamps, such as Amazon Video's.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file of the figures.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each kind that are counted.")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Measure, print, write."""
    rows: list[Row] = []
    if data is not None:
        parts = split(read_interactions(data), "leave-one-out")
        rows += measured(f"{data.stem}, 50", parts.train, parts.catalog, 50, steps)
    rows += measured("Beauty-like, 200", beauty_like(), BEAUTY_ITEMS, 200, steps)
    document = {
        "date": date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "batch_size": BATCH_SIZE, "dim": DIM, "loss": "cce", "steps": steps,
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(document, indent=2) + "\n")
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        Console().print(shown(rows))


if __name__ == "__main__":
    typer.run(main)
