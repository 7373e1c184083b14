"""Columns to numbers: ids become places in the order of their labels, times whole numbers or fractions.

Letters: R interactions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from srsplan.models.data.blocks import BLOCK_ROWS, in_threads
from srsplan.models.data.limits import decoded_bytes, require_unpacked
from srsplan.models.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

DENSE_RATIO, DENSE_SPAN = 4, 1 << 16
"""Whole numbers are looked up in a table where their span is below the larger of this many times R, and this."""

Blocks = list[tuple[slice, NDArray[Any]]]
"""Rows, and the values of them."""


def encode(column: pa.ChunkedArray, role: str, path: Path) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return codes [R] in the order of the labels, and the labels; InputError where an id is missing."""
    return _looked_up(column) or _hashed(column, role, path)


def _looked_up(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[Any]] | None:
    """Encode whole numbers that lie close together by a table of all between them; None for other columns.

    Ten times as fast as hashing at 100 million rows, and beside the codes nothing of their size is made.
    """
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_integer(column.type) or column.null_count or not len(column):
        return None
    first, last = (pc.min_max(column)[name].as_py() for name in ("min", "max"))
    if last >= 2**63 or last - first >= max(DENSE_SPAN, DENSE_RATIO * len(column)):
        return None
    present, codes = np.zeros(last - first + 1, dtype=bool), np.empty(len(column), dtype=np.int32)
    cut = _blocks(column)

    def mark(block: tuple[slice, NDArray[Any]]) -> None:
        present[block[1].astype(np.int64, copy=False) - first] = True

    def look_up(block: tuple[slice, NDArray[Any]]) -> None:
        places.take(block[1].astype(np.int64, copy=False) - first, out=codes[block[0]], mode="clip")

    _ = [*in_threads(mark, cut)]
    places = np.cumsum(present, dtype=np.int32) - np.int32(1)
    _ = [*in_threads(look_up, cut)]
    labels = np.flatnonzero(present) + first
    return codes, labels.astype(column.type.to_pandas_dtype())


def _blocks(column: pa.ChunkedArray) -> Blocks:
    """Return views of a column without nulls, each of a block's rows at most."""
    found: Blocks = []
    row = 0
    for chunk in column.chunks:
        values = chunk.to_numpy()
        for at in range(0, len(values), BLOCK_ROWS):
            part = values[at : at + BLOCK_ROWS]
            found.append((slice(row, row + len(part)), part))
            row += len(part)
    return found


def _hashed(column: pa.ChunkedArray, role: str, path: Path) -> tuple[NDArray[np.int32], NDArray[Any]]:
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


def timestamps(column: pa.ChunkedArray, path: Path) -> NDArray[np.int64] | NDArray[np.float64]:
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
        return cast("NDArray[np.int64]", _own(column.cast(pa.int64())))
    except pa.ArrowInvalid:
        return cast("NDArray[np.float64]", _own(column.cast(pa.float64())))


def _own(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return the values as an array that may be written to: they are put in order in place."""
    values: NDArray[Any] = column.to_numpy()
    return values if values.flags.writeable else values.copy()


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
