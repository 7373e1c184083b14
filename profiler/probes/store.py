"""Where probes are kept: a file of JSON lines, appended and synced one at a time, locked while it is written.

A kill leaves at most a truncated last line; it is cut off before the next record is appended. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from srsplan.models.errors import InputError, SrsplanError
from srsplan.profiler.probes.records import ProbeRecord

BEGINNING = b'{"schema": '
"""Of every record's line: what a kill cut short begins with it, or is a part of it."""


@dataclass(frozen=True)
class Loaded:
    """Records of a file, and how many bytes of it are whole lines."""

    records: tuple[ProbeRecord, ...]
    whole_bytes: int
    truncated: bool


def load(path: Path) -> Loaded:
    """Every record of a file; InputError names the line of one that is damaged elsewhere than at the end."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no profile at {path}", "make one: srsplan profile --gpu a100-40gb") from None
    except OSError as error:
        raise InputError(
            f"cannot read the profile {path}: {error.strerror}", "give a file of srsplan profile"
        ) from error
    whole = content.rfind(b"\n") + 1
    tail = content[whole:]
    if not (tail.startswith(BEGINNING) or BEGINNING.startswith(tail)):
        raise InputError(f"{path} is not a profile: it ends with {tail[:40]!r}", "give a file of srsplan profile")
    lines = content[:whole].splitlines()
    records = tuple(_record(line, number, path) for number, line in enumerate(lines, start=1) if line.strip())
    return Loaded(records, whole, whole < len(content))


def _record(line: bytes, number: int, path: Path) -> ProbeRecord:
    try:
        return ProbeRecord.from_document(json.loads(line))
    except ValueError:
        raise InputError(f"{path}, line {number} is not JSON", "remove the line; the others are whole") from None
    except InputError as error:
        raise InputError(f"{path}, line {number}: {error.message}", error.hint) from None


class Store:
    """A file of records that is being added to, by one process at a time.

    Use as a context manager. InputError where another process has it; SrsplanError where the disk is full: what was
    appended before is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[ProbeRecord] = []
        self.cut_off = False
        self._file: int | None = None

    def __enter__(self) -> Store:
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"cannot open {self.path}: {error.strerror}", "give another file with -o") from error
        try:
            _lock(self._file, self.path)
            loaded = load(self.path)
            self.records, self.cut_off = list(loaded.records), loaded.truncated
            os.ftruncate(self._file, loaded.whole_bytes)
            os.lseek(self._file, 0, os.SEEK_END)
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    def append(self, record: ProbeRecord) -> None:
        """Add one record, on disk when this returns."""
        if self._file is None:
            raise ValueError("the store is not open")
        with _whole_line(self._file, self.path):
            line = record.to_line().encode()
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        self.records.append(record)

    def keys(self) -> set[str]:
        """What is stored already."""
        return {record.key for record in self.records}


@contextmanager
def _whole_line(file: int, path: Path) -> Iterator[None]:
    """Take half a line back."""
    before = os.lseek(file, 0, os.SEEK_CUR)
    try:
        yield
    except OSError as error:
        os.ftruncate(file, before)
        os.lseek(file, before, os.SEEK_SET)
        raise SrsplanError(
            f"cannot append to {path}: {error.strerror}; the records before are whole",
            "make room and start again: it goes on where it stopped",
        ) from error


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nobody else is kept out
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{path} is in use by another srsplan profile", "wait for it, or give another -o") from error
