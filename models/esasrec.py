"""eSASRec: SASRec's objective with LiGR blocks, to be trained with a sampled softmax (`--loss cce-`).

Tikhonovich et al., 2025, eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion,
https://arxiv.org/abs/2508.06450. The blocks are those of Borisyuk et al., 2025, From Features to Transformers:
Redefining Ranking for Scalable Impact, https://arxiv.org/abs/2502.03417: pre-normalised, each sub-layer's output gated
by its input, a SwiGLU network without biases. "The code" is that of the authors of eSASRec, RecTools 0.19
(https://github.com/MobileTeleSystems/RecTools) with the settings of https://github.com/blondered/transformer_benchmark.

Shape letters: M tokens, D hidden size, V items, T tokens whose hidden states are wanted.

As in the code: the network is 4 D wide; no normalisation follows the last block; an item's vector is not scaled before
the position's is added; every matrix begins with Glorot's normal weights, the tables included, and its biases with 0.

Departures, all of them:
- Sequences are packed and not padded; positions count from the oldest item that is seen, in the code from the newest.
- Biases of linear layers begin with 0, in the code with torch's uniform default but for attention's.
- Sizes and dropout are options with other defaults: the code has D 256, 4 blocks of 8 heads, a dropout of 0.2, and 256
  negatives a token.
- The lookup's gradient joins the loss's in one buffer (kernels/lookup.py); the sums are the same.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srsplan.kernels.attention import Packing
from srsplan.kernels.lookup import tied_lookup
from srsplan.models.config import Architecture
from srsplan.models.self_attention import SelfAttention
from srsplan.models.sequence_model import PackedItems, SequenceModel

WIDENING = 4
"""The network between two layers is so many times as wide as the hidden size."""


class SwiGLU(nn.Module):
    """W_out (Dropout(SiLU(W_gate x) * W_in x)), all without biases."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        inner = WIDENING * sizes.dim
        self.gate, self.inner = nn.Linear(sizes.dim, inner, bias=False), nn.Linear(sizes.dim, inner, bias=False)
        self.outer = nn.Linear(inner, sizes.dim, bias=False)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        mixed = F.silu(self.gate(x)) * self.inner(x)
        return cast(Tensor, self.outer(F.dropout(mixed, self.dropout, self.training)))


class LiGRBlock(nn.Module):
    """x + sigmoid(W x + b) * Dropout(g(LayerNorm(x))) for g attention, then the SwiGLU network."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(sizes.dim), SelfAttention(sizes)
        self.attention_gate = nn.Linear(sizes.dim, sizes.dim)
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(sizes.dim), SwiGLU(sizes)
        self.feed_forward_gate = nn.Linear(sizes.dim, sizes.dim)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        mixed = F.dropout(self.attention(self.attention_norm(x), packing), self.dropout, self.training)
        x = x + torch.sigmoid(self.attention_gate(x)) * mixed
        mixed = F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)
        return x + torch.sigmoid(self.feed_forward_gate(x)) * mixed


class ESASRec(SequenceModel):
    """Items in, hidden states out; `item_table` [V, D] scores them (tied)."""

    def __init__(self, catalog: int, seq_len: int, sizes: Architecture) -> None:
        super().__init__()
        self.sizes = sizes
        self.item_embedding = nn.Embedding(catalog, sizes.dim)
        self.position_embedding = nn.Embedding(seq_len, sizes.dim)
        self.blocks = nn.ModuleList(LiGRBlock(sizes) for _ in range(sizes.blocks))
        self.apply(_initialise)

    @property
    def item_table(self) -> Tensor:
        """The tied table [V, D], fp32."""
        return self.item_embedding.weight

    def forward(self, sequences: PackedItems) -> Tensor:
        """Turn packed items [M] into the hidden states [T, D] that are wanted."""
        looked_up = tied_lookup(self.item_table, sequences.items) + self.position_embedding(sequences.positions)
        x = F.dropout(looked_up, self.sizes.dropout, self.training)
        for block in self.blocks:
            x = self.run_block(block, x, sequences.packing)
        return sequences.choose(x)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
