"""The file of interactions that a user names, or the parts of a folder; and what may be wrong with them by themselves.

A folder stands for its parquet files, in the order of their names. Nothing else in it is read: what is hidden or begins
with `_` (Spark's `_SUCCESS`) is passed over in silence, the rest is named in a note.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from srsplan.models.errors import InputError
from srsplan.models.files import check_input

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_FORMATS = (".csv", ".tsv", ".inter", ".txt")
PARQUET_FORMATS = (".parquet", ".pq")
TAIL_BYTES = 64 << 10
"""The end of a parquet file, where its footer has the extremes of every column: parts that differ mostly do so here."""
BLOCK_BYTES = 1 << 20
SHOWN_NAMES = 3


@dataclass(frozen=True)
class Parts:
    """The files that hold the interactions: one, or the parts of a folder."""

    path: Path
    """What the user named."""
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name for sentences: that of the folder where `.` was given."""
        return Path(os.path.abspath(self.path)).name

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of interactions that are read when they are taken."""

    rows: int
    timed: bool
    """True where there is a column timestamp, beside user and item."""
    notes: tuple[str, ...]
    take: Callable[[str], pa.ChunkedArray]
    """Returns a column of that name, in the order of the file; each may be taken once."""


def parts_of(path: Path) -> Parts:
    """Return the files behind a path; InputError unless each is a file of a known format with something in it."""
    if path.is_dir():
        return _parts_of_folder(path)
    _require_file(path)
    return Parts(path, (path,))


def format_of(path: Path) -> str:
    """Return the format: `.csv` for a.csv and a.CSV.gz; `.gz` stays where no text format stands before it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped_text = suffixes[-1:] == [".gz"] and suffixes[-2:-1] and suffixes[-2] in TEXT_FORMATS
    return suffixes[-2] if gzipped_text else "".join(suffixes[-1:])


@contextmanager
def reader_errors(path: Path) -> Iterator[None]:
    """Turn errors of pyarrow, pandas and gzip into an InputError, for every reader."""
    import pandas as pd
    import pyarrow as pa

    foreign = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pa.ArrowException, pd.errors.ParserError)
    try:
        yield
    except foreign as error:
        text = str(error).strip() or type(error).__name__
        raise InputError(f"cannot read {path}: {text}", f"is it a complete {format_of(path)} file?") from error


def twins(parts: Parts) -> tuple[str, ...]:
    """Say in a sentence each which parts hold the same bytes: most likely one was copied by mistake."""
    by_size = groupby(sorted(parts.files, key=_size_bytes), key=_size_bytes)
    alike = [list(files) for _, files in by_size]
    for checksum in (_tail_checksum, _checksum):  # the whole file is read only where the end is the same
        alike = [
            list(same)
            for files in alike
            if len(files) > 1
            for _, same in groupby(sorted(files, key=checksum), checksum)
        ]
    return tuple(
        f"warning: {', '.join(sorted(file.name for file in files))} hold the same bytes: their interactions count "
        f"{len(files)} times"
        for files in alike
        if len(files) > 1
    )


def _parts_of_folder(folder: Path) -> Parts:
    try:
        found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}", "may you read it?") from None
    files = tuple(entry for entry in found if format_of(entry) in PARQUET_FORMATS)
    if not files:
        raise InputError(f"{folder} is a folder without parquet files", "give one file, or a folder of .parquet parts")
    for file in files:
        _require_file(file)
    others = [entry.name for entry in found if entry not in files]
    named = ", ".join(others[:SHOWN_NAMES]) + (", ..." if len(others) > SHOWN_NAMES else "")
    left = (f"{folder}: {len(others):,} other than parquet left aside: {named}",) if others else ()
    return Parts(folder, files, left)


def _require_file(path: Path) -> None:
    check_input(path, "file of interactions", "give one file, or a folder of .parquet parts")
    if format_of(path) not in TEXT_FORMATS + PARQUET_FORMATS:
        accepted = ", ".join((*TEXT_FORMATS, *PARQUET_FORMATS))
        raise InputError(f"{path}: unknown extension {path.suffix!r}", f"accepted: {accepted}, and .gz after text")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty", "is it the right file?")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size


def _tail_checksum(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(max(0, _size_bytes(path) - TAIL_BYTES))
        return zlib.crc32(file.read())


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found = zlib.crc32(block, found)
    return found
