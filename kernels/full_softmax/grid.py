"""How a call of the full softmax kernel is cut into programs: plain arithmetic, shared with the memory model. No torch.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from srsplan.kernels.launches.table import SPAN_ITEMS, launch_for, softmax_table

MOST_SPLITS = 16
SPLIT_ELEMENTS = 1 << 24
WAVE = 132
"""Programs that run at once: multiprocessors of an H200; other cards have about as many."""
BUSY = 0.9
"""Share of the multiprocessors that have work, averaged over waves, below which the catalog is split."""
STATE_ROWS = 128
"""Tokens of a program that prepares backward; no block of rows is larger."""


@dataclass(frozen=True, kw_only=True)
class SoftmaxGrid:
    """Blocks of rows, spans of items and splits of the catalog."""

    tokens: int
    catalog: int
    dim: int
    fp32: bool
    capability: int
    with_grad: bool = True
    """False where hidden states want no gradient."""

    @property
    def forward(self) -> str:
        """The name of the forward kernel."""
        return "softmax_forward" if self.with_grad else "softmax_forward_loss"

    @cached_property
    def span_rows(self) -> int:
        """Tokens of a block of rows."""
        return launch_for(softmax_table(self.forward, self.capability, self.fp32), self.dim).block_m

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return -(-self.tokens // self.span_rows)

    @property
    def spans(self) -> int:
        """Spans of items."""
        return -(-self.catalog // SPAN_ITEMS)

    @property
    def padded(self) -> int:
        """Tokens, padded to whole programs that prepare backward."""
        return -(-self.tokens // STATE_ROWS) * STATE_ROWS

    @cached_property
    def split_items(self) -> int:
        """Items of a split."""
        return -(-self.spans // self.wanted_splits()) * SPAN_ITEMS

    @property
    def splits(self) -> int:
        """Splits of the catalog; with one the kernel writes its results directly."""
        return -(-self.catalog // self.split_items)

    def wanted_splits(self) -> int:
        """Return the splits of the catalog: as few as keep the card busy; what they hold is bounded."""
        room = SPLIT_ELEMENTS // max(1, self.tokens * self.dim) if self.with_grad else MOST_SPLITS
        counts = range(1, max(1, min(MOST_SPLITS, room, self.spans)) + 1)
        return next((count for count in counts if self._busy(count) >= BUSY), max(counts, key=self._busy))

    def _busy(self, splits: int) -> float:
        programs = max(1, self.blocks) * splits
        return programs / (-(-programs // WAVE) * WAVE)
