"""Full ranking of a holdout: every item scored for every user, metrics from the best of them.

A target is warm where somebody in train has it, and cold otherwise: a cold one has a vector that was never trained, so
hardly a model can hit it. Other libraries drop users with a cold target without a word, and their figures come out
higher; here metrics over all users and over those with a warm target stand side by side.

Letters: H users of the holdout, V items, K ranks. Items are 1 to V here, 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.chunking import ranking_chunk_items
from srsplan.models.data.batches import history_batches
from srsplan.models.data.masking import Masking
from srsplan.models.data.splits import Holdout, Sequences, Split
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.inputs import packed_items
from srsplan.models.training.metrics import RANKS, Ranked
from srsplan.models.training.ranking import Seen, rank, rank_hidden, seen_items
from srsplan.models.training.step import TrainingStep

Rank = Callable[[PackedItems, "Seen | None"], Tensor]
"""(histories of E users, what they have seen) -> items int64 [E, K], 0-based, -1 for nothing."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Options for ranking a holdout."""

    users: int
    """The evaluation batch: users ranked at once, at most."""
    tokens: int
    """Tokens of an evaluation batch, at most: longer histories are ranked with fewer others."""
    seq_len: int
    """The last items of a history that the model sees."""
    masking: Masking | None = None
    """The mask that stands behind a history, and is one of the `seq_len`, where the model ranks from one."""
    filter_seen: bool = True
    """Do not recommend what is in the history. Without this, ranking takes no more memory than with it."""
    ks: Sequence[int] = RANKS
    """Ranks that metrics are wanted at."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of one ranking of a holdout."""

    all: dict[str, float]
    """Metrics over all users, keyed NDCG_10, HitRate_10 and so on."""
    warm: dict[str, float]
    """Metrics over the users whose target occurs in train; empty where there is none."""
    users: int
    """Users of the holdout, H."""
    warm_users: int
    """Users whose target occurs in train."""
    ranked: Ranked = field(repr=False, compare=False)
    """The ranking that was measured, for metrics by cohort and intervals; large, so not to be kept."""


def evaluate(step: TrainingStep, split: Split, holdout: Holdout, ranking: Ranking) -> Evaluation:
    """Rank a holdout by the model, or by the average of its weights, and measure what it recommends.

    That model is in evaluation mode afterwards.
    """
    best = min(max(ranking.ks), step.configuration.catalog)
    model = step.evaluated.eval()

    def by_model(histories: PackedItems, seen: Seen | None) -> Tensor:
        return rank(model, histories, seen, best, step.autocast)

    top = rank_holdout(by_model, holdout, step.configuration.catalog, step.device, ranking)
    return measured(top, split, holdout, ranking)


def popularity(split: Split, holdout: Holdout, ranking: Ranking) -> Evaluation:
    """Measure the recommendation of what most interactions of train are with, by the rules of `evaluate`."""
    places = np.unique(split.item_counts[1:], return_inverse=True)[1]  # fewer than counts: exact in fp32
    table, best = torch.from_numpy(places[:, None]).float(), min(max(ranking.ks), split.catalog)

    def by_count(histories: PackedItems, seen: Seen | None) -> Tensor:
        return rank_hidden(torch.ones(len(histories.packing.cu_seqlens) - 1, 1), table, seen, best)

    top = rank_holdout(by_count, holdout, split.catalog, torch.device("cpu"), ranking)
    return measured(top, split, holdout, ranking)


def measured(top: NDArray[np.int64], split: Split, holdout: Holdout, ranking: Ranking) -> Evaluation:
    """Measure ranked items [H, K], 1 to V and 0 for nothing, over all users and over those with a warm target."""
    ranked = Ranked(
        top_items=top,
        targets=holdout.targets,
        users_per_item=split.users_per_item,
        user_count=len(split.train),
        ks=ranking.ks,
    )
    warm = ranked.known[holdout.targets]
    return Evaluation(
        all=ranked.metrics(),
        warm=ranked.metrics(warm) if warm.any() else {},
        users=len(holdout),
        warm_users=int(warm.sum()),
        ranked=ranked,
    )


def rank_holdout(
    ranked: Rank, holdout: Holdout, catalog: int, device: torch.device, ranking: Ranking
) -> NDArray[np.int64]:
    """Rank the items of every user: int64 [H, K], 1 to V, and 0 where fewer than K may be recommended."""
    parts = []
    for rows, histories in history_batches(
        holdout.histories, ranking.users, ranking.seq_len, ranking.tokens, ranking.masking
    ):
        seen = _seen(holdout.histories, rows, catalog, device) if ranking.filter_seen else None
        parts.append(ranked(packed_items(histories, device), seen).cpu().numpy() + 1)
    return np.concatenate(parts)


def subset(holdout: Holdout, users: int, seed: int) -> Holdout:
    """Draw so many users at random, the same for the same seed; all of them where there are no more."""
    if len(holdout) <= users:
        return holdout
    rows = np.sort(np.random.default_rng(seed).choice(len(holdout), users, replace=False))
    starts, ends = holdout.histories.offsets[rows], holdout.histories.offsets[rows + 1]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    return Holdout(Sequences(offsets, holdout.histories.values[places]), holdout.targets[rows])


def _seen(histories: Sequences, rows: slice, catalog: int, device: torch.device) -> Seen:
    bounds = histories.offsets[rows.start : rows.stop + 1]
    items = histories.values[bounds[0] : bounds[-1]].astype(np.int64) - 1
    users = np.repeat(np.arange(rows.stop - rows.start), np.diff(bounds))
    chunk = ranking_chunk_items(rows.stop - rows.start, catalog)
    return seen_items(users, items, catalog, chunk, device)
