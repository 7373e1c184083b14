"""srsplan's SASRec as parts of a RecTools model: what an exported checkpoint names. Needs RecTools.

Letters: B users, L items that the model sees, padded on the left, D hidden size.
"""

from __future__ import annotations

import math
from typing import cast

from rectools.models.nn.transformers.net_blocks import (
    PointWiseFeedForward,
    PositionalEncodingBase,
    TransformerLayersBase,
)
from torch import Tensor, nn


class PositionsFromTheOldest(PositionalEncodingBase):  # type: ignore[misc]
    """Learned positions, counted from the oldest item; RecTools' own are counted from the newest."""

    def __init__(self, use_pos_emb: bool, session_max_len: int, n_factors: int, **kwargs: object) -> None:
        super().__init__()
        if not use_pos_emb:
            raise ValueError("srsplan's SASRec has positions: use_pos_emb must be True")
        self.pos_emb = nn.Embedding(session_max_len, n_factors)

    def forward(self, sessions: Tensor) -> Tensor:
        """Add positions to item vectors [B, L, D], times sqrt(D). Padding is known by its vector, which is zero."""
        places = (sessions != 0).any(dim=2).cumsum(dim=1) - 1
        return cast(Tensor, sessions * math.sqrt(sessions.shape[2]) + self.pos_emb(places.clamp(min=0)))


class PreNormLayer(nn.Module):
    """x + g(LayerNorm(x)) for g attention, then the point-wise network, as in models/sasrec.py."""

    def __init__(self, n_factors: int, n_heads: int, dropout_rate: float) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(n_factors), nn.LayerNorm(n_factors)
        self.attention = nn.MultiheadAttention(n_factors, n_heads, dropout_rate, batch_first=True)
        self.feed_forward = PointWiseFeedForward(n_factors, n_factors, 0.0, nn.ReLU())
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, seqs: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor:
        """Map hidden states [B, L, D] to [B, L, D]."""
        x = self.attention_norm(seqs)
        mixed, _ = self.attention(x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask, need_weights=False)
        seqs = seqs + self.dropout(mixed)
        return cast(Tensor, seqs + self.dropout(self.feed_forward(self.feed_forward_norm(seqs))))


class PreNormLayers(TransformerLayersBase):  # type: ignore[misc]
    """The blocks, and the layer normalisation behind the last."""

    def __init__(self, n_blocks: int, n_factors: int, n_heads: int, dropout_rate: float, **kwargs: object) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PreNormLayer(n_factors, n_heads, dropout_rate) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(n_factors)

    def forward(
        self,
        seqs: Tensor,
        timeline_mask: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        **kwargs: object,
    ) -> Tensor:
        """Map hidden states [B, L, D] to [B, L, D]; padding is left out by the masks."""
        for block in self.blocks:
            seqs = block(seqs, attn_mask, key_padding_mask)
        return cast(Tensor, self.norm(seqs))
