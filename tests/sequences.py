"""Sequences written as lists, as the packed ones that models and batches take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from srsplan.models.data.batches import Batch, Packed
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.inputs import packed_items

CPU = torch.device("cpu")


def packed(rows: Sequence[Sequence[int]]) -> Packed:
    """Sequences of items, 1 to V."""
    return Packed(np.array([item for row in rows for item in row], dtype=np.int64), np.cumsum([0, *map(len, rows)]))


def on_cpu(items: Sequence[Sequence[int]] | Tensor) -> PackedItems:
    """Sequences of items, counted from 0, or a tensor [B, L] of sequences of one length, as a model takes them."""
    rows = items.tolist() if isinstance(items, Tensor) else items
    return packed_items(packed([[item + 1 for item in row] for row in rows]), CPU)


def some_batch(lengths: Sequence[int], catalog: int, seed: int = 3) -> Batch:
    """Random items and targets, 1 to V, for sequences of these lengths."""
    items, targets = np.random.default_rng(seed).integers(1, catalog + 1, (2, sum(lengths)))
    return Batch(items, np.cumsum([0, *lengths]), targets)


def some_lengths(count: int, longest: int, seed: int = 3) -> list[int]:
    """Random lengths of sequences, 1 to `longest`."""
    lengths: list[int] = np.random.default_rng(seed).integers(1, longest + 1, count).tolist()
    return lengths
