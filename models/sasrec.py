"""SASRec: self-attentive sequential recommendation.

Kang and McAuley, 2018, https://arxiv.org/abs/1808.09781. Shape letters: M tokens, D hidden size, H heads, V
items.

Departures from the paper, all of them. "The code" is that of its authors, https://github.com/kang205/SASRec, which
departs from the text as well.

Input (section 3.1)
- Sequences are packed one after another and not padded on the left: there is no padding item. Positions therefore count
  from the oldest item that is seen; the paper's count back from the newest.
- An item's vector is multiplied by sqrt(D) before the position's is added: the code does so, the text does not.

Attention (3.2)
- Two heads by default; the paper has one. An output projection follows, and all projections have biases: the text has
  neither, the code has biases only.
- Queries, keys and values come from the normalised input, as in the text; the code normalises the queries alone.
- Attention weights are dropped out, as in the code; the text does not mention it.

Blocks (3.3)
- Dropout stands on the embedding and on the output of both sub-layers, as in the text; the code has one more between
  the two layers of the point-wise network, and its residual connection adds the normalised input.
- The last block is followed by a layer normalisation, as in the code; the text has none. Its epsilon is 1e-5, the
  code's 1e-8.

Training (3.5 and 4.4)
- Weights begin as a normal distribution of deviation 0.02, cut at two deviations, and biases as 0; the code's weights
  are Glorot's uniform ones.
- The loss is any of kernels/losses.py; the paper's is bce. Its negative is drawn from all items and skipped where it is
  the target; the paper draws from the items that the user never had. The mean is over valid targets, as in the code.
- Adam's betas are 0.9 and 0.999; the code's are 0.9 and 0.98.
- Precision, sizes and dropout are options with other defaults: the paper has D = 50, 128 sequences a batch, and a
  dropout of 0.2 on MovieLens-1M and 0.5 elsewhere.
- The lookup's gradient joins the loss's in one buffer (kernels/lookup.py); the sums are the same.

Evaluation (4.3)
- Every item is ranked; the paper ranks the target among 100 items drawn at random.
"""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from srsplan.kernels.attention import Packing
from srsplan.kernels.lookup import tied_lookup
from srsplan.models.config import Architecture
from srsplan.models.self_attention import SelfAttention
from srsplan.models.sequence_model import PackedItems, SequenceModel, initialise_normal

INITIAL_STD = 0.02


class FeedForward(nn.Module):
    """The point-wise network of equation 6: two layers of the hidden size with a ReLU between."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(sizes.dim, sizes.dim), nn.Linear(sizes.dim, sizes.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        return cast(Tensor, self.outer(F.relu(self.inner(x))))


class Block(nn.Module):
    """x + Dropout(g(LayerNorm(x))) for g attention, then the point-wise network (section 3.3)."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(sizes.dim), SelfAttention(sizes)
        self.feed_forward_norm, self.feed_forward = nn.LayerNorm(sizes.dim), FeedForward(sizes)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        x = x + F.dropout(self.attention(self.attention_norm(x), packing), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)


class SASRec(SequenceModel):
    """Items in, hidden states out; `item_table` [V, D] scores them (equation 7, tied)."""

    def __init__(self, catalog: int, seq_len: int, sizes: Architecture) -> None:
        super().__init__()
        self.sizes = sizes
        self.item_embedding = nn.Embedding(catalog, sizes.dim)
        self.position_embedding = nn.Embedding(seq_len, sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.dim)
        self.apply(lambda module: initialise_normal(module, INITIAL_STD))

    @property
    def item_table(self) -> Tensor:
        """The tied table [V, D], fp32."""
        return self.item_embedding.weight

    def forward(self, sequences: PackedItems) -> Tensor:
        """Turn packed items [M] into the hidden states [T, D] that are wanted."""
        looked_up = tied_lookup(self.item_table, sequences.items) * math.sqrt(self.sizes.dim)
        x = F.dropout(looked_up + self.position_embedding(sequences.positions), self.sizes.dropout, self.training)
        for block in self.blocks:
            x = self.run_block(block, x, sequences.packing)
        return cast(Tensor, self.norm(sequences.choose(x)))
