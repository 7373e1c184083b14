"""SASRec on a rectangle: the same weights and modules, every sequence padded on the right to the longest of its batch.

Causal attention sees to it that padding is seen by padding alone. Dropout is taken to be 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from srsplan.models.sasrec import Block, SASRec


def padded_sasrec(model: SASRec, items: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states [M, D] of the first `lengths` [B] items in the rows of `items` [B, L], one row after another."""
    x = F.embedding(items, model.item_table) * math.sqrt(model.sizes.dim)
    x = x + model.position_embedding.weight[: items.shape[1]]
    for block in model.blocks:
        assert isinstance(block, Block)
        x = x + _attention(block, block.attention_norm(x))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    hidden: Tensor = model.norm(x)
    return hidden[torch.arange(items.shape[1]) < lengths[:, None]]


def _attention(block: Block, x: Tensor) -> Tensor:
    rows, longest, dim = x.shape
    heads = block.attention.heads
    joined = block.attention.project_in(x).view(rows, longest, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    query, key, value = joined.unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    found: Tensor = block.attention.project_out(mixed.transpose(1, 2).reshape(rows, longest, dim))
    return found
