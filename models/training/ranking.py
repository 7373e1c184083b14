"""Full ranking of the catalog for a batch of users, a chunk of items at a time.

Shape letters: E users of an evaluation batch, M tokens of their histories, D hidden size, V items, C items of a chunk,
K best items.

Higher scores come first, and of equal scores the item with the lower index: the result depends neither on the chunks
nor on the users that are ranked at once. To that end a score and its item become one int64 key, and no two keys of a
user are equal:

    upper 32 bits   the bits of the fp32 score, changed so that they are ordered as integers are
    lower 32 bits   2^32 - 1 - item, so that the lower index is the larger key

Scores are fp32 whatever the model computes in: in 16 bit so many scores are equal that half of the users get other
items than in fp32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.chunking import ranking_chunk_items
from srsplan.models.sequence_model import Context, PackedItems, SequenceModel

NOTHING = -1
"""The item of a rank that is left empty, where a user has fewer than K items that may be recommended."""

ALL_BUT_SIGN = 0x7FFFFFFF
LOWER_HALF = 0xFFFFFFFF
FILTERED_BITS = int(np.float32(-np.inf).view(np.int32)) ^ ALL_BUT_SIGN
"""The upper half of the key of a score of minus infinity, which is that of every filtered item."""


@dataclass(frozen=True)
class Seen:
    """Items not to recommend again, sorted by item: rows int64 [P], items int64 [P] 0-based, both on the device.

    `bounds` says where each chunk's items start: the k-th chunk has bounds[k] to bounds[k + 1].
    """

    rows: Tensor
    items: Tensor
    bounds: tuple[int, ...]
    chunk_items: int
    """C, the items per chunk of the rankings that leave out these items."""

    def of_chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the rows and items of one chunk."""
        part = slice(self.bounds[number], self.bounds[number + 1])
        return self.rows[part], self.items[part]


def seen_items(
    rows: NDArray[np.integer], items: NDArray[np.integer], catalog: int, chunk_items: int, device: torch.device
) -> Seen:
    """Sort pairs of (row of the batch, 0-based item) for a ranking in chunks of `chunk_items`."""
    order = np.argsort(items, kind="stable")
    items = items[order]
    bounds = np.searchsorted(items, np.arange(0, catalog + chunk_items, chunk_items))
    row_tensor, item_tensor = (
        torch.from_numpy(np.ascontiguousarray(part, dtype=np.int64)).to(device) for part in (rows[order], items)
    )
    return Seen(row_tensor, item_tensor, tuple(int(bound) for bound in bounds), chunk_items)


def rank(
    model: SequenceModel, histories: PackedItems, seen: Seen | None, best: int, autocast: Context = nullcontext
) -> Tensor:
    """Return the `best` items of every user, best first: int64 [E, K], 0-based, as `rank_hidden` says.

    The state of a history's last token ranks, which for a masked model is its mask. The model runs in `autocast` and
    without gradients; scores are fp32 all the same. Memory: hidden states [M, D] and their temporaries first, then that
    of `rank_hidden`.
    """
    with torch.no_grad(), autocast():
        last = (histories.packing.cu_seqlens[1:] - 1).long()
        hidden = model(replace(histories, wanted=last))
    return rank_hidden(hidden, model.item_table, seen, best)


def rank_hidden(hidden: Tensor, item_table: Tensor, seen: Seen | None, best: int) -> Tensor:
    """Return every user's `best` items, best first: int64 [E, K], 0-based, K at most V, `NOTHING` where none is left.

    hidden [E, D] of any type, item_table fp32 [V, D]. Memory: a chunk's scores [E, C] in fp32 and as int64 keys, then
    2 K keys. Never [E, V].
    """
    chunk = ranking_chunk_items(len(hidden), len(item_table)) if seen is None else seen.chunk_items
    hidden, so_far = hidden.float(), None
    with torch.no_grad(), _no_autocast(hidden.device):
        for number, start in enumerate(range(0, len(item_table), chunk)):
            pairs = None if seen is None else seen.of_chunk(number)
            found = _best_of_chunk(hidden, item_table[start : start + chunk], start, pairs, best)
            so_far = found if so_far is None else _best_keys(torch.cat([so_far, found], 1), best)
            del found  # not beside the next chunk's
    if so_far is None:
        raise ValueError("an empty catalog cannot be ranked")
    return torch.where(so_far >> 32 > FILTERED_BITS, LOWER_HALF - (so_far & LOWER_HALF), NOTHING)


def _best_of_chunk(hidden: Tensor, table: Tensor, start: int, seen: tuple[Tensor, Tensor] | None, best: int) -> Tensor:
    """Return the largest keys int64 [E, K] of table [C, D], whose first row is item `start`."""
    scores = torch.matmul(hidden, table.t())
    if seen is not None:
        scores[seen[0], seen[1] - start] = -torch.inf
    return _best_keys(_keys(scores, start), best)


def _keys(scores: Tensor, start: int) -> Tensor:
    """Return the keys int64 [E, C] of scores fp32 [E, C], which are overwritten."""
    bits = scores.add_(0.0).view(torch.int32)  # adding makes one zero of the two, which are equal
    bits.bitwise_xor_((bits >> 31).bitwise_and_(ALL_BUT_SIGN))  # of negative numbers the larger has the smaller bits
    lower = LOWER_HALF - torch.arange(start, start + scores.shape[1], device=scores.device)
    return bits.long().bitwise_left_shift_(32).bitwise_or_(lower)


def _best_keys(keys: Tensor, best: int) -> Tensor:
    return keys.topk(min(best, keys.shape[1]), dim=1).values


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave a surrounding autocast; torch knows none on meta tensors."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
