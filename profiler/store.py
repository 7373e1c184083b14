"""Where probes are kept: a file of JSON lines, appended and synced one at a time, locked while it is written.

A kill leaves at most a truncated last line; it is cut off before the next record is appended. Of records with the same
key the last counts. Imports no torch.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from srsplan.models.errors import InputError, SrsplanError
from srsplan.profiler.records import SCHEMA, ProbeRecord

BEGINNING = f'{{"schema": {SCHEMA}, "configuration": {{'.encode()
"""Of every record's line: what a kill cut short begins with it, or is a part of it."""


@dataclass(frozen=True)
class Loaded:
    """Records of a file, and how many bytes of it are whole lines."""

    records: tuple[ProbeRecord, ...]
    """The last of each key, in order."""
    whole_bytes: int
    truncated: bool
    ends_open: bool = False
    """The last line is whole but for its newline, as some editors leave it."""


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
    ends_open = _is_json(tail)
    if ends_open:
        whole = len(content)
    elif not _is_beginning(tail):
        raise InputError(f"{path} is not a profile: it ends with {tail[:40]!r}", "give a file of srsplan profile")
    lines = content[:whole].splitlines()
    records = [_record(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]
    return Loaded(tuple(_last_of_each_key(records)), whole, whole < len(content), ends_open)


def _is_beginning(content: bytes) -> bool:
    return content.startswith(BEGINNING) or BEGINNING.startswith(content)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _last_of_each_key(records: Iterable[ProbeRecord]) -> list[ProbeRecord]:
    last: dict[str, ProbeRecord] = {}
    for record in records:
        last.pop(record.key, None)
        last[record.key] = record
    return list(last.values())


def _record(line: bytes, number: int, path: Path) -> ProbeRecord:
    try:
        return ProbeRecord.from_document(json.loads(line))
    except ValueError:
        raise InputError(f"{path}, line {number} is not JSON", "remove the line; the others are whole") from None
    except InputError as error:
        raise InputError(f"{path}, line {number}: {error.message}", error.hint) from None


class Store:
    """A file of records that is being added to, by one process at a time.

    Use as a context manager. InputError where another process has it, or where it is no profile: such a file stays as
    it is. SrsplanError where the disk is full or the file is taken away: what was appended before is whole.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """`fresh` discards the records that a profile holds, damaged ones among them."""
        self.path = path
        self.fresh = fresh
        self.records: list[ProbeRecord] = []
        self.cut_off = False
        self._file: int | None = None

    def __enter__(self) -> Store:
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"cannot open {self.path}: {error.strerror}", "give another file with -o") from error
        try:
            self._begin(self._file)
        except BaseException:
            os.close(self._file)
            raise
        return self

    def _begin(self, file: int) -> None:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InputError(f"{self.path} is not a regular file: no profile can go on in it", "give another -o")
        _lock(file, self.path)
        if self.fresh and _is_beginning(os.read(file, len(BEGINNING))):
            os.ftruncate(file, 0)
        loaded = load(self.path)
        self.records, self.cut_off = list(loaded.records), loaded.truncated
        os.ftruncate(file, loaded.whole_bytes)
        os.lseek(file, 0, os.SEEK_END)
        if loaded.ends_open:
            os.write(file, b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    def append(self, record: ProbeRecord) -> None:
        """Add one record, on disk when this returns; it takes the place of one of the same key."""
        if self._file is None:
            raise ValueError("the store is not open")
        _require_same(self._file, self.path)
        with _whole_line(self._file, self.path):
            line = record.to_line().encode()
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        self.records = _last_of_each_key([*self.records, record])


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


def _require_same(file: int, path: Path) -> None:
    """What goes into a file that is deleted or replaced meanwhile is lost without a word."""
    try:
        same = os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        same = False
    if not same:
        raise SrsplanError(f"{path} was deleted or replaced while probes ran", "start again, and leave it there")


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nobody else is kept out
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{path} is in use by another srsplan profile", "wait for it, or give another -o") from error
