"""Tables of interactions: formats, delimiters and column names. Readers return pyarrow tables of two or three columns.

    .csv .tsv       header, columns found by name; the delimiter of a .csv is read off its header
    .parquet .pq    the same columns
    .inter          RecBole: tab separated, headers such as `user_id:token`
    .txt            `user item`, separated by blanks, no header: the order of a user's lines is the order of time

All text formats may be gzipped.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from srsplan.models.data.limits import LONGEST_HEADER, is_text, require_rows, require_text, require_unpacked
from srsplan.models.errors import InputError
from srsplan.models.files import check_input

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_FORMATS = (".csv", ".tsv", ".inter", ".txt")
PARQUET_FORMATS = (".parquet", ".pq")
DELIMITERS = ",\t;|"
MISSING = ("", "NaN", "nan", "null", "NULL")

# compared without case, blanks, dashes and underscores: userId, USER_ID and "user id" are one name
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "user": (
            *("userid", "user", "uid", "useridx", "visitorid", "visitor", "customerid", "customer", "reviewerid"),
            *("accountid", "memberid", "clientid", "sessionid", "session"),
        ),
        "item": (
            *("itemid", "item", "iid", "itemidx", "movieid", "trackid", "songid", "productid", "product", "articleid"),
            *("videoid", "bookid", "gameid", "newsid", "businessid", "locationid", "parentasin", "asin", "sku"),
        ),
        "timestamp": (
            *("timestamp", "time", "ts", "datetime", "date", "eventtime", "eventtimestamp", "createdat"),
            *("unixtime", "unixreviewtime", "tdat"),
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns; None = found by name, among the usual ones."""

    user: str | None = None
    """Column of the user ids."""
    item: str | None = None
    """Column of the item ids."""
    timestamp: str | None = None
    """Column of the times: numbers, dates, or ISO 8601 text."""


FOUND_BY_NAME = Columns()


def require_file(path: Path) -> None:
    """Raise InputError unless there is a file of a known format with something in it."""
    check_input(path, "file of interactions", "give one file; join the parts first where there are several")
    if _format(path) not in TEXT_FORMATS + PARQUET_FORMATS:
        accepted = ", ".join((*TEXT_FORMATS, *PARQUET_FORMATS))
        raise InputError(f"{path}: unknown extension {path.suffix!r}", f"accepted: {accepted}, and .gz after text")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty", "is it the right file?")


def _format(path: Path) -> str:
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
        raise InputError(f"cannot read {path}: {text}", f"is it a complete {_format(path)} file?") from error


def read_table(path: Path, columns: Columns) -> tuple[pa.Table, tuple[str, ...]]:
    """Read the columns user, item and, where there is one, timestamp, in the file's order; and say which these were."""
    kind = _format(path)
    if kind in PARQUET_FORMATS:
        return _read_parquet(path, columns)
    header = _first_line(path)  # first: a file without a line end is no table, however long it is
    require_text(path)
    if kind == ".txt":
        return _read_blank_separated(path, columns, header.split())
    delimiter = max(DELIMITERS, key=header.count) if kind == ".csv" else "\t"
    return _read_delimited(path, columns, delimiter, next(csv.reader([header], delimiter=delimiter), []))


def _first_line(path: Path) -> str:
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as lines:
        while line := lines.readline(LONGEST_HEADER):
            if len(line) == LONGEST_HEADER:
                raise InputError(f"{path}: the first line is longer than a million letters", "is it a table?")
            if line.strip():
                return line.rstrip("\r\n")
    return ""


def _read_parquet(path: Path, columns: Columns) -> tuple[pa.Table, tuple[str, ...]]:
    """Read parquet; text stays in dictionaries, so that repeated ids are never written out."""
    from pyarrow import parquet, types

    with parquet.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        chosen, notes = _choose(schema.names, columns, path)
        fields = [schema.field(name) for name in chosen.values()]
    nested = [field.name for field in fields if types.is_nested(field.type)]
    if nested:
        raise InputError(f"{path}: the column {nested[0]!r} holds lists or structures", "give one value per row")
    require_rows(path, metadata.num_rows)
    require_unpacked(path, _uncompressed_bytes(metadata, set(chosen.values())))
    text = [field.name for field in fields if is_text(field.type)]
    with parquet.ParquetFile(path, read_dictionary=text) as file:
        return _renamed(file.read(list(chosen.values())), chosen), notes


def _uncompressed_bytes(metadata: Any, names: set[str]) -> int:
    groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
    chunks = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _read_delimited(
    path: Path, columns: Columns, delimiter: str, header: Sequence[str]
) -> tuple[pa.Table, tuple[str, ...]]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    chosen, notes = _choose(header, columns, path)

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

    if _find("user", first) and _find("item", first):
        chosen, notes = _choose(first, columns, path)
        names = first
    elif len(first) == 2:
        names = ["user", "item"]
        chosen, notes = _choose(names, FOUND_BY_NAME, path)
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


def _bare(name: str) -> str:
    """Return a column name as it is compared: without RecBole's `:token`, case and separators."""
    return "".join(letter for letter in name.split(":")[0].lower() if letter.isalnum())


def _find(role: str, names: Sequence[str]) -> str | None:
    by_bare_name = {_bare(name): name for name in reversed(names)}
    return next((by_bare_name[alias] for alias in ALIASES[role] if alias in by_bare_name), None)


def _choose(names: Sequence[str], columns: Columns, path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map the roles user, item and, where there is one, timestamp to columns; and return the sentence that says so."""
    asked = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    found = {role: _find(role, names) if name is None else _named(name, names, path) for role, name in asked.items()}
    chosen = {role: name for role, name in found.items() if name is not None}
    listed = ", ".join(names[:30])
    for role in ("user", "item"):
        if role not in chosen:
            raise InputError(
                f"{path}: no column looks like the {role} (columns are {listed})",
                f"name it with --{role}-column; the first line must be a header",
            )
    taken = list(chosen.values())
    doubled = [name for name in taken if taken.count(name) + list(names).count(name) > 2]
    if doubled:
        raise InputError(f"{path}: column {doubled[0]!r} would be used twice (columns are {listed})", "rename one")
    notes = [f"{path.name}: " + ", ".join(f"{role} column {name!r}" for role, name in chosen.items())]
    if "timestamp" not in chosen:
        notes.append("no timestamp column: the order of a user's rows in the file is taken as the order of time")
    return chosen, tuple(notes)


def _named(name: str, names: Sequence[str], path: Path) -> str:
    """Return the column a user asked for; `user_id` also finds RecBole's `user_id:token`."""
    for candidate in (name, *(full for full in names if full.split(":")[0] == name)):
        if candidate in names:
            return candidate
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "give one of them"
    raise InputError(f"{path}: no column {name!r} (columns are {', '.join(names[:30])})", hint)
