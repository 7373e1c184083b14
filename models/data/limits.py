"""Limits of a file of interactions: what the machine's memory carries, and what a file of its size can hold.

Compression lets a megabyte stand for gigabytes of equal rows. Real interactions do not compress like that: which item a
user took next takes more than half a byte. Only what unpacks to more than any real file is refused, however large.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import TYPE_CHECKING

from srsplan.models.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BYTES_PER_INTERACTION = 100
"""Memory at the peak of reading text, for ids that are numbers; text ids come on top."""
PARQUET_BYTES_PER_INTERACTION = 50
"""The same for parquet, whose columns are read one after another."""

ROWS_PER_BYTE = 2
ALWAYS_ALLOWED_ROWS = 10_000_000
UNPACKED_PER_BYTE = 50
ALWAYS_ALLOWED_BYTES = 256 << 20
SHORTEST_LINE_BYTES = 4
LONGEST_HEADER = 1 << 20
BLOCK_BYTES = 1 << 20


def require_rows(path: Path, rows: int, bytes_per_row: int = BYTES_PER_INTERACTION) -> None:
    """Raise InputError where a file has more interactions than its size can hold, or than fit into memory."""
    size_bytes = _size_bytes(path)
    if rows > max(ALWAYS_ALLOWED_ROWS, ROWS_PER_BYTE * size_bytes):
        raise InputError(
            f"{path} unpacks to {rows:,} rows or more from {size_bytes:,} bytes: no interactions do that",
            "is it the right file?",
        )
    needed_bytes, memory_bytes = rows * bytes_per_row, machine_memory_bytes()
    if needed_bytes > memory_bytes:
        raise InputError(
            f"{path} has at least {rows:,} interactions: reading them takes {needed_bytes / 1e9:.0f} GB of memory, "
            f"this machine has {memory_bytes / 1e9:.0f} GB",
            "use a machine with more memory, or a sample of the users",
        )


def require_unpacked(path: Path, unpacked_bytes: int) -> None:
    """Raise InputError where a file unpacks to far more bytes than tables of interactions do."""
    size_bytes = _size_bytes(path)
    most = max(ALWAYS_ALLOWED_BYTES, UNPACKED_PER_BYTE * size_bytes)
    if unpacked_bytes > most:
        raise InputError(
            f"{path} unpacks to more than {most >> 20:,} MiB from {size_bytes:,} bytes: no interactions do that",
            "is it the right file?",
        )


def require_text(path: Path) -> None:
    """Unpack a text file once, counting, and stop at the limits; a plain file that cannot reach them is not read."""
    packed = path.suffix.lower() == ".gz"
    if not packed and path.stat().st_size // SHORTEST_LINE_BYTES * BYTES_PER_INTERACTION <= machine_memory_bytes():
        return
    rows = unpacked_bytes = 0
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            rows += block.count(b"\n")
            unpacked_bytes += len(block)
            require_rows(path, rows)
            require_unpacked(path, unpacked_bytes)


def _size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder of parts."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.iterdir() if entry.is_file())


def decoded_bytes(column: pa.ChunkedArray) -> int:
    """Return the size of a column once every row holds its own value: text in dictionaries is counted written out."""
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_dictionary(column.type) or not is_text(column.type.value_type):
        return int(column.nbytes)
    lengths = (pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)) for chunk in column.chunks)
    return sum(length.as_py() or 0 for length in lengths)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column holds text or bytes of any length."""
    from pyarrow import types

    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def machine_memory_bytes() -> int:
    """Return what this process may use at most: the machine's memory, or the limit of its container."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return physical
    return min(physical, limit)
