"""Full ranking of the catalog for a batch of users, a chunk of items at a time.

Shape letters: E users of an evaluation batch, M tokens of their histories, D hidden size, V items, C items of a chunk,
K best items.

Higher scores come first, and of equal scores the item with the lower index: the result depends neither on the chunks
nor on the users that are ranked at once. To that end a score and its item become one int64 key, and no two keys of a
user are equal:

    upper 32 bits   the bits of the fp32 score, changed so that they are ordered as integers are
    lower 32 bits   2^32 - 1 - item, so that the lower index is the larger key

On a CPU keys of a whole chunk take longer than its matrix product. There keys are made of a few candidates alone
(`_best_of_groups`), and the result is the same. Elsewhere, and on meta tensors, every score becomes a key.

No score is NaN. Scores are fp32 whatever the model computes in: in 16 bit so many scores are equal that half of the
users get other items than in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.chunking import ranking_chunk_items
from srsplan.models.sequence_model import Context, PackedItems, SequenceModel

T = TypeVar("T")

NOTHING = -1
"""The item of a rank that is left empty, where a user has fewer than K items that may be recommended."""

ALL_BUT_SIGN = 0x7FFFFFFF
LOWER_HALF = 0xFFFFFFFF
GROUP_ITEMS = 64
"""Neighbouring items of a group on a CPU: of 32, 64 and 128 the fastest for 10 of 100,000 items, by little."""
LEAST_SHARE = 4
"""A chunk has so many times the items of K groups at least: their keys take less memory than those of the chunk."""
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

    hidden [E, D] of any type, item_table fp32 [V, D]. Memory: a chunk's scores [E, C] in fp32 and as int64 keys (on a
    CPU keys of the candidates alone), then 2 K keys. Never [E, V].
    """
    return _ranked(hidden, item_table, seen, best, items_of)


def rank_scored(
    hidden: Tensor, item_table: Tensor, seen: Seen | None, best: int, scratch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `rank_hidden` does, and the scores of these items: int64 and fp32 [E, K].

    `scratch`, fp32 of E x C elements or more on hidden's device, holds the scores of one call after another: else a CPU
    clears fresh pages for every chunk, which takes as long as the product. The score of `NOTHING` is minus infinity.
    """
    return _ranked(hidden, item_table, seen, best, lambda keys: (items_of(keys), scores_of(keys)), scratch)


def _ranked(
    hidden: Tensor,
    item_table: Tensor,
    seen: Seen | None,
    best: int,
    decode: Callable[[Tensor], T],
    scratch: Tensor | None = None,
) -> T:
    chunk = ranking_chunk_items(len(hidden), len(item_table)) if seen is None else seen.chunk_items
    hidden, so_far = hidden.float(), None
    with torch.no_grad(), _no_autocast(hidden.device):
        for number, start in enumerate(range(0, len(item_table), chunk)):
            scores = _scores(hidden, item_table[start : start + chunk], scratch)
            if seen is not None:
                rows, items = seen.of_chunk(number)
                scores[rows, items - start] = -torch.inf
            found = _best_of_chunk(scores, start, best)
            del scores
            so_far = found if so_far is None else _best_keys(torch.cat([so_far, found], 1), best)
            del found  # not beside the next chunk's
    if so_far is None:
        raise ValueError("an empty catalog cannot be ranked")
    return decode(so_far)


def items_of(keys: Tensor) -> Tensor:
    """Return the items of keys: int64, 0-based, `NOTHING` where the score is minus infinity."""
    return torch.where(keys >> 32 > FILTERED_BITS, LOWER_HALF - (keys & LOWER_HALF), NOTHING)


def scores_of(keys: Tensor) -> Tensor:
    """Return the scores of keys, fp32: those that were ranked, but that minus zero is zero."""
    bits = (keys >> 32).int()
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(ALL_BUT_SIGN)).view(torch.float32)


def _scores(hidden: Tensor, table: Tensor, scratch: Tensor | None) -> Tensor:
    """Return the scores fp32 [E, C] of table [C, D]."""
    if scratch is None:
        return torch.matmul(hidden, table.t())
    shape = (len(hidden), len(table))
    return torch.matmul(hidden, table.t(), out=scratch[: shape[0] * shape[1]].view(shape))


def _best_of_chunk(scores: Tensor, start: int, best: int) -> Tensor:
    """Return the largest keys int64 [E, K] of scores [E, C], which are overwritten; the first column is item `start`.

    Fewer than K columns give as many keys.
    """
    if scores.device.type == "cpu" and scores.shape[1] > LEAST_SHARE * best * GROUP_ITEMS:
        return _best_of_groups(scores, start, best)
    return _best_keys(_keys(scores, start), best)


def _best_of_groups(scores: Tensor, start: int, best: int) -> Tensor:
    """Return the same for more than K groups of `GROUP_ITEMS` neighbours, from the K best groups and the rest alone.

    Groups are ordered by their largest score, and of equal ones the group with the lower items comes first. A group
    that is not among the K best holds none of the K best items: each of the K has an item with a larger score than all
    of that group's, or with the same as its best, and then a lower index.
    """
    whole = scores.shape[1] // GROUP_ITEMS
    rest = whole * GROUP_ITEMS
    groups, neighbours = scores[:, :rest].unflatten(1, (whole, GROUP_ITEMS)), torch.arange(GROUP_ITEMS)
    chosen = (LOWER_HALF - (_best_keys(_keys(groups.amax(2), 0), best) & LOWER_HALF)).unsqueeze(2)
    candidates = groups.gather(1, chosen.expand(-1, -1, GROUP_ITEMS)).flatten(1)
    items = [
        (chosen * GROUP_ITEMS + neighbours).flatten(1),
        torch.arange(rest, scores.shape[1]).expand(len(scores), -1),
    ]
    upper = _ordered(torch.cat([candidates, scores[:, rest:]], 1))
    return _best_keys(_joined(upper, LOWER_HALF - start - torch.cat(items, 1)), best)


def _keys(scores: Tensor, start: int) -> Tensor:
    """Return the keys int64 [E, C] of scores fp32 [E, C], which are overwritten; the first column is item `start`."""
    bits = _ordered(scores)
    return _joined(bits, LOWER_HALF - torch.arange(start, start + scores.shape[1], device=scores.device))


def _ordered(scores: Tensor) -> Tensor:
    """Turn scores into integers of the same order, int32 [E, C], in their place."""
    bits = scores.add_(0.0).view(torch.int32)  # adding makes one zero of the two, which are equal
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(ALL_BUT_SIGN))  # negative numbers: the larger, the smaller bits


def _joined(upper: Tensor, lower: Tensor) -> Tensor:
    """Return keys int64 [E, C] of their halves: int32 [E, C], and int64 [E, C] or [C] without a sign."""
    return upper.long().bitwise_left_shift_(32).bitwise_or_(lower)


def _best_keys(keys: Tensor, best: int) -> Tensor:
    return keys.topk(min(best, keys.shape[1]), dim=1).values


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave a surrounding autocast; torch knows none on meta tensors."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
