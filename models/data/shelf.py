"""The shelf of prepared interactions: where their folders stand, who may write there, and which go again.

    CACHE/prepared/INPUT/OPTIONS/      one prepared folder; INPUT and OPTIONS are hashes of the path and of the options
    CACHE/prepared/INPUT/.lock         held by who prepares; empty

CACHE is $SRSPLAN_CACHE, or $XDG_CACHE_HOME/srsplan, or ~/.cache/srsplan. What is kept has bounds: folders of an input
that has changed go when it is prepared anew, so do all but the MOST_FOLDERS last used ones of an input, and those of
any input that nobody used for UNUSED_DAYS. Only files that srsplan wrote go; a folder with anything else in it stays.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from srsplan.models.data import prepared
from srsplan.models.data.prepared import Key, SplitData, Unusable
from srsplan.models.files import locked

VARIABLE, OFF = "SRSPLAN_CACHE", "off"
LOCK = ".lock"
WAIT_SECONDS = 900.0
"""Longest wait for another command that prepares the same input."""
MOST_FOLDERS = 3
UNUSED_DAYS = 60
SPARE_BYTES = 1 << 30
"""So much of the disk is left to others."""
HASH = re.compile(r"[0-9a-f]{16}")
TEMPORARY_SUFFIX = ".part"


def cache_folder() -> Path | None:
    """Return the folder for what can be made anew; None where the user wants none."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == OFF:
        return None
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path(os.path.expanduser("~")) / ".cache") / "srsplan"


class Shelf:
    """The prepared folders of one input."""

    def __init__(self, cache: Path, path: Path, key: Key) -> None:
        """Take the input's `path` and the `key` of what is wanted from it; nothing is made yet."""
        self.key, self.home = key, cache / "prepared"
        self.folder = self.home / _hash(os.fsencode(os.path.realpath(path)))
        self.entry = self.folder / _hash(key.wanted.model_dump_json().encode())

    def find(self) -> SplitData | None:
        """Return what is prepared; None where nothing is. Unusable, with the reason, where it cannot be used."""
        if not os.path.lexists(self.entry):
            return None
        found = prepared.read(self.entry, self.key)
        with suppress(OSError):
            os.utime(self.entry / prepared.MANIFEST)  # the last use
        return found

    @contextmanager
    def held(self, wait_seconds: float) -> Iterator[None]:
        """Hold the shelf, for one process at a time; InputError or OSError where that cannot be."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.folder / LOCK, "the prepared data", wait_seconds):
            yield

    def keep(self, data: SplitData) -> SplitData:
        """Put data on the shelf, which is held, and return them as they lie there; OSError where they cannot.

        What was there goes before: two of them might not fit. A folder appears whole or not at all.
        """
        self._clear()
        arrays = prepared.arrays_of(data)
        self._require_space(arrays)
        temporary = Path(tempfile.mkdtemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=self.folder))
        try:
            prepared.write(temporary, data, arrays, self.key)
            os.rename(temporary, self.entry)
        finally:
            remove(temporary)
        return prepared.read(self.entry, self.key, check=False)

    def _clear(self) -> None:
        """Remove what is replaced, outdated, too much, unused for long, or was left by a process that was killed."""
        remove(self.entry)
        for left in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            remove(left)
        fresh = [entry for entry in _entries(self.folder) if _sources(entry) == self.key.sources]
        fresh = sorted(fresh, key=_last_use)[-MOST_FOLDERS + 1 :]
        for entry in _entries(self.folder):
            if entry not in fresh:
                remove(entry)
        oldest = time.time() - UNUSED_DAYS * 86_400
        for folder in _entries(self.home):
            for entry in _entries(folder):
                if folder != self.folder and _last_use(entry) < oldest:
                    remove(entry)

    def _require_space(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        needed = sum(array.nbytes for array in arrays.values()) + SPARE_BYTES
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove(folder: Path) -> None:
    """Delete a prepared folder; anything in it that srsplan did not write stays, and the folder with it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with suppress(OSError):
        for name in prepared.FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _entries(folder: Path) -> list[Path]:
    """Return the folders in it whose names are hashes."""
    with suppress(OSError):
        return [entry for entry in folder.iterdir() if HASH.fullmatch(entry.name)]
    return []


def _sources(entry: Path) -> tuple[prepared.Source, ...] | None:
    try:
        return prepared.manifest_of(entry).key.sources
    except Unusable:
        return None


def _last_use(entry: Path) -> float:
    """Return when a folder was last used, in seconds of the epoch; now where that is not known."""
    try:
        return (entry / prepared.MANIFEST).stat().st_mtime
    except OSError:
        return time.time()
