"""Parquet, one file or many: a column at a time, so that two columns of ids never lie in memory side by side.

Row groups are read by several threads and stand in the order of the file. Text stays in dictionaries, so that repeated
ids are never written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srsplan.models.data import progress
from srsplan.models.data.blocks import in_threads
from srsplan.models.data.column_names import Columns, choose
from srsplan.models.data.limits import PARQUET_BYTES_PER_INTERACTION, is_text, require_rows, require_unpacked
from srsplan.models.data.parts import Parts, Table, reader_errors, twins
from srsplan.models.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

TASK_ROWS = 1 << 20
"""Small row groups are read together, up to about so many rows."""


@dataclass(frozen=True)
class _File:
    """A parquet file whose footer was read."""

    path: Path
    metadata: Any
    schema: pa.Schema


def read(parts: Parts, columns: Columns) -> Table:
    """Find the columns in the parts, which must have the same; InputError names the part that differs."""
    files = [_opened(path) for path in parts.files]
    for other in files[1:]:
        _require_same(files[0], other)
    schema = files[0].schema
    chosen, notes = choose(schema.names, columns, parts.path)
    nested = [name for name in chosen.values() if _is_nested(schema.field(name).type)]
    if nested:
        raise InputError(f"{parts.path}: the column {nested[0]!r} holds lists or structures", "give one value per row")
    rows = sum(file.metadata.num_rows for file in files)
    require_rows(parts.path, rows, PARQUET_BYTES_PER_INTERACTION)
    require_unpacked(parts.path, sum(_uncompressed_bytes(file.metadata, set(chosen.values())) for file in files))
    many = (f"{parts.name}: {len(files):,} parts",) if parts.files != (parts.path,) else ()
    return Table(
        rows=rows,
        timed="timestamp" in chosen,
        notes=(*many, *parts.notes, *twins(parts), *notes),
        take=lambda role: _column(files, chosen[role], role),
    )


def _opened(path: Path) -> _File:
    from pyarrow import parquet

    with reader_errors(path), parquet.ParquetFile(path) as file:
        return _File(path, file.metadata, file.schema_arrow)


def _require_same(first: _File, other: _File) -> None:
    """Raise InputError where two parts have other columns, or other types of them."""
    ours, theirs = _types(first.schema), _types(other.schema)
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"{other.path}: the column {name!r} is {theirs.get(name, 'absent')}, in {first.path.name} it is "
                f"{ours.get(name, 'absent')}",
                "write the parts with the same columns, of the same types",
            )


def _types(schema: pa.Schema) -> dict[str, str]:
    """Return the types as far as they matter: text is text, in dictionaries or not."""
    from pyarrow import types

    values = {field.name: field.type.value_type if types.is_dictionary(field.type) else field.type for field in schema}
    return {field.name: "text" if is_text(values[field.name]) else str(field.type) for field in schema}


def _is_nested(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_nested(kind))


def _uncompressed_bytes(metadata: Any, names: set[str]) -> int:
    groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
    chunks = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _column(files: list[_File], name: str, role: str) -> pa.ChunkedArray:
    import pyarrow as pa

    tasks = [(file, groups) for file in files for groups in _tasks(file.metadata)]
    chunks = []
    for done, column in enumerate(in_threads(lambda task: _groups(*task, name), tasks), start=1):
        chunks += column.chunks
        progress.tell(f"reading {role}s", done / len(tasks))
    kinds = {chunk.type for chunk in chunks} or {files[0].schema.field(name).type}
    if len(kinds) == 1:
        return pa.chunked_array(chunks, type=kinds.pop())
    text = pa.dictionary(pa.int32(), pa.large_string())  # only the dictionaries of text may differ between parts
    return pa.chunked_array([chunk.cast(text) for chunk in chunks])


def _tasks(metadata: Any) -> Iterator[list[int]]:
    """Yield row groups that are read at once."""
    groups, rows = [], 0
    for at in range(metadata.num_row_groups):
        groups.append(at)
        rows += metadata.row_group(at).num_rows
        if rows >= TASK_ROWS:
            yield groups
            groups, rows = [], 0
    if groups:
        yield groups


def _groups(file: _File, groups: list[int], name: str) -> pa.ChunkedArray:
    from pyarrow import parquet

    text = [name] if is_text(file.schema.field(name).type) else []
    with (
        reader_errors(file.path),
        parquet.ParquetFile(file.path, metadata=file.metadata, read_dictionary=text) as opened,
    ):
        return opened.read_row_groups(groups, columns=[name], use_threads=False)[name]
