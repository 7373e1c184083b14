"""The file of probes: JSON lines, appended and synced one at a time, locked while it is written.

A kill leaves at most a truncated last line; it is cut off before the next record is appended. Imports no torch.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.files import check_output, locked, read_limited, write_atomically
from srsplan.profiler.probes.records import ProbeRecord

BEGINNING = b'{"schema": '
"""Beginning of every record's line: a line that a kill cut short begins with it, or is a part of it."""

MOST_RECORDS = 4096
"""Measuring so many takes a day; reading them, some seconds."""

WAY_OUT = "give a file of srsplan profile"
FIRST = "make one: srsplan profile --gpu a100-40gb"


@dataclass(frozen=True)
class Loaded:
    """Records of a file, and how many bytes of it are whole lines."""

    records: tuple[ProbeRecord, ...]
    whole_bytes: int
    truncated: bool


def load(path: Path) -> Loaded:
    """Return every record of a file; InputError names the line of one that is damaged elsewhere than at the end."""
    content = read_limited(path, "profile", WAY_OUT if os.path.lexists(path) else FIRST)
    whole = content.rfind(b"\n") + 1
    tail = content[whole:]
    if not (tail.startswith(BEGINNING) or BEGINNING.startswith(tail)):
        raise InputError(f"{path} is not a profile: it ends with {tail[:40]!r}", WAY_OUT)
    if content.count(b"\n") > MOST_RECORDS:
        raise InputError(f"{path} has more than {MOST_RECORDS:,} lines, the most of a profile", WAY_OUT)
    lines = content[:whole].splitlines()
    records = tuple(
        ProbeRecord.from_line(line, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    return Loaded(records, whole, whole < len(content))


class Store:
    """A file of records that is being added to, by one process at a time.

    Use as a context manager. A file that is there already goes on, or is replaced by the first record where `fresh` is
    asked for; in both cases InputError where it is no profile, or another process has it. SrsplanError where the disk
    is full: what was appended before is whole.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self.records: list[ProbeRecord] = []
        self.cut_off = False
        self._fresh, self._cut_at = fresh, -1
        self._held = ExitStack()

    def __enter__(self) -> Store:
        check_output(self.path, "profile")
        with ExitStack() as held:
            target = self.path.resolve()
            held.enter_context(locked(target.with_name(f".{target.name}.lock"), str(self.path)))
            if self.path.exists():
                self._open(load(self.path))
            self._held = held.pop_all()
        return self

    def _open(self, loaded: Loaded) -> None:
        if self._fresh:
            return
        self.records, self.cut_off = list(loaded.records), loaded.truncated
        if loaded.truncated:
            self._cut_at = loaded.whole_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def append(self, record: ProbeRecord) -> None:
        """Add one record, on disk when this returns."""
        if len(self.records) >= MOST_RECORDS:
            raise SrsplanError(f"{self.path} holds {MOST_RECORDS:,} probes, the most of a profile", "give another -o")
        line = record.to_line().encode()
        if self._fresh:
            write_atomically(self.path, line)
            self._fresh = False
        else:
            self._add(line)
        self.records.append(record)

    def _add(self, line: bytes) -> None:
        """Write a line at the end, after cutting off what a kill left of one; all of it or nothing."""
        file = -1
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if self._cut_at >= 0:
                os.ftruncate(file, self._cut_at)
                self._cut_at = -1
            _write_whole(file, line)
        except OSError as error:
            raise SrsplanError(
                f"cannot append to {self.path}: {error.strerror}; the records before are whole",
                "make room and start again: it goes on where it stopped",
            ) from error
        finally:
            if file >= 0:
                os.close(file)

    def keys(self) -> set[str]:
        """Return the keys of what is stored already."""
        return {record.key for record in self.records}


def _write_whole(file: int, line: bytes) -> None:
    """Append a line and sync it, or take back what of it was written."""
    before, left = os.lseek(file, 0, os.SEEK_END), line
    try:
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, before)
        raise
