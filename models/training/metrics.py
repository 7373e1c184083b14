"""Metrics of a full ranking, one target a user, as RePlay (https://github.com/sb-ai-lab/RePlay) defines them.

Coverage alone differs: see `Ranked.metrics`.

Letters: H users evaluated, K ranks, V items, N ranks that metrics are wanted at. Items are 1 to V; 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from srsplan.models.checks import require_positive
from srsplan.models.errors import InputError

RANKS = (1, 5, 10, 20, 100)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """What was recommended to each user, and what each of them should have been recommended.

    InputError where there is no user or a k is not above zero. Memory beside the fields: one boolean [H, K] while the
    ranks are found; ranks [H], surprisals [N, H] and recommended [N, V + 1] are kept once somebody asks for them.
    """

    top_items: NDArray[np.integer]
    """Items [H, K], best first, an item at most once in a row and 0 for nothing."""
    targets: NDArray[np.integer]
    """The item [H] that each user's ranking should name, 1 to V."""
    users_per_item: NDArray[np.integer]
    """Distinct users in train of each item, [V + 1]."""
    user_count: int
    """Users in train, U."""
    ks: Sequence[int] = RANKS
    """Ranks that metrics are wanted at."""

    def __post_init__(self) -> None:
        for k in self.ks:
            require_positive(k=k)
        if not len(self.targets):
            raise InputError("no users to evaluate", "hold out some users")

    @cached_property
    def ranks(self) -> NDArray[np.intp]:
        """Return the rank of each user's target, [H], 1 to K, and 0 where it is not among the K."""
        hits = self.top_items == np.asarray(self.targets)[:, None]
        return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)

    @cached_property
    def surprisals(self) -> NDArray[np.float64]:
        """Return the surprisal of what each user is recommended, the mean over the first k ranks, [N, H]."""
        weights = _surprisals(self.users_per_item, self.user_count)
        so_far, found = np.zeros(len(self.targets)), np.zeros((len(self.ks), len(self.targets)))
        for rank, column in enumerate(self.top_items.T, start=1):
            so_far += weights[column]
            for place in self.places_ending_at(rank):
                found[place] = so_far / self.ks[place]
        return found

    @cached_property
    def recommended(self) -> NDArray[np.bool_]:
        """Return which items that have a user in train are among the first k of somebody, [N, V + 1]."""
        return self._recommended_to(None)

    def _recommended_to(self, users: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        so_far = np.zeros(len(self.users_per_item), dtype=np.bool_)
        found = np.zeros((len(self.ks), len(so_far)), dtype=np.bool_)
        for rank, column in enumerate(self.top_items.T, start=1):
            so_far[column if users is None else column[users]] = True
            for place in self.places_ending_at(rank):
                found[place] = so_far & self.known
        return found

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Return which items have a user in train, [V + 1]; item 0 is none."""
        known = np.asarray(self.users_per_item > 0)
        known[0] = False
        return known

    def places_ending_at(self, rank: int) -> list[int]:
        """Return the places in `ks` of which `rank` is the last rank that there is."""
        most = self.top_items.shape[1]
        return [place for place, k in enumerate(self.ks) if min(k, most) == rank]

    def metrics(self, users: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Return averages over users: NDCG_10, HitRate_10, MRR_10, Coverage_10, Surprisal_10 and so on for every k.

        - NDCG 1 / log2(rank + 1), HitRate 1, MRR 1 / rank where the target is among the first k, 0 where it is not.
        - Coverage: of the items that have a user in train, the share that is recommended to somebody, 0 to 1. RePlay
          counts recommended items without a user as well, and can exceed 1.
        - Surprisal: mean over users and ranks of log2(U / users of the item) / log2(U), 1 for an item nobody has.

        Where K is less than k, as for a catalog of fewer than k items, the missing ranks count as nothing, which hits
        nothing and surprises by 0. `users` [H], true for one at least, says who counts; all do without it.
        """
        ranks = self.ranks if users is None else self.ranks[users]
        surprisals = self.surprisals if users is None else self.surprisals[:, users]
        tally = np.bincount(ranks, minlength=self.top_items.shape[1] + 1)
        means = {name: float(tally @ gain) / len(ranks) for name, gain in gains(len(tally) - 1, self.ks).items()}
        recommended = self.recommended if users is None else self._recommended_to(users)
        coverage = recommended.sum(axis=1) / max(1, int(self.known.sum()))
        found: dict[str, float] = {}
        for place, k in enumerate(self.ks):
            found |= {f"{name}_{k}": means[f"{name}_{k}"] for name in ("NDCG", "HitRate", "MRR")}
            found[f"Coverage_{k}"] = float(coverage[place])
            found[f"Surprisal_{k}"] = float(surprisals[place].mean())
        return found


def gains(rank_count: int, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return what a target at each rank is worth, [K + 1] for NDCG_k, HitRate_k and MRR_k; rank 0 stands for a miss."""
    ranks = np.arange(1, rank_count + 1)
    worth = {"NDCG": 1 / np.log2(ranks + 1), "HitRate": np.ones(rank_count), "MRR": 1 / ranks}
    return {f"{name}_{k}": np.append(0.0, np.where(ranks <= k, gain, 0.0)) for k in ks for name, gain in worth.items()}


def _surprisals(users_per_item: NDArray[np.integer], user_count: int) -> NDArray[np.float64]:
    """Return the surprisal of each item, [V + 1], 0 to 1; 0 for item 0, which is nothing, and 1 for an item nobody has.

    Where train has a single user, that user's items have a surprisal of 0.
    """
    weights = np.ones(len(users_per_item))
    known = users_per_item > 0
    weights[known] = np.log2(user_count / users_per_item[known]) / np.log2(max(2, user_count))
    weights[0] = 0
    return weights
