"""Masks in packed sequences: what a masked model is trained on, and what it ranks from.

Sun et al., 2019, BERT4Rec, https://arxiv.org/abs/1904.06690, sections 3.6 and 4.2. Letters: M tokens, B sequences, V
items. Items are 1 to V.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srsplan.models.config import Configuration
from srsplan.models.data.batches import Batch, Packed

LAST_ALONE = 1 / 11
"""The share of sequences whose last item is masked alone, as it is where a history is ranked: the code of the paper's
authors makes ten copies of a sequence with masks at random, and one of these."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How items of a sequence are replaced by a mask."""

    share: float
    """Of a sequence's items, how many are masked (kinds.masked_items)."""
    mask: int
    """The number of the mask among the items, V + 1."""

    @classmethod
    def of(cls, configuration: Configuration) -> Masking | None:
        """Return that of a configuration; None for a model that masks nothing."""
        if configuration.mask_share is None:
            return None
        return cls(share=configuration.mask_share, mask=configuration.catalog + 1)

    def batch(self, sequences: Packed, random: np.random.Generator) -> Batch:
        """Mask some items of every sequence, which are the targets; of one sequence in eleven the last item alone."""
        lengths, starts = np.diff(sequences.offsets), sequences.offsets[:-1]
        counts = np.clip(np.floor(self.share * lengths + 0.5).astype(np.int64), 1, lengths)
        alone = random.random(len(lengths)) < LAST_ALONE
        counts[alone] = 1
        keys = random.random(len(sequences.items))
        keys[sequences.offsets[1:][alone] - 1] = -1.0  # before all others of its sequence
        order = np.lexsort((keys, np.repeat(np.arange(len(lengths)), lengths)))
        ranks = np.arange(len(order)) - np.repeat(starts, lengths)
        places = np.sort(order[ranks < np.repeat(counts, lengths)])
        items = sequences.items.copy()
        items[places] = self.mask
        return Batch(items, sequences.offsets, sequences.items[places], places)

    def behind(self, sequences: Packed) -> Packed:
        """Put a mask behind the last item of every sequence."""
        offsets = sequences.offsets + np.arange(len(sequences.offsets))
        return Packed(np.insert(sequences.items, sequences.offsets[1:], self.mask), offsets)
