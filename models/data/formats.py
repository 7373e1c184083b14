"""Tables of interactions: formats, delimiters and column names. Readers return the columns as pyarrow has them.

    .csv .tsv       header, columns found by name; the delimiter of a .csv is read off its header
    .parquet .pq    the same columns; a folder of such files is read as one, part after part in the order of their names
    .inter          RecBole: tab separated, headers such as `user_id:token`
    .txt            `user item`, separated by blanks, no header: the order of a user's lines is the order of time

All text formats may be gzipped.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srsplan.models.data import parquet_parts
from srsplan.models.data.column_names import FOUND_BY_NAME, Columns, choose, find
from srsplan.models.data.limits import LONGEST_HEADER, require_text
from srsplan.models.data.parts import PARQUET_FORMATS, Parts, Table, format_of
from srsplan.models.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FOUND_BY_NAME", "Columns", "read_table"]

DELIMITERS = ",\t;|"
MISSING = ("", "NaN", "nan", "null", "NULL")


def read_table(parts: Parts, columns: Columns) -> Table:
    """Find the columns user, item and, where there is one, timestamp; they come in the order of the file."""
    path = parts.files[0]
    kind = format_of(path)
    if kind in PARQUET_FORMATS:
        return parquet_parts.read(parts, columns)
    header = _first_line(path)  # first: a file without a line end is no table, however long it is
    require_text(path)
    if kind == ".txt":
        return _whole(*_read_blank_separated(path, columns, header.split()))
    delimiter = max(DELIMITERS, key=header.count) if kind == ".csv" else "\t"
    return _whole(*_read_delimited(path, columns, delimiter, next(csv.reader([header], delimiter=delimiter), [])))


def _whole(table: pa.Table, notes: tuple[str, ...]) -> Table:
    """Return a table that is in memory; a column that was taken is not held any longer."""
    columns = {name: table[name] for name in table.column_names}
    return Table(rows=table.num_rows, timed="timestamp" in columns, notes=notes, take=columns.pop)


def _first_line(path: Path) -> str:
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as lines:
        while line := lines.readline(LONGEST_HEADER):
            if len(line) == LONGEST_HEADER:
                raise InputError(f"{path}: the first line is longer than a million letters", "is it a table?")
            if line.strip():
                return line.rstrip("\r\n")
    return ""


def _read_delimited(
    path: Path, columns: Columns, delimiter: str, header: Sequence[str]
) -> tuple[pa.Table, tuple[str, ...]]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    chosen, notes = choose(header, columns, path)

    def read(types: dict[str, Any]) -> pa.Table:
        return arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(chosen.values()),
                column_types=types,
                null_values=MISSING,
                strings_can_be_null=True,
            ),
        )

    try:
        table = read({})
    except pa.ArrowInvalid:
        # types are guessed from the first block: ids that turn out to be text only later need a second look
        table = read(dict.fromkeys(chosen.values(), pa.string()))
    return _renamed(table, chosen), notes


def _read_blank_separated(path: Path, columns: Columns, first: list[str]) -> tuple[pa.Table, tuple[str, ...]]:
    import pandas as pd
    import pyarrow as pa

    if find("user", first) and find("item", first):
        chosen, notes = choose(first, columns, path)
        names = first
    elif len(first) == 2:
        names = ["user", "item"]
        chosen, notes = choose(names, FOUND_BY_NAME, path)
        notes = (f"{path.name}: first field the user, second the item, lines in the order of time", *notes[1:])
    else:
        raise InputError(
            f"{path}: {len(first)} fields in the first line, where .txt holds `user item` pairs",
            "write other tables as .tsv or .csv, with a header",
        )
    frame = pd.read_csv(
        path,
        sep=r"\s+",
        names=names,
        skiprows=1 if names is first else 0,
        low_memory=False,  # in pieces, one column could become numbers here and text there
        keep_default_na=False,
        na_values=MISSING,
    )
    return _renamed(pa.Table.from_pandas(frame, preserve_index=False), chosen), notes


def _renamed(table: pa.Table, chosen: Mapping[str, str]) -> pa.Table:
    return table.select(list(chosen.values())).rename_columns(list(chosen))
