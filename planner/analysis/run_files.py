"""The files that hold runs: which ones a path stands for, and their rows, read within limits.

A run table has one row per training run, so a file that unpacks to far more is another file or was made to fill the
memory. The limits hold for what is unpacked, and are checked before anything is parsed.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from srsplan.models.data.limits import decoded_bytes
from srsplan.models.errors import InputError
from srsplan.models.files import check_input

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE = "runs.csv"
"""The name under which `srsplan train` leaves its run in the folder of the run, `srsplan compare` all of its runs."""
COMPARISON = "comparison.json"
"""Marks the folder of a comparison, whose runs.csv has the rows of all folders below it."""

PARQUET_FORMATS = (".parquet", ".pq")
OTHER_ARCHIVES = (".xz", ".zst", ".bz2", ".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".br")
PANDAS_INDEX = "__index_level_"
"""Beginning of the names that pandas gives to an index that it stores beside the columns."""

HINT = "give a run table (.csv, .csv.gz or .parquet), or a folder with runs of `srsplan train`"

LARGEST_UNPACKED_BYTES = 64 << 20
MOST_ROWS = 1_000_000
MOST_COLUMNS = 1_000
MOST_CELLS = 10_000_000
MOST_FOLDERS = 10_000
DEEPEST_FOLDER = 4


def find_run_files(paths: Sequence[Path]) -> list[Path]:
    """Return every file once, in order; a folder stands for all files named `runs.csv` in it and up to four levels
    below. InputError where a folder holds none."""
    found: dict[str, Path] = {}
    for path in paths:
        for file in _run_files_of(path) if os.path.isdir(path) else [path]:
            found.setdefault(os.path.realpath(file), file)  # of a link in a circle and an endless name as well
    return list(found.values())


def _run_files_of(folder: Path) -> list[Path]:
    files = sorted(_walk(folder))
    if not files:
        raise InputError(f"the folder {folder} holds no {RUN_FILE}, nor do the folders below it", HINT)
    return files


def _walk(top: Path) -> Iterator[Path]:
    for visited, (folder, below, names) in enumerate(os.walk(top), start=1):
        if visited > MOST_FOLDERS:
            raise InputError(f"there are more than {MOST_FOLDERS:,} folders below {top}", "give the folder of the runs")
        if len(Path(folder).relative_to(top).parts) == DEEPEST_FOLDER:
            below.clear()
        if RUN_FILE in names:
            if COMPARISON in names:
                below.clear()
            yield Path(folder, RUN_FILE)


def read_rows(path: Path) -> pd.DataFrame:
    """Read one file as it is; InputError where it is missing, no regular file, damaged or beyond the limits."""
    import pandas as pd
    import pyarrow as pa

    check_input(path, "run table", HINT)
    suffix = path.suffix.lower()
    if suffix in OTHER_ARCHIVES:
        raise InputError(f"the run table {path} is packed as {suffix}, which is not read here", f"unpack it; {HINT}")
    try:
        return _read_parquet(path) if suffix in PARQUET_FORMATS else _read_csv(path)
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty", "give a table with a header and one row per run") from error
    except EOFError as error:
        raise InputError(f"{path} could not be read as a table: it is cut short", "copy it again") from error
    except (OSError, ValueError, OverflowError, zlib.error, pa.ArrowException) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} could not be read as a table: {first_line[:200]}", "check the file") from error


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        content = file.read(LARGEST_UNPACKED_BYTES + 1)
    _require_size(path, len(content))
    header = content.lstrip().split(b"\n", 1)[0]
    _require_shape(path, content.count(b"\n"), header.count(b",") + 1)
    frame = pd.read_csv(BytesIO(content), skipinitialspace=True, low_memory=False)
    # pandas takes surplus cells for an index and shifts every column
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path} has rows with more cells than its header", "give every column a name")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    """Read parquet; text stays in dictionaries until its size is known: a megabyte can stand for gigabytes of rows."""
    from pyarrow import parquet, types

    with parquet.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        nested = [field.name for field in schema if types.is_nested(field.type)]
    if nested:
        raise InputError(f"{path}: the column {nested[0]} holds lists or structures", "give one value per cell")
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"{path}: several columns have one name", "give every column a name of its own")
    _require_shape(path, metadata.num_rows, len(schema))
    _require_size(path, sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups)))
    table = parquet.read_table(path, read_dictionary=list(schema.names), partitioning=None)
    _require_size(path, sum(map(decoded_bytes, table.columns)))
    kept = [name for name in schema.names if not name.startswith(PANDAS_INDEX)]
    frame: pd.DataFrame = table.cast(schema).select(kept).to_pandas(ignore_metadata=True)
    return frame


def _require_size(path: Path, size_bytes: int) -> None:
    if size_bytes > LARGEST_UNPACKED_BYTES:
        raise InputError(
            f"the run table {path} holds more than {LARGEST_UNPACKED_BYTES >> 20} MiB when unpacked",
            "a run table has one row per training run: is it the right file?",
        )


def _require_shape(path: Path, rows: int, columns: int) -> None:
    if rows > MOST_ROWS or columns > MOST_COLUMNS or rows * columns > MOST_CELLS:
        raise InputError(
            f"the run table {path} has {rows:,} rows of {columns:,} columns",
            f"at most {MOST_ROWS:,} rows, {MOST_COLUMNS:,} columns and {MOST_CELLS:,} cells are read",
        )
