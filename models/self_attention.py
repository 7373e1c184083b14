"""Multi-head self-attention over packed sequences: the part that all models share.

Vaswani et al., 2017, Attention is all you need, https://arxiv.org/abs/1706.03762. Shape letters: M tokens, D hidden
size, H heads.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from srsplan.kernels.attention import Packing, packed_attention
from srsplan.models.config import Architecture


class SelfAttention(nn.Module):
    """Attention of H heads with an output projection, the only part of a model that knows where a sequence ends."""

    def __init__(self, sizes: Architecture, *, causal: bool = True) -> None:
        """Let a token attend to itself and those before it, or, where not `causal`, to its whole sequence."""
        super().__init__()
        self.heads, self.dropout, self.causal = sizes.heads, sizes.dropout, causal
        self.project_in = nn.Linear(sizes.dim, 3 * sizes.dim)
        self.project_out = nn.Linear(sizes.dim, sizes.dim)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Map hidden states [M, D] to [M, D]."""
        tokens, dim = x.shape
        joined = self.project_in(x).view(tokens, 3, self.heads, dim // self.heads)
        mixed = packed_attention(joined, packing, self.dropout if self.training else 0.0, causal=self.causal)
        return cast(Tensor, self.project_out(mixed.reshape(tokens, dim)))
