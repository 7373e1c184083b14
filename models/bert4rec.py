"""BERT4Rec: sequential recommendation with bidirectional encoder representations.

Sun et al., 2019, https://arxiv.org/abs/1904.06690. Shape letters: M tokens, D hidden size, H heads, V items, T tokens
whose hidden states are wanted: the masked ones. "The code" is that of the authors, https://github.com/FeiSun/BERT4Rec.

Every token attends to its whole sequence (section 3.3). In training a share of a sequence's items is replaced by a mask
and predicted from both sides (3.6); to recommend, a mask is put behind the last item, and what the model expects in its
place is ranked.

Departures, all of them:

Input (section 3.4)
- Sequences are packed and not padded. Positions count from the oldest item that is seen.
- The mask is a vector of its own, not a row of the item table: no loss ranks it.
- The sum of item and position is normalised before dropout, as in the code; the text does not mention it.

Output (3.5)
- A layer normalisation follows the GELU of the output's projection, as in the code; the text has none.
- Scores have no bias for every item (b^O): the losses of kernels/losses.py know hidden states and a table alone.

Training (3.6 and 4.3)
- Of a sequence the last `seq_len` items are trained on; the code cuts longer ones into overlapping windows.
- Masks are drawn anew in every epoch; the code draws ten times beforehand. As there, a fixed number is masked, the
  share of the length rounded, and one copy in eleven has its last item masked alone.
- The optimizer, its rate and schedule are options; the code has Adam with a weight decay of 0.01 and a linear decay.
- The lookup's gradient joins the loss's in one buffer (kernels/lookup.py); the sums are the same.

Evaluation (4.2)
- Every item is ranked; the paper ranks the target among 100 items drawn by popularity.
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
from srsplan.models.sequence_model import PackedItems, SequenceModel, initialise_normal

INITIAL_STD = 0.02

WIDENING = 4
"""The network between two layers is so many times as wide as the hidden size."""


class FeedForward(nn.Module):
    """The position-wise network of equation 4: GELU(x W1 + b1) W2 + b2."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        inner = WIDENING * sizes.dim
        self.inner, self.outer = nn.Linear(sizes.dim, inner), nn.Linear(inner, sizes.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        return cast(Tensor, self.outer(F.gelu(self.inner(x))))


class Block(nn.Module):
    """LayerNorm(x + Dropout(g(x))) for g attention, then the position-wise network (section 3.3)."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.attention, self.attention_norm = SelfAttention(sizes, causal=False), nn.LayerNorm(sizes.dim)
        self.feed_forward, self.feed_forward_norm = FeedForward(sizes), nn.LayerNorm(sizes.dim)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        x = self.attention_norm(x + F.dropout(self.attention(x, packing), self.dropout, self.training))
        mixed = F.dropout(self.feed_forward(x), self.dropout, self.training)
        return cast(Tensor, self.feed_forward_norm(x + mixed))


class BERT4Rec(SequenceModel):
    """Items and masks in, hidden states out; `item_table` [V, D] scores them (equation 7, tied)."""

    def __init__(self, catalog: int, seq_len: int, sizes: Architecture) -> None:
        super().__init__()
        self.sizes = sizes
        self.item_embedding = nn.Embedding(catalog, sizes.dim)
        self.position_embedding = nn.Embedding(seq_len, sizes.dim)
        self.mask = nn.Parameter(torch.empty(sizes.dim))
        self.norm = nn.LayerNorm(sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.project_out, self.norm_out = nn.Linear(sizes.dim, sizes.dim), nn.LayerNorm(sizes.dim)
        self.apply(lambda module: initialise_normal(module, INITIAL_STD))
        nn.init.trunc_normal_(self.mask, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)

    @property
    def item_table(self) -> Tensor:
        """The tied table [V, D], fp32."""
        return self.item_embedding.weight

    def forward(self, sequences: PackedItems) -> Tensor:
        """Turn packed items [M], V for a mask, into the hidden states [T, D] that are wanted."""
        masked = (sequences.items == len(self.item_table))[:, None]
        looked_up = tied_lookup(self.item_table, sequences.items.clamp(max=len(self.item_table) - 1))
        x = torch.where(masked, self.mask, looked_up) + self.position_embedding(sequences.positions)
        x = F.dropout(self.norm(x), self.sizes.dropout, self.training)
        for block in self.blocks:
            x = self.run_block(block, x, sequences.packing)
        return cast(Tensor, self.norm_out(F.gelu(self.project_out(sequences.choose(x)))))
