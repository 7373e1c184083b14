"""The architecture behind ../shared/measured/h200_step_memory.csv: not srsplan's own, fed to the same ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srsplan.profiler.memory.ledger import Ledger, Trace
from srsplan.profiler.memory.simulated_cuda import SimulatedCuda, fused_optimizers_on_meta

DIM, HEADS, DROPOUT = 256, 2, 0.1


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    loss: str
    catalog: int
    batch_size: int
    seq_len: int
    negatives: int
    precision: str
    optimizer: str


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.joined, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.wide, self.narrow = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.joined(self.norm_1(x)).view(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=DROPOUT, is_causal=True)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, DIM)), DROPOUT)
        return x + F.dropout(self.narrow(F.gelu(self.wide(self.norm_2(x)))), DROPOUT)


class Model(nn.Module):
    def __init__(self, row: Measured) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(row.catalog, DIM), nn.Embedding(row.seq_len, DIM)
        self.layers, self.norm = nn.ModuleList([Layer(), Layer()]), nn.LayerNorm(DIM)

    def forward(self, items: Tensor) -> Tensor:
        x = F.dropout(self.items(items) + self.positions.weight, DROPOUT)
        for layer in self.layers:
            x = layer(x)
        hidden: Tensor = self.norm(x)
        return hidden

    def loss(self, inputs: Tensor, targets: Tensor, row: Measured) -> Tensor:
        hidden, target, table = self(inputs).reshape(-1, DIM), targets.reshape(-1), self.items.weight
        if row.loss == "ce":
            return F.cross_entropy(F.linear(hidden, table), target)
        if row.loss == "bce":
            other = torch.randint(row.catalog, (len(hidden),), device=hidden.device)
            positive, negative = [(F.embedding(items, table) * hidden).sum(-1) for items in (target, other)]
            return (F.softplus(-positive) + F.softplus(negative)).mean()
        shape = (len(hidden), row.negatives)
        items = torch.cat([target[:, None], torch.randint(row.catalog, shape, device=hidden.device)], 1)
        scores = torch.bmm(F.embedding(items, table), hidden.unsqueeze(-1)).squeeze(-1)
        return F.cross_entropy(scores.float(), torch.zeros(len(hidden), dtype=torch.long, device=hidden.device))


def trace(row: Measured, steps: int = 2, warm_process: bool = False) -> tuple[Trace, int]:
    """The ledger of some steps and of the model's end, and the event at which the second step begins."""
    dtype = torch.float16 if row.precision == "fp16" else torch.bfloat16
    ledger, cuda = Ledger(warm_process), SimulatedCuda(dtype, attention="cudnn")
    with fused_optimizers_on_meta(), ledger:
        with torch.device("meta"):
            model = Model(row)
        optimizer = torch.optim.Adam(model.parameters(), **{row.optimizer: True})  # type: ignore[arg-type]
        inputs, targets = (torch.randint(9, (row.batch_size, row.seq_len), device="meta") for _ in range(2))
        with cuda:
            for _ in range(steps):
                _step(row, model, optimizer, (inputs, targets), cuda, ledger.phase)
        ledger.phase("end")
    return ledger.trace, ledger.trace.start_of("forward", 1)


def _step(
    row: Measured,
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    cuda: SimulatedCuda,
    phase: Callable[[str], None],
) -> None:
    phase("forward")
    optimizer.zero_grad(set_to_none=True)
    with cuda.autocast():
        loss = model.loss(*batch, row)
    phase("backward")
    loss.backward()
    phase("optimizer")
    optimizer.step()
