"""The core of interactions: only users and items with enough of them, again and again until none is left to go."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from srsplan.models.data import progress
from srsplan.models.data.blocks import blocks, counts
from srsplan.models.data.rows import Rows


def keep_core(rows: Rows, of_user: int, of_item: int) -> str:
    """Drop the rows outside the core, number users and items anew, and say in a sentence how many stayed.

    Memory: one byte an interaction beside the rows. A round looks at every row once, and counts only what goes.
    """
    before = len(rows)
    stays = _core(rows, of_user, of_item)
    rows.users, rows.items = rows.users[stays], rows.items[stays]
    rows.times = None if rows.times is None else rows.times[stays]
    rows.users, rows.user_ids = _numbered_anew(rows.users, rows.user_ids, 0)
    rows.items, rows.item_ids = _numbered_anew(rows.items, rows.item_ids, 1)
    return (
        f"filters (users with at least {of_user} interactions, items with at least {of_item}) "
        f"kept {len(rows):,} of {before:,} interactions"
    )


def _core(rows: Rows, of_user: int, of_item: int) -> NDArray[np.bool_]:
    """Return which rows are in the core, bool [R]."""
    users = counts(rows.users, len(rows.user_ids))
    items = counts(rows.items, len(rows.item_ids) + 1)
    stays = np.ones(len(rows), dtype=bool)
    went = -1
    while went:
        went = 0
        enough_users, enough_items = users >= of_user, items >= of_item
        for block in blocks(len(rows)):
            enough = enough_users[rows.users[block]] & enough_items[rows.items[block]]
            goes = np.flatnonzero(stays[block] & ~enough) + block.start
            stays[goes] = False
            _take_off(users, rows.users[goes])
            _take_off(items, rows.items[goes])
            went += len(goes)
            progress.tell("filtering", block.stop / len(rows))
    return stays


def _take_off(found: NDArray[np.int64], codes: NDArray[np.int32]) -> None:
    """Count each code once less."""
    if 8 * len(codes) > len(found):
        found -= np.bincount(codes, minlength=len(found))
    else:
        np.subtract.at(found, codes, 1)


def _numbered_anew(
    codes: NDArray[np.int32], labels: NDArray[Any], first: int
) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return codes without gaps from `first` on, and the labels that still occur."""
    present = counts(codes, len(labels) + first)[first:] > 0
    places = np.zeros(len(labels) + first, dtype=np.int32)
    places[first:] = np.cumsum(present) - 1 + first
    return places[codes], labels[present]
