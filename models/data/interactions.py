"""Interactions from files: who took which item, in the order of time. numpy arrays out, nothing heavy imported early.

Formats and column names are those of `formats`. Letters: R interactions, U users, V items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srsplan.models.data import encoding
from srsplan.models.data.blocks import counts, offsets_of
from srsplan.models.data.core import keep_core
from srsplan.models.data.formats import FOUND_BY_NAME, Columns, read_table
from srsplan.models.data.ordering import put_in_order
from srsplan.models.data.parts import Parts, parts_of, reader_errors
from srsplan.models.data.rows import Rows
from srsplan.models.errors import InputError

__all__ = ["FOUND_BY_NAME", "Columns", "Interactions", "read_interactions"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """The interactions of a file, sorted by user, then time; equal times keep the order of the file."""

    users: NDArray[np.int32]
    """User numbers [R], 0 to U - 1."""
    items: NDArray[np.int32]
    """Item numbers [R], 1 to V; 0 is padding and never occurs."""
    timestamps: NDArray[np.int64] | NDArray[np.float64] | None
    """Times [R] in the unit of the file; None where it has none."""
    user_ids: NDArray[Any]
    """Labels [U] of the users in the file."""
    item_ids: NDArray[Any]
    """Labels [V] of the items in the file: item_ids[i - 1] is that of item i."""
    notes: tuple[str, ...]
    """Sentences for the user: which column became what, what was left out."""

    @property
    def catalog(self) -> int:
        """V: distinct items."""
        return len(self.item_ids)

    @property
    def user_count(self) -> int:
        """U: distinct users."""
        return len(self.user_ids)

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Return int64 [U + 1]: user u has the interactions bounds[u] to bounds[u + 1]."""
        return offsets_of(counts(self.users, self.user_count))

    def __len__(self) -> int:
        return len(self.users)


def read_interactions(
    path: str | Path,
    *,
    columns: Columns = FOUND_BY_NAME,
    min_user_interactions: int = 0,
    min_item_interactions: int = 0,
    several: bool = True,
) -> Interactions:
    """Read a file, keep its core, number users and items densely (in the order of their labels), sort.

    `path` may be a folder of parquet files. The core: users with fewer than `min_user_interactions` and items with
    fewer than `min_item_interactions` go, again and again until none is left to go. Where all are of one user or item,
    that is an error, unless not `several` are asked for: a model can be asked about one user. Memory at the peak:
    `limits.PARQUET_BYTES_PER_INTERACTION` for parquet, about 100 bytes an interaction for text; text ids come on top.
    InputError, with the file named, for everything that is wrong with it.
    """
    path = Path(path)
    _require_minimum("min_user_interactions", min_user_interactions)
    _require_minimum("min_item_interactions", min_item_interactions)
    rows, notes = _load(parts_of(path), columns)
    if min_user_interactions > 1 or min_item_interactions > 1:
        notes += (keep_core(rows, min_user_interactions, min_item_interactions),)
    _require_some(path, rows)
    if several:
        _require_several(path, rows)
    put_in_order(rows)
    return Interactions(
        users=rows.users,
        items=rows.items,
        timestamps=rows.times,
        user_ids=rows.user_ids,
        item_ids=rows.item_ids,
        notes=notes,
    )


def _load(parts: Parts, columns: Columns) -> tuple[Rows, tuple[str, ...]]:
    """Load all of the file, in its order, a column after the other."""
    path = parts.path
    with reader_errors(path):
        table = read_table(parts, columns)
        if not table.rows:
            raise InputError(f"{path} holds no interactions, only a header", "is it the right file?")
        users, user_ids = encoding.encode(table.take("user"), "user", path)
        items, item_ids = encoding.encode(table.take("item"), "item", path)
        items += np.int32(1)
        times = encoding.timestamps(table.take("timestamp"), path) if table.timed else None
    return Rows(users=users, items=items, times=times, user_ids=user_ids, item_ids=item_ids), table.notes


def _require_minimum(name: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{name} {value} is below zero", "0 and 1 keep everybody, 5 is usual")


def _require_some(path: Path, rows: Rows) -> None:
    if not len(rows):
        raise InputError(f"{path}: nothing is left after the filters", "lower the minimum of users or of items")


def _require_several(path: Path, rows: Rows) -> None:
    for count, what in ((len(rows.user_ids), "user"), (len(rows.item_ids), "item")):
        if count < 2:
            raise InputError(
                f"{path}: all {len(rows):,} interactions are of one {what}",
                f"is the {what} column the right one? --{what}-column names another",
            )
