"""A model on a rectangle: histories padded on the right, from item numbers to the best items, without data-bound sizes.

Letters: B users, L items of the longest history, W = min(L, items seen), D hidden size, V items, K best items.

The model is any `SequenceModel` whose hidden state at a token depends on that token and those before it: padding stands
behind them, and is packed as if it were items of the sequence. Where that is not so, `check_padding` says so.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from srsplan.kernels.attention import Packing
from srsplan.models.data.splits import Sequences
from srsplan.models.errors import InputError
from srsplan.models.prediction.recommending import Wanted, recommend
from srsplan.models.sequence_model import PackedItems, SequenceModel

RELATIVE, ABSOLUTE = 1e-4, 1e-4
"""How far scores of the same items may be apart that were summed in another order."""


class PaddedRecommender(nn.Module):
    """The best items of B users whose histories stand in the rows of a rectangle, as `recommend` finds them.

    items int64 [B, L], 0-based, the oldest first, from the first column on; what stands behind `lengths` int64 [B], 1
    to L, is ignored, and may be any item. Returns items int64 [B, K], best first, -1 where fewer are left, and their
    scores fp32 [B, K], minus infinity there.
    """

    def __init__(self, model: SequenceModel, wanted: Wanted) -> None:
        super().__init__()
        self.model, self.wanted = model, wanted
        self.eval()

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Recommend; see the class."""
        scores = self._last_states(items, lengths) @ self.model.item_table.t()
        if not self.wanted.keep_seen:
            there = torch.arange(items.shape[1], device=items.device) < lengths.unsqueeze(1)
            scores = scores.scatter(1, torch.where(there, items, items[:, :1]), -torch.inf)
        found = torch.topk(scores, self.wanted.best, dim=1)
        return torch.where(found.values > -torch.inf, found.indices, -1), found.values

    def _last_states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the hidden states [B, D] at the last item of each history, or at the mask behind it."""
        users = items.shape[0]
        window, seen = self._window(items, lengths)
        width = window.shape[1]
        positions = torch.arange(width, device=items.device).expand(users, -1)
        packing = _packing(users, width, seen)
        hidden = self.model(PackedItems(window.reshape(-1), positions.reshape(-1), packing))
        return cast(Tensor, hidden.view(users, width, -1)[torch.arange(users, device=items.device), seen - 1])

    def _window(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that the model sees, int64 [B, W] or with a mask [B, W + 1], and how many of each row."""
        width = torch.sym_min(items.shape[1], self.wanted.items_seen)
        columns = torch.arange(width, device=items.device)
        first = (lengths - width).clamp(min=0).unsqueeze(1)
        window = items.gather(1, first + columns)
        seen = torch.minimum(lengths, torch.ones_like(lengths) * width)
        if self.wanted.mask is None:
            return window, seen
        window = torch.cat([window, window[:, :1]], 1)
        return window.scatter(1, seen.unsqueeze(1), self.wanted.mask), seen + 1


def _packing(users: int, width: int, lengths: Tensor) -> Packing:
    """Return the packing of sequences that are all of one length: nothing is moved; padding is hidden by `lengths`."""
    device = lengths.device
    tokens = torch.arange(users * width, device=device)
    bounds = torch.arange(users + 1, device=device, dtype=torch.int32) * width
    return Packing(bounds, width, ((users, width),), tokens, tokens, lengths)


def examples(catalog: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Return items and lengths of four users: one item, fewer than the model sees, as many, and more than that."""
    lengths = torch.tensor([1, (seq_len + 1) // 2, seq_len, seq_len + 3])
    random = torch.Generator().manual_seed(0)
    return torch.randint(catalog, (4, seq_len + 3), generator=random), lengths


def expected(recommender: PaddedRecommender, items: Tensor, lengths: Tensor) -> Tensor:
    """Return the scores fp32 [B, K] that packed sequences, without padding, lead to."""
    rows = [row[:length] for row, length in zip(items.numpy(), lengths.tolist(), strict=True)]
    sequences = Sequences(np.cumsum([0, *map(len, rows)]), (np.concatenate(rows) + 1).astype(np.int32))
    batches = recommend(recommender.model, sequences, recommender.wanted)
    return torch.from_numpy(np.concatenate([batch.scores for batch in batches]))


def check_padding(recommender: PaddedRecommender) -> None:
    """Raise InputError where padding changes what the model recommends, as it does where attention looks ahead."""
    items, lengths = examples(len(recommender.model.item_table), recommender.wanted.seq_len)
    with torch.no_grad():
        found = recommender(items, lengths)[1]
    if not torch.allclose(found, expected(recommender, items, lengths), RELATIVE, ABSOLUTE):
        raise InputError(
            f"a {type(recommender.model).__name__} cannot be exported: padding changes what it recommends",
            "models whose tokens see only what stands before them can be; srsplan predict runs every model",
        )
