"""SASRec once more, from the paper's equations and by loops: nothing of srsplan's model is used but its weights.

One sequence at a time, one head at a time, one position at a time; the mask is that a position is never asked about a
later one. Dropout is taken to be 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
EPSILON = 1e-5


def plain_sasrec(weights: Weights, sequences: Sequence[list[int]], blocks: int, heads: int) -> list[Tensor]:
    """Hidden states [length, D] of every sequence of items."""
    return [_one(weights, items, blocks, heads) for items in sequences]


def _one(weights: Weights, items: list[int], blocks: int, heads: int) -> Tensor:
    table, positions = weights["item_embedding.weight"], weights["position_embedding.weight"]
    dim = table.shape[1]
    states = [table[item] * math.sqrt(dim) + positions[place] for place, item in enumerate(items)]
    for number in range(blocks):
        block = f"blocks.{number}"
        normed = [_norm(weights, f"{block}.attention_norm", x) for x in states]
        mixed = [_attention(weights, f"{block}.attention", normed[: place + 1], heads) for place in range(len(states))]
        states = [x + change for x, change in zip(states, mixed, strict=True)]
        states = [x + _point_wise(weights, block, _norm(weights, f"{block}.feed_forward_norm", x)) for x in states]
    return torch.stack([_norm(weights, "norm", x) for x in states])


def _attention(weights: Weights, name: str, past: list[Tensor], heads: int) -> Tensor:
    """Equation 2 for the newest of `past`, one head after another; their results stand side by side."""
    dim, width = past[0].shape[0], past[0].shape[0] // heads
    projected = [_linear(weights, f"{name}.project_in", x) for x in past]
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        queries, keys, values = ([x[dim * kind :][part] for x in projected] for kind in range(3))
        likeness = torch.stack([(queries[-1] * key).sum() / math.sqrt(width) for key in keys])
        shares = torch.exp(likeness) / torch.exp(likeness).sum()
        weighted = [share * value for share, value in zip(shares, values, strict=True)]
        results.append(torch.stack(weighted).sum(0))
    return _linear(weights, f"{name}.project_out", torch.cat(results))


def _point_wise(weights: Weights, block: str, x: Tensor) -> Tensor:
    """Equation 6."""
    inner = _linear(weights, f"{block}.feed_forward.inner", x)
    return _linear(weights, f"{block}.feed_forward.outer", torch.where(inner > 0, inner, 0.0))


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return weights[f"{name}.weight"] * centred / torch.sqrt((centred**2).mean() + EPSILON) + weights[f"{name}.bias"]


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]
