"""Metrics of a full ranking, one target a user, as RePlay (https://github.com/sb-ai-lab/RePlay) defines them.

Coverage alone differs: see `ranking_metrics`.

Letters: H users evaluated, K ranks, V items. Items are 1 to V; 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srsplan.models.config import require_positive
from srsplan.models.errors import InputError

RANKS = (1, 5, 10, 20, 100)


def ranking_metrics(
    top_items: NDArray[np.integer],
    targets: NDArray[np.integer],
    users_per_item: NDArray[np.integer],
    user_count: int,
    ks: Sequence[int] = RANKS,
) -> dict[str, float]:
    """Return averages over users: NDCG_10, HitRate_10, MRR_10, Coverage_10, Surprisal_10 and so on for every k.

    top_items [H, K], best first, an item at most once in a row and 0 for nothing; targets [H], 1 to V;
    users_per_item [V + 1], distinct users in train of each item; user_count: users in train, U.

    - NDCG 1 / log2(rank + 1), HitRate 1, MRR 1 / rank where the target is among the first k, 0 where it is not.
    - Coverage: of the items that have a user in train, the share that is recommended to somebody, 0 to 1. RePlay counts
      recommended items without a user as well, and can exceed 1.
    - Surprisal: mean over users and ranks of log2(U / users of the item) / log2(U), 1 for an item nobody has.

    Where K is less than k, as for a catalog of fewer than k items, the missing ranks count as nothing, which hits
    nothing and surprises by 0.
    InputError where there is no user or a k is not above zero. Memory: one boolean [H, K].
    """
    for k in ks:
        require_positive(k=k)
    if not len(targets):
        raise InputError("no users to evaluate", "hold out some users")
    weights = _surprisals(users_per_item, user_count)
    surprisal = np.cumsum([weights[column].sum() for column in top_items.T])
    hits = top_items == np.asarray(targets)[:, None]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
    known = users_per_item > 0
    found: dict[str, float] = {}
    for k in ks:
        hit = ranks[ranks <= k]
        found[f"NDCG_{k}"] = float((1 / np.log2(hit + 1)).sum() / len(targets))
        found[f"HitRate_{k}"] = len(hit) / len(targets)
        found[f"MRR_{k}"] = float((1 / hit).sum() / len(targets))
        found[f"Coverage_{k}"] = _covered(top_items[:, :k], known)
        found[f"Surprisal_{k}"] = float(surprisal[min(k, len(surprisal)) - 1] / (k * len(targets)))
    return found


def _surprisals(users_per_item: NDArray[np.integer], user_count: int) -> NDArray[np.float64]:
    """Return the surprisal of each item, [V + 1], 0 to 1; 0 for item 0, which is nothing, and 1 for an item nobody has.

    Where train has a single user, that user's items have a surprisal of 0.
    """
    weights = np.ones(len(users_per_item))
    known = users_per_item > 0
    weights[known] = np.log2(user_count / users_per_item[known]) / np.log2(max(2, user_count))
    weights[0] = 0
    return weights


def _covered(items: NDArray[np.integer], known: NDArray[np.bool_]) -> float:
    """Return the share of the `known` items, bool [V + 1], that is among `items`."""
    recommended = np.zeros_like(known)
    recommended[items] = True
    return int((recommended & known)[1:].sum()) / max(1, int(known[1:].sum()))
