"""Full ranking of a holdout: every item scored for every user, metrics from the best of them.

Letters: H users of the holdout, V items, K ranks. Items are 1 to V here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.chunking import ranking_chunk_items
from srsplan.models.data.batches import history_batches
from srsplan.models.data.splits import Holdout, Sequences, Split
from srsplan.models.training.inputs import spread_padding
from srsplan.models.training.metrics import RANKS, ranking_metrics
from srsplan.models.training.ranking import Seen, rank, rank_hidden, seen_items
from srsplan.models.training.step import TrainingStep

Rank = Callable[[Tensor, Tensor, "Seen | None"], Tensor]
"""(inputs [E, L], last positions [E], what they have seen) -> items int64 [E, K], 0-based."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How a holdout is ranked."""

    users: int
    """Users at once."""
    seq_len: int
    """The last items of a history that the model sees."""
    filter_seen: bool = True
    """Do not recommend what is in the history."""
    ks: Sequence[int] = RANKS
    """Ranks that metrics are wanted at."""


def evaluate(step: TrainingStep, split: Split, holdout: Holdout, ranking: Ranking) -> dict[str, float]:
    """Metrics of the model on a holdout."""
    catalog, best = step.configuration.catalog, max(ranking.ks)
    step.model.eval()

    def by_model(inputs: Tensor, last: Tensor, seen: Seen | None) -> Tensor:
        with step.autocast():
            return rank(step.model, inputs, last, seen, min(best, catalog))

    top = rank_holdout(by_model, holdout, catalog, step.device, ranking)
    return metrics_of(top, split, holdout, ranking)


def popularity(split: Split, holdout: Holdout, ranking: Ranking) -> dict[str, float]:
    """The same metrics for recommending what most interactions of train are with."""
    counts = torch.from_numpy(split.item_counts[1:, None]).float()

    def by_count(inputs: Tensor, last: Tensor, seen: Seen | None) -> Tensor:
        return rank_hidden(torch.ones(len(last), 1), counts, seen, min(max(ranking.ks), split.catalog))

    top = rank_holdout(by_count, holdout, split.catalog, torch.device("cpu"), ranking)
    return metrics_of(top, split, holdout, ranking)


def metrics_of(top: NDArray[np.int64], split: Split, holdout: Holdout, ranking: Ranking) -> dict[str, float]:
    """Metrics of ranked items [H, K], 1 to V."""
    return ranking_metrics(top, holdout.targets, split.users_per_item, len(split.train), ranking.ks)


def rank_holdout(
    ranked: Rank, holdout: Holdout, catalog: int, device: torch.device, ranking: Ranking
) -> NDArray[np.int64]:
    """The best items of every user, int64 [H, K], 1 to V."""
    parts = []
    for rows, inputs, last in history_batches(holdout.histories, ranking.users, ranking.seq_len):
        seen = _seen(holdout.histories, rows, catalog, device) if ranking.filter_seen else None
        items = torch.from_numpy(spread_padding(inputs, catalog)).to(device)
        parts.append(ranked(items, torch.from_numpy(last).to(device), seen).cpu().numpy() + 1)
    return np.concatenate(parts)


def subset(holdout: Holdout, users: int, seed: int) -> Holdout:
    """So many users drawn at random, the same for the same seed; all of them where there are no more."""
    if len(holdout) <= users:
        return holdout
    rows = np.sort(np.random.default_rng(seed).choice(len(holdout), users, replace=False))
    starts, ends = holdout.histories.offsets[rows], holdout.histories.offsets[rows + 1]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    return Holdout(Sequences(offsets, holdout.histories.items[places]), holdout.targets[rows])


def _seen(histories: Sequences, rows: slice, catalog: int, device: torch.device) -> Seen:
    bounds = histories.offsets[rows.start : rows.stop + 1]
    items = histories.items[bounds[0] : bounds[-1]].astype(np.int64) - 1
    users = np.repeat(np.arange(rows.stop - rows.start), np.diff(bounds))
    chunk = ranking_chunk_items(rows.stop - rows.start, catalog)
    return seen_items(users, items, catalog, chunk, device)
