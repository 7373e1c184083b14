"""Reading and writing the files that verbs exchange: regular files only, within limits, and written as a whole.

    check_input(path, "plan")              before reading: there is a regular file
    read_limited(path, "plan")             its bytes, at most LARGEST_FILE_BYTES
    check_output(path, "plan", ours)       before any work: the file can be written, and nothing of the user's is lost
    write_atomically(path, content)        last of all: the old file or the new one, never a part of either
    locked(path)                           one process at a time

Imports nothing heavy.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from srsplan.models.errors import InputError, SrsplanError

LARGEST_FILE_BYTES = 64 << 20
"""Plans, profiles and states are far smaller: what is larger is another file."""

LONGEST_NAME_BYTES = 255
"""What common file systems allow; a temporary name beside it needs some of that."""

TEMPORARY_SUFFIX = ".part"

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def check_input(path: Path, what: str, hint: str) -> None:
    """InputError unless `path` is a regular file, or a link to one. `what` names it ("plan"), `hint` is the way out."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"no {what} at {path}", hint) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} {path}: {_reason(error)}", hint) from None
    if not stat.S_ISREG(mode):
        raise InputError(f"the {what} {path} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}", hint)


def read_limited(path: Path, what: str, hint: str, most_bytes: int = LARGEST_FILE_BYTES) -> bytes:
    """The bytes of a regular file; InputError where there is none, or it holds more than `most_bytes`."""
    check_input(path, what, hint)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {_reason(error)}", hint) from error
    if len(content) > most_bytes:
        raise InputError(f"the {what} {path} is larger than {most_bytes >> 20} MiB", hint)
    return content


def check_output(path: Path, what: str, ours: Callable[[Path], bool] | None = None, hint: str = "") -> None:
    """InputError unless `path` can be written as a file without destroying anything of the user's.

    An existing file is only accepted where `ours(path)` recognises it as written by srsplan; without `ours` any regular
    file may be replaced. To be called before long work, so that it is not done in vain.
    """
    way_out = hint or "give another file with -o"
    if not path.name or len(os.fsencode(path.name)) > LONGEST_NAME_BYTES - 16:
        raise InputError(f"the {what} {str(path)!r} has no name that a file can have", way_out)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        _check_folder(path.parent, path, what, way_out)
        return
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the {what} {path}: {_reason(error)}", way_out) from None
    if not stat.S_ISREG(mode):
        raise InputError(f"the {what} {path} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}", way_out)
    _check_folder(path.resolve().parent, path, what, way_out)
    if ours is not None and not ours(path):
        raise InputError(f"{path} exists, and srsplan did not write it as it is: it is not replaced", way_out)


def _check_folder(folder: Path, path: Path, what: str, way_out: str) -> None:
    if not folder.is_dir():
        raise InputError(f"cannot write the {what} {path}: there is no folder {folder}", way_out)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write the {what} {path}: the folder {folder} is not writable", way_out)


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Replace `path` by `content` (bytes, or a function that writes a file) in one step, on disk when this returns.

    A kill or a full disk leaves the old file whole. A link stays a link: what it points to is replaced. SrsplanError
    where the disk refuses.
    """
    target = path.resolve()
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(suffix=TEMPORARY_SUFFIX, prefix=f".{target.name[:100]}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        _sync(temporary)
        temporary.chmod(_permissions(target))
        os.replace(temporary, target)
    except OSError as error:
        raise SrsplanError(
            f"cannot write {path}: {_reason(error)}; what was saved before is whole", "make room, then start again"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _permissions(target: Path) -> int:
    """Those of the file that is replaced, or what a new file gets: a temporary file is private otherwise."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, for one process at a time; InputError where another has it. A kill releases it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{what} is in use by another srsplan", "wait for it, or give another -o") from None
    except OSError as error:
        raise InputError(f"cannot lock {what}: {_reason(error)}", "give another -o") from error
    try:
        yield
    finally:
        lock.release()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
