"""Results as rows, and the file that they go to one at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.files import check_output
from srsplan.profiler.bench.measuring import Measurement

WAY_OUT = "give another file with -o"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement beside the device's limits."""

    measured: Measurement
    times_the_floor: float | None
    """How many times the device's floor forward and backward took; None where it did not run."""

    def row(self) -> dict[str, object]:
        """One flat row, as files and JSON have it."""
        row = asdict(self.measured)
        shape = row.pop("shape")
        sizes = {"shape_name" if key == "name" else key: value for key, value in shape.items()}
        return {**sizes, **row, "loss": self.measured.loss.name, "times_the_floor": self.times_the_floor}


def check_results_file(path: Path) -> None:
    """InputError unless `path` can be made as a new file; an older one is never replaced."""
    check_output(path, "file of results", hint=WAY_OUT)
    if path.exists():
        raise InputError(f"{path} exists already", WAY_OUT)


class ResultsFile:
    """A CSV that grows by a line a result, on disk at once; nothing where no file is wanted.

    A disk that refuses a line ends the file, not the measurements: `failure` says what happened.
    """

    def __init__(self, path: Path | None) -> None:
        self.failure: SrsplanError | None = None
        self._path = path
        self._file: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None
        self._lines = 0

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # what was left in the buffer of a full disk
                self._failed(error)

    def add(self, row: Mapping[str, object]) -> None:
        """Append one line, and wait until it is on disk. The first makes the file."""
        if self._path is None or self.failure is not None:
            return
        try:
            self._write(self._path, row)
        except OSError as error:
            self._failed(error)

    def _write(self, path: Path, row: Mapping[str, object]) -> None:
        if self._file is None or self._writer is None:
            self._file = path.open("x", newline="")
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines += 1

    def _failed(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        self.failure = self.failure or SrsplanError(
            f"cannot write {self._path}: {reason}; the first {self._lines} results are in it",
            "make room, or use --json",
        )
