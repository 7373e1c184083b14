"""Reading and writing the files that verbs exchange: regular files only, within limits, and written as a whole.

    check_input(path, "plan")              before reading: there is a regular file
    read_limited(path, "plan")             its bytes, at most LARGEST_FILE_BYTES
    check_output(path, "plan", ours)       before any work: the file can be written, and nothing of the user's is lost
    write_atomically(path, content)        last of all: the old file or the new one, never a part of either
    locked(path)                           one process at a time

Imports nothing heavy.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from srsplan.models.errors import InputError, SrsplanError

LARGEST_FILE_BYTES = 64 << 20
"""Bytes of the largest file that is read: plans, profiles and states are far smaller."""

LONGEST_NAME_BYTES = 255
"""Bytes of the longest file name that common file systems allow."""
LONGEST_SHOWN = 200
"""Characters of a path that a message repeats."""

TEMPORARY_SUFFIX = ".part"
TEMPORARY_STEM_BYTES = 100
"""Bytes of a file's name that its temporary file carries, which must be a possible name itself."""
STALE_SECONDS = 3600.0
"""Age in seconds from which on a temporary file counts as left by a process that was killed."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def check_input(path: Path, what: str, hint: str) -> None:
    """Raise InputError unless `path` is a regular file or a link to one; `what` names it, `hint` is the way out."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"no {what} at {_shown(path)}", hint) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} {_shown(path)}: {_reason(error)}", hint) from None
    _check_kind(path, mode, what, hint)


def read_limited(path: Path, what: str, hint: str, most_bytes: int = LARGEST_FILE_BYTES) -> bytes:
    """Return the bytes of a regular file; InputError where there is none, or it holds more than `most_bytes`.

    The file is opened without waiting and looked at again, so that a pipe put in its place is refused, not read.
    """
    check_input(path, what, hint)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            _check_kind(path, os.fstat(file.fileno()).st_mode, what, hint)
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read the {what} {_shown(path)}: {_reason(error)}", hint) from error
    if len(content) > most_bytes:
        raise InputError(f"the {what} {_shown(path)} is larger than {most_bytes >> 20} MiB", hint)
    return content


def check_output(path: Path, what: str, ours: Callable[[Path], bool] | None = None, hint: str = "") -> None:
    """Raise InputError unless `path` can be written as a file without destroying anything of the user's.

    An existing file is only accepted where `ours(path)` recognises it as written by srsplan; without `ours` any regular
    file that is not write-protected may be replaced. To be called before long work, so that it is not done in vain.
    """
    way_out = hint or "give another file with -o"
    if not _possible_name(path.name):
        raise InputError(f"the {what} {_shown(path)!r} has no name that a file can have", way_out)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        _check_folder(_target(path).parent, path, what, way_out)
        return
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the {what} {_shown(path)}: {_reason(error)}", way_out) from None
    _check_kind(path, mode, what, way_out)
    if not mode & 0o222:
        raise InputError(f"the {what} {_shown(path)} is write-protected", way_out)
    _check_folder(_target(path).parent, path, what, way_out)
    if ours is not None and not ours(path):
        raise InputError(f"{_shown(path)} exists, and srsplan did not write it as it is: it is not replaced", way_out)


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Replace `path` by `content` (bytes, or a function that writes a file) in one step, on disk when this returns.

    A kill or a full disk leaves the old file whole. A link stays a link: what it points to is replaced. Devices, pipes
    and folders are never replaced. SrsplanError where the disk refuses.
    """
    temporary: Path | None = None
    try:
        target = _target(path)
        permissions = _permissions(target)
        temporary = _temporary_beside(target)
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        temporary.chmod(permissions)
        _sync(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:
        raise SrsplanError(
            f"cannot write {_shown(path)}: {_reason(error)}; what was saved before is whole",
            "make room, then start again",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    _remove_stale(target)


def _target(path: Path) -> Path:
    """Return the path that `path` stands for, links followed to their end, whether or not there is something at it."""
    return Path(os.path.realpath(path))


def _temporary_beside(target: Path) -> Path:
    """Make a new, empty file in the target's folder that carries its name."""
    handle, name = tempfile.mkstemp(suffix=TEMPORARY_SUFFIX, prefix=_temporary_stem(target), dir=target.parent)
    os.close(handle)
    return Path(name)


def _temporary_stem(target: Path) -> str:
    return f".{os.fsdecode(os.fsencode(target.name)[:TEMPORARY_STEM_BYTES])}."


def _remove_stale(target: Path) -> None:
    """Remove what killed processes left of earlier attempts at this file."""
    stem, oldest = _temporary_stem(target), time.time() - STALE_SECONDS
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            ours = entry.name.startswith(stem) and entry.name.endswith(TEMPORARY_SUFFIX)
            if ours and entry.stat(follow_symlinks=False).st_mtime < oldest:
                os.unlink(entry)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put a new name on disk; only possible where folders can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _permissions(target: Path) -> int:
    """Return the mode of the file that is replaced, or that of a new file: a temporary file is private otherwise."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}")
    return stat.S_IMODE(mode)


@contextmanager
def locked(path: Path, what: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, for one process at a time; InputError where another has it. A kill releases it.

    Another process is waited for up to `wait_seconds`. A lock file is empty. One that holds anything is the user's own,
    and is left alone.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait_seconds)
    try:
        if os.path.lexists(path) and (not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size):
            raise OSError(errno.EEXIST, f"{_shown(path)} is there, and is no lock")
        lock.acquire()
    except Timeout:
        raise InputError(f"{what} is in use by another srsplan", "wait for it, or give another -o") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot lock {what}: {_reason(error)}", "give another -o") from error
    try:
        yield
    finally:
        lock.release()


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting: a pipe that nobody writes to would never open otherwise."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _possible_name(name: str) -> bool:
    try:
        return 0 < len(os.fsencode(name)) <= LONGEST_NAME_BYTES
    except UnicodeEncodeError:
        return False


def _check_kind(path: Path, mode: int, what: str, hint: str) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"the {what} {_shown(path)} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}", hint)


def _check_folder(folder: Path, path: Path, what: str, way_out: str) -> None:
    if not folder.is_dir():
        raise InputError(f"cannot write the {what} {_shown(path)}: there is no folder {_shown(folder)}", way_out)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write the {what} {_shown(path)}: the folder {_shown(folder)} is not writable", way_out
        )


def _shown(path: Path) -> str:
    """Return a path as messages repeat it: the end of a very long one says which it is."""
    text = str(path)
    return text if len(text) <= LONGEST_SHOWN else "..." + text[-LONGEST_SHOWN:]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
