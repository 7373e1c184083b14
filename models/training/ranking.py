"""Full ranking of the catalog for a batch of users, a chunk of items at a time.

Shape letters: E users of an evaluation batch, L positions, D hidden size, V items, C items of a chunk, K best items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.chunking import ranking_chunk_items
from srsplan.models.sasrec import SASRec


@dataclass(frozen=True)
class Seen:
    """Items not to recommend again, sorted by item: rows int64 [P], items int64 [P] 0-based, both on the device.

    `bounds` says where each chunk's items start: the k-th chunk has bounds[k] to bounds[k + 1].
    """

    rows: Tensor
    items: Tensor
    bounds: tuple[int, ...]


def seen_items(
    rows: NDArray[np.integer], items: NDArray[np.integer], catalog: int, chunk: int, device: torch.device
) -> Seen:
    """Pairs of (row of the batch, 0-based item) in any order -> `Seen` for chunks of `chunk` items."""
    order = np.argsort(items, kind="stable")
    items = items[order]
    bounds = np.searchsorted(items, np.arange(0, catalog + chunk, chunk))
    row_tensor, item_tensor = (
        torch.from_numpy(np.ascontiguousarray(part, dtype=np.int64)).to(device) for part in (rows[order], items)
    )
    return Seen(row_tensor, item_tensor, tuple(int(bound) for bound in bounds))


def rank(model: SASRec, inputs: Tensor, last: Tensor, seen: Seen | None, best: int) -> Tensor:
    """The `best` items of every user, best first: int64 [E, K], 0-based.

    inputs int64 [E, L] 0-based; last int64 [E], each user's last valid position. Runs without gradients.
    Memory: hidden states [E, L, D] and their temporaries first, then per chunk scores [E, C] in fp32 (and in the
    compute type), and 2 K candidates. Never [E, V].
    """
    with torch.no_grad():
        hidden = model(inputs)
        hidden = hidden[torch.arange(len(inputs), device=inputs.device), last]
        return rank_hidden(hidden, model.item_table, seen, best)


def rank_hidden(hidden: Tensor, item_table: Tensor, seen: Seen | None, best: int) -> Tensor:
    """The same from hidden states [E, D] and a table [V, D]."""
    catalog = len(item_table)
    chunk = ranking_chunk_items(len(hidden), catalog)
    so_far: tuple[Tensor, Tensor] | None = None
    for number, start in enumerate(range(0, catalog, chunk)):
        found = _best_of_chunk(hidden, item_table[start : start + chunk], start, _part(seen, number), best)
        so_far = found if so_far is None else _merged(so_far, found, best)
        del found  # not beside the next chunk's
    if so_far is None:
        raise ValueError("an empty catalog cannot be ranked")
    return so_far[1]


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], best: int) -> tuple[Tensor, Tensor]:
    """The best of two lists of (scores, items) [E, K]."""
    scores, order = torch.cat([one[0], other[0]], 1).topk(min(best, one[0].shape[1] + other[0].shape[1]), dim=1)
    return scores, torch.cat([one[1], other[1]], 1).gather(1, order)


def _part(seen: Seen | None, number: int) -> tuple[Tensor, Tensor] | None:
    if seen is None:
        return None
    part = slice(seen.bounds[number], seen.bounds[number + 1])
    return seen.rows[part], seen.items[part]


def _best_of_chunk(
    hidden: Tensor, table: Tensor, start: int, seen: tuple[Tensor, Tensor] | None, best: int
) -> tuple[Tensor, Tensor]:
    """Scores [E, K] and items [E, K] of the best in table [C, D], whose first row is item `start`."""
    scores = torch.matmul(hidden, table.t()).float()
    if seen is not None:
        scores[seen[0], seen[1] - start] = -torch.inf
    found, at = scores.topk(min(best, len(table)), dim=1)
    return found, at + start
