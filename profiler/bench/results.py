"""Results as rows, and the file that they go to one at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from io import FileIO, StringIO
from pathlib import Path
from typing import Any

from srsplan.kernels.launches.table import Launch
from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.files import check_output
from srsplan.profiler.bench.kernel_times import KernelTime
from srsplan.profiler.bench.measuring import Measurement
from srsplan.profiler.bench.sweep import LaunchTime

WAY_OUT = "give another file with -o"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement beside the device's limits."""

    measured: Measurement
    times_the_floor: float | None
    """The time of forward and backward in floors of the device; None where it did not run."""

    def row(self) -> dict[str, object]:
        """Return one flat row, as files and JSON have it."""
        row = {key: value for key, value in _flat(self.measured).items() if key not in ("shape", "logits", "loss")}
        return {**_origin(self.measured), **row, "times_the_floor": self.times_the_floor}


Found = Result | KernelTime | LaunchTime
"""What a bout finds: a contestant's figures, and on demand those of its kernels and of their launches."""

KINDS = {Result: "contestant", KernelTime: "kernel", LaunchTime: "launch"}
"""The kinds of rows, as a file has them."""


def row_of(found: Found) -> dict[str, object]:
    """Return one flat row of a finding, as JSON has it."""
    if isinstance(found, Result):
        return found.row()
    row = {key: value for key, value in _flat(found).items() if key not in ("of", "launch")}
    if isinstance(found, LaunchTime):
        row |= {} if found.launch is None else asdict(found.launch)
    return {**_origin(found.of), **row}


def line_of(found: Found) -> dict[str, object]:
    """Return the same as a line of a file: every column, empty where it is another kind's."""
    return {"row": KINDS[type(found)], **dict.fromkeys(COLUMNS), **row_of(found)}


def document_of(found: Sequence[Found]) -> dict[str, list[dict[str, object]]]:
    """Return all findings as JSON has them, each kind in a list of its own."""
    names = {"results": Result, "kernels": KernelTime, "launches": LaunchTime}
    return {name: [row_of(each) for each in found if isinstance(each, kind)] for name, kind in names.items()}


def _flat(found: Any) -> dict[str, object]:
    return {field.name: getattr(found, field.name) for field in fields(found)}


def _origin(found: Measurement) -> dict[str, object]:
    """Return what every kind of row says of its contestant."""
    shape = found.shape
    return {
        "shape_name": shape.name, "tokens": shape.tokens, "catalog": shape.catalog, "negatives": shape.negatives,
        "dim": shape.dim, "logits": found.logits.kind, "deviation": found.logits.deviation,
        "contestant": found.contestant, "loss": found.loss.name, "tokens_per_set": found.tokens_per_set,
    }  # fmt: skip


def _columns() -> list[str]:
    """Return the columns of a file, whatever rows it has: those of a contestant, then those that others add."""
    origin = ("shape_name", "tokens", "catalog", "negatives", "dim", "logits", "deviation", "contestant", "loss")
    nested = ("shape", "of", "launch")
    own = [field.name for kind in (Measurement, KernelTime, LaunchTime, Launch) for field in fields(kind)]
    kept = [name for name in own if name not in nested]
    return list(dict.fromkeys((*origin, *kept, "times_the_floor")))


COLUMNS = _columns()


def check_results_file(path: Path) -> None:
    """Raise InputError unless `path` can be made as a new file; an older one is never replaced."""
    check_output(path, "file of results", hint=WAY_OUT)
    if path.exists():
        raise InputError(f"{path} exists already", WAY_OUT)


class ResultsFile:
    """A CSV that grows by a line a result, on disk at once; nothing where no file is wanted.

    A disk that refuses a line ends the file after the last whole one, not the measurements: `failure` says why.
    """

    def __init__(self, path: Path | None) -> None:
        self.failure: SrsplanError | None = None
        self._path = path
        self._file: FileIO | None = None
        self._whole_lines = self._whole_bytes = 0

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Mapping[str, object]) -> None:
        """Append one line, and wait until it is on disk. The first makes the file."""
        if self._path is None or self.failure is not None:
            return
        try:
            if self._file is None:
                self._file = FileIO(self._path, "x")
            self._append(self._file, _csv_lines(row, header=not self._whole_lines))
        except OSError as error:
            self._end(self._path, error)

    def _append(self, file: FileIO, content: bytes) -> None:
        rest = content
        while rest:  # a full disk may take a part
            rest = rest[file.write(rest) or 0 :]
        os.fsync(file.fileno())
        self._whole_lines += 1
        self._whole_bytes += len(content)

    def _end(self, path: Path, error: OSError) -> None:
        """Leave whole lines only."""
        if self._file is not None:
            with suppress(OSError):
                self._file.truncate(self._whole_bytes)
        self.failure = SrsplanError(
            f"cannot write {path}: {error.strerror or error}; the first {self._whole_lines} results are in it",
            "make room, and give another file with -o",
        )


def _csv_lines(row: Mapping[str, object], header: bool) -> bytes:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(row))
    if header:
        writer.writeheader()
    writer.writerow(row)
    return text.getvalue().encode()
