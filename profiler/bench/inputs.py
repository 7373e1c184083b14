"""The tensors that every contestant is given.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.shapes import Shape

TARGET_SHARE = 0.1
"""Mean probability of the target in trained-like logits. Of SASRec trained on Amazon Video it is 0.01, of a language
model 0.4: skipping negligible work depends on it."""


@dataclass(frozen=True)
class Inputs:
    """hidden [M, D] in the compute type, table [V, D] fp32 (a model's), table_16 [V, D] in the compute type (for peers
    that want one type), targets int64 [M]; the first three want gradients."""

    hidden: Tensor
    table: Tensor
    table_16: Tensor
    targets: Tensor

    def clear(self) -> None:
        """Drop the gradients."""
        for tensor in (self.hidden, self.table, self.table_16):
            tensor.grad = None


def input_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Return the bytes that making the inputs takes at least: both matrices in fp32, and in 16 bit a copy of each."""
    per_element = 4 if dtype == torch.float32 else 4 + dtype.itemsize
    return per_element * shape.dim * (shape.tokens + shape.catalog) + 8 * shape.tokens


def make_inputs(shape: Shape, logits: Logits, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Make inputs whose logits are random or as a trained model has them.

    Random: uniform targets, logits of the deviation that is asked for. Trained: Zipf targets (exponent 1), and hidden
    states that point at their targets as strongly as gives them a probability of 0.1 on average, so that the softmax
    has the shape of a trained model's: popular items and the target stand out. On meta tensors all are the same.
    """
    generator = torch.Generator(device).manual_seed(seed) if device.type != "meta" else None
    scale = (logits.deviation or 1.0) ** 0.5 * shape.dim**-0.25
    hidden = scale * torch.randn(shape.tokens, shape.dim, generator=generator, device=device)
    table = scale * torch.randn(shape.catalog, shape.dim, generator=generator, device=device)
    targets = torch.randint(shape.catalog, (shape.tokens,), generator=generator, device=device)
    if logits.kind == "trained" and device.type != "meta":
        hidden, targets = _trained(hidden, table, generator)
    table_16 = table.to(dtype)
    for tensor in (hidden := hidden.to(dtype), table, table_16):
        tensor.requires_grad_()
    return Inputs(hidden, table, table_16, targets)


def _trained(hidden: Tensor, table: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Make rows of popular items share a direction with all hidden states; each then leans towards its target's row."""
    ranks = torch.arange(1, len(table) + 1, device=table.device, dtype=torch.float64)
    cumulative = (1 / ranks).cumsum(0)
    draws = torch.rand(len(hidden), generator=generator, device=hidden.device, dtype=torch.float64)
    targets = torch.searchsorted(cumulative / cumulative[-1], draws).clamp(max=len(table) - 1)
    popularity = -ranks.log().float()
    common = torch.nn.functional.normalize(torch.randn(table.shape[1], generator=generator, device=table.device), dim=0)
    table += 0.3 * (popularity - popularity.mean())[:, None] * common
    hidden += common - (hidden @ common)[:, None] * common
    low, high = 0.0, 16.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(hidden, table, targets, middle) < TARGET_SHARE else (low, middle)
    return hidden + high * table[targets] / table.shape[1] ** 0.5, targets


def _share(hidden: Tensor, table: Tensor, targets: Tensor, pull: float, sample: int = 256) -> float:
    """Return the mean probability of the target of some tokens."""
    rows, wanted = hidden[:sample], targets[:sample]
    scores = (rows + pull * table[wanted] / table.shape[1] ** 0.5) @ table.T
    return float(torch.softmax(scores, 1).gather(1, wanted[:, None]).mean())
