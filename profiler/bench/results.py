"""Results as rows, and the file that they go to one at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO, StringIO
from pathlib import Path

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.files import check_output
from srsplan.profiler.bench.measuring import Measurement

WAY_OUT = "give another file with -o"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement beside the device's limits."""

    measured: Measurement
    times_the_floor: float | None
    """The time of forward and backward in floors of the device; None where it did not run."""

    def row(self) -> dict[str, object]:
        """Return one flat row, as files and JSON have it."""
        row = asdict(self.measured)
        shape = row.pop("shape")
        sizes = {"shape_name" if key == "name" else key: value for key, value in shape.items()}
        return {**sizes, **row, "loss": self.measured.loss.name, "times_the_floor": self.times_the_floor}


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
