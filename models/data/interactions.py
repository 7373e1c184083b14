"""Interactions from files: who took which item, in the order of time. numpy arrays out, nothing heavy imported early.

Formats and column names are those of `formats`. Letters: R interactions, U users, V items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from srsplan.models.data.formats import FOUND_BY_NAME, Columns, read_table, reader_errors, require_file
from srsplan.models.data.limits import decoded_bytes, require_unpacked
from srsplan.models.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

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

    def __len__(self) -> int:
        return len(self.users)


def read_interactions(
    path: str | Path,
    *,
    columns: Columns = FOUND_BY_NAME,
    min_user_interactions: int = 0,
    min_item_interactions: int = 0,
) -> Interactions:
    """Read a file, keep its core, number users and items densely (in the order of their labels), sort.

    The core: users with fewer than `min_user_interactions` and items with fewer than `min_item_interactions` go,
    again and again until none is left to go. Memory: about 100 bytes an interaction at the peak; text ids come on top.
    InputError, with the file named, for everything that is wrong with it.
    """
    path = Path(path)
    _require_minimum("min_user_interactions", min_user_interactions)
    _require_minimum("min_item_interactions", min_item_interactions)
    require_file(path)
    with reader_errors(path):
        found = _load(path, columns)
    if min_user_interactions > 1 or min_item_interactions > 1:
        found = _core(found, min_user_interactions, min_item_interactions)
    _require_several(path, found)
    return _select(found, _time_order(found.users, found.timestamps))


def _load(path: Path, columns: Columns) -> Interactions:
    """Load all of the file, in its order."""
    table, notes = read_table(path, columns)
    if not table.num_rows:
        raise InputError(f"{path} holds no interactions, only a header", "is it the right file?")
    users, user_ids = _encode(table["user"], "user", path)
    items, item_ids = _encode(table["item"], "item", path)
    return Interactions(
        users=users,
        items=items + np.int32(1),
        timestamps=_timestamps(table["timestamp"], path) if "timestamp" in table.column_names else None,
        user_ids=user_ids,
        item_ids=item_ids,
        notes=notes,
    )


def _select(found: Interactions, rows: NDArray[np.intp]) -> Interactions:
    times = None if found.timestamps is None else found.timestamps[rows]
    return replace(found, users=found.users[rows], items=found.items[rows], timestamps=times)


def _require_minimum(name: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{name} {value} is below zero", "0 and 1 keep everybody, 5 is usual")


def _require_several(path: Path, found: Interactions) -> None:
    if not len(found):
        raise InputError(f"{path}: nothing is left after the filters", "lower the minimum of users or of items")
    for count, what in ((found.user_count, "user"), (found.catalog, "item")):
        if count < 2:
            raise InputError(
                f"{path}: all {len(found):,} interactions are of one {what}",
                f"is the {what} column the right one? --{what}-column names another",
            )


# Columns to numbers.


def _encode(column: pa.ChunkedArray, role: str, path: Path) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return codes [R] in the order of the labels, and the labels; InputError where an id is missing."""
    import pyarrow.compute as pc

    labels, codes = _dictionary(column)
    missing = pc.is_null(labels)
    if labels.type in _text_types():
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(labels), ""), True))
    absent = np.flatnonzero(missing.to_numpy(zero_copy_only=False))
    if len(absent):
        rows = np.flatnonzero(np.isin(codes, absent))
        raise InputError(
            f"{path}: no {role} id in {len(rows):,} of {len(codes):,} rows, the first is data row {rows[0] + 1:,}",
            "remove these rows, or give them an id",
        )
    order = pc.array_sort_indices(labels)
    places = np.empty(len(labels), dtype=np.int32)
    places[order.to_numpy()] = np.arange(len(labels), dtype=np.int32)
    return places[codes], labels.take(order).to_numpy(zero_copy_only=False)


def _dictionary(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int32]]:
    """Return the labels that occur (null where a row has none), each once, and the place of each row's label [R]."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_dictionary(column.type):
        encoded = pc.dictionary_encode(_as_labels(column), null_encoding="encode").combine_chunks()
        return encoded.dictionary, encoded.indices.to_numpy()
    # a column that comes in dictionaries is never written out: a small file can stand for a lot of text
    joined = column.unify_dictionaries().combine_chunks()
    values = _as_labels(pa.chunked_array([joined.dictionary]))
    distinct = pc.dictionary_encode(values, null_encoding="encode").combine_chunks()
    codes = distinct.indices.take(joined.indices)
    found = pc.dictionary_encode(codes, null_encoding="encode")
    return distinct.dictionary.take(found.dictionary), found.indices.to_numpy()


def _text_types() -> tuple[Any, ...]:
    import pyarrow as pa

    return pa.string(), pa.large_string()


def _as_labels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn ids into labels: integers stay, floats that hold only integers become integers, the rest becomes text."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column.cast(pa.string())
    if types.is_integer(column.type) or column.type in _text_types():
        return column
    return column.cast(pa.string())


def _timestamps(column: pa.ChunkedArray, path: Path) -> NDArray[np.int64] | NDArray[np.float64]:
    """Return int64 where all are whole numbers or dates (in the column's unit), float64 otherwise."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    given = _written_out(column, path) if types.is_dictionary(column.type) else column
    column = _parsed(given) if given.type in _text_types() else given
    if types.is_decimal(column.type):
        column = column.cast(pa.float64())
    is_date = types.is_timestamp(column.type) or types.is_date(column.type)
    if not (is_date or types.is_integer(column.type) or types.is_floating(column.type)):
        raise InputError(
            f"{path}: the timestamp column holds {column.type} values",
            "times are numbers, dates or ISO 8601 text; --timestamp-column names another column",
        )
    if types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    _refuse_rows(pc.is_null(column), given, path, "unreadable")
    if not is_date:
        _refuse_rows(pc.less(column, 0), given, path, "negative")
    if types.is_date32(column.type):
        column = column.cast(pa.int32())
    try:
        return cast("NDArray[np.int64]", column.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        return cast("NDArray[np.float64]", column.cast(pa.float64()).to_numpy())


def _written_out(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Give every row its own value, where that is not more than a file of this size can mean."""
    require_unpacked(path, decoded_bytes(column))
    return column.cast(column.type.value_type)


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Read text as numbers or as dates, whichever reads more of it; null where that fails."""
    import pandas as pd
    import pyarrow as pa

    text = column.to_pandas()
    read: pd.Series[Any] = pd.to_numeric(text, errors="coerce")
    if read.isna().any():
        dates = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")
        read = dates if dates.notna().sum() > read.notna().sum() else read
    return pa.chunked_array([pa.array(read)])


def _refuse_rows(wrong: pa.ChunkedArray, given: pa.ChunkedArray, path: Path, what: str) -> None:
    rows = np.flatnonzero(wrong.to_numpy())
    if len(rows):
        first = f"data row {rows[0] + 1:,}: {given[int(rows[0])].as_py()!r}"
        raise InputError(
            f"{path}: {what} timestamps in {len(rows):,} of {len(given):,} rows, the first is {first}",
            "times are numbers from 0 up, dates or ISO 8601 text; --timestamp-column names another column",
        )


# Arithmetic on codes.


def _core(found: Interactions, of_user: int, of_item: int) -> Interactions:
    """Filter until nothing is left to go; return the rows that stay, with users and items numbered anew."""
    rows = np.arange(len(found))
    while True:
        users, items = found.users[rows], found.items[rows]
        keep = (np.bincount(users)[users] >= of_user) & (np.bincount(items)[items] >= of_item)
        if keep.all():
            break
        rows = rows[keep]
    note = (
        f"filters (users with at least {of_user} interactions, items with at least {of_item}) "
        f"kept {len(rows):,} of {len(found):,} interactions"
    )
    found = _select(found, rows)
    users, user_ids = _renumber(found.users, found.user_ids)
    items, item_ids = _renumber(found.items - np.int32(1), found.item_ids)
    return replace(
        found,
        users=users,
        items=items + np.int32(1),
        user_ids=user_ids,
        item_ids=item_ids,
        notes=(*found.notes, note),
    )


def _renumber(codes: NDArray[np.int32], labels: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    present = np.bincount(codes, minlength=len(labels)) > 0
    return (np.cumsum(present, dtype=np.int32) - np.int32(1))[codes], labels[present]


def _time_order(users: NDArray[np.int32], times: NDArray[np.int64] | NDArray[np.float64] | None) -> NDArray[np.intp]:
    """Return the order of the rows by user, then time; equal rows keep theirs."""
    if times is None:
        return np.argsort(users, kind="stable")
    if times.dtype.kind == "i":
        first, span = int(times.min()), int(times.max()) - int(times.min()) + 1
        if span * (int(users.max()) + 1) < 2**63:  # one sort of one key takes half the time of two
            return np.argsort(users.astype(np.int64) * span + (times - first), kind="stable")
    return np.lexsort((times, users))
