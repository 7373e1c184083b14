"""Tables of recommendations: `user_id`, `item_id`, `rank` from 1 and `score`, written part by part, as a whole or not.

Letters: E users of a part, K best items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from srsplan.models.errors import InputError
from srsplan.models.files import check_output, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, CSV = (".parquet", ".pq"), (".csv",)
COLUMNS = ("user_id", "item_id", "rank", "score")
LONGEST_HEADER = 100
PART_ROWS = 1 << 19
"""Rows of a part, about: a row group of parquet, and all that is in memory at a time."""


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...


@dataclass(frozen=True, eq=False)
class Labels:
    """The ids that numbers stand for, as columns."""

    users: pa.Array
    """User ids, of the file of interactions."""
    items: pa.Array
    """Item ids, of the run."""

    @classmethod
    def of(cls, users: NDArray[Any], items: NDArray[Any]) -> Labels:
        """Return the labels as columns; text and numbers keep their types."""
        import pyarrow as pa

        return cls(pa.array(users), pa.array(items))

    def table(self, first_user: int, items: NDArray[np.int64], scores: NDArray[np.float32]) -> pa.Table:
        """Return the rows of users `first_user` on: items and scores [E, K], items 0-based, -1 for nothing."""
        import pyarrow as pa

        there = items >= 0
        rows, places = np.nonzero(there)
        columns = (
            self.users.take(pa.array(rows + first_user)),
            self.items.take(pa.array(items[there])),
            (places + 1).astype(np.int32),
            scores[there],
        )
        return pa.table(dict(zip(COLUMNS, columns, strict=True)))


def check_target(path: Path, overwrite: bool) -> None:
    """Raise InputError unless a table can be written there: to be called before any work.

    A file that exists is replaced where `overwrite` says so and it is a table of recommendations.
    """
    if path.suffix.lower() not in PARQUET + CSV:
        raise InputError(f"--output {path}: unknown extension {path.suffix!r}", f"accepted: {', '.join(PARQUET + CSV)}")
    check_output(path, "table of recommendations", _is_ours if overwrite else None)
    if path.exists() and not overwrite:
        raise InputError(f"--output {path} exists", "--overwrite replaces it, -o names another")


def _is_ours(path: Path) -> bool:
    """Tell whether a file has the columns of a table of recommendations."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if path.suffix.lower() in PARQUET:
            return tuple(parquet.read_schema(path).names) == COLUMNS
        with path.open("rb") as file:
            return file.readline(LONGEST_HEADER).decode().strip().replace('"', "").split(",") == [*COLUMNS]
    except (OSError, ValueError, pa.ArrowException):
        return False


def write_tables(path: Path, parts: Iterable[pa.Table]) -> int:
    """Write parts of one schema, at least one, as a file in the format of its name; return the number of rows.

    Whatever ends the iteration early leaves the old file, or none.
    """
    rows = 0

    def write(temporary: Path) -> None:
        nonlocal rows
        left = iter(parts)
        first = next(left)
        with temporary.open("wb") as file, _writer(file, first.schema, path.suffix.lower()) as writer:
            for part in _chained(first, left):
                writer.write_table(part)
                rows += part.num_rows

    write_atomically(path, write)
    return rows


def _chained(first: pa.Table, left: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from left


@contextmanager
def _writer(file: IO[bytes], schema: pa.Schema, suffix: str) -> Iterator[_Writer]:
    from pyarrow import csv, parquet

    with csv.CSVWriter(file, schema) if suffix in CSV else parquet.ParquetWriter(file, schema) as writer:
        yield writer
