"""Recommendations for many users, a batch after the other, by a model in memory.

Letters: E users of a batch, M tokens of their histories, V items, K best items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.chunking import RANKING_CHUNK_ELEMENTS, ranking_chunk_items
from srsplan.models.data.batches import Packed, history_batches
from srsplan.models.data.splits import Sequences
from srsplan.models.sequence_model import PackedItems, SequenceModel
from srsplan.models.training.inputs import packed_items
from srsplan.models.training.ranking import Seen, rank_scored, seen_items

USERS_AT_ONCE = 256
TOKENS_AT_ONCE = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is recommended to each user."""

    best: int
    """K: items for each user, at most V; fewer where fewer are left."""
    seq_len: int
    """The last items of a history that the model sees."""
    keep_seen: bool = False
    """Recommend what is in the history as well."""
    mask: int | None = None
    """The item, 0-based, that stands behind every history and is one of the `seq_len`, where a model ranks from it."""

    @property
    def items_seen(self) -> int:
        """Return how many items of a history the model sees at most."""
        return self.seq_len if self.mask is None else max(1, self.seq_len - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommended:
    """What a batch of users gets."""

    rows: slice
    """Which of the histories."""
    items: NDArray[np.int64]
    """Items [E, K], 0-based, best first, and -1 where fewer are left."""
    scores: NDArray[np.float32]
    """Scores [E, K] of these items."""


def recommend(model: SequenceModel, histories: Sequences, wanted: Wanted) -> Iterator[Recommended]:
    """Yield the recommendations of all histories, in their order; no history is empty.

    The model is in evaluation mode. Memory above model and histories: hidden states [M, D] of a batch, and what
    `rank_scored` takes, with one buffer for all scores.
    """
    table = model.item_table
    scratch = torch.empty(
        min(RANKING_CHUNK_ELEMENTS, min(USERS_AT_ONCE, len(histories)) * len(table)), device=table.device
    )
    for rows, packed in history_batches(histories, USERS_AT_ONCE, wanted.items_seen, TOKENS_AT_ONCE):
        hidden = _last_states(model, packed_items(_with_mask(packed, wanted.mask), table.device))
        seen = None if wanted.keep_seen else _seen(histories, rows, len(table), table.device)
        items, scores = rank_scored(hidden, table, seen, wanted.best, scratch)
        yield Recommended(rows=rows, items=items.cpu().numpy(), scores=scores.cpu().numpy())


def _with_mask(sequences: Packed, mask: int | None) -> Packed:
    if mask is None:
        return sequences
    items = np.insert(sequences.items, sequences.offsets[1:], mask + 1)
    return Packed(items, sequences.offsets + np.arange(len(sequences.offsets)))


def _last_states(model: SequenceModel, histories: PackedItems) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model(histories)
        return hidden.index_select(0, (histories.packing.cu_seqlens[1:] - 1).long())


def _seen(histories: Sequences, rows: slice, catalog: int, device: torch.device) -> Seen:
    bounds = histories.offsets[rows.start : rows.stop + 1]
    items = histories.values[bounds[0] : bounds[-1]].astype(np.int64) - 1
    users = np.repeat(np.arange(rows.stop - rows.start), np.diff(bounds))
    return seen_items(users, items, catalog, ranking_chunk_items(rows.stop - rows.start, catalog), device)
