"""Where an export may go: a new file, or one that an export wrote before."""

from __future__ import annotations

from pathlib import Path

from srsplan.models.errors import InputError
from srsplan.models.files import check_output

SEARCHED_BYTES = 1 << 16


def check_target(path: Path, option: str, suffix: str, mark: bytes, overwrite: bool) -> None:
    """Raise InputError unless an export can go there; to be called before any work.

    A file that exists is replaced where `overwrite` says so, and where its first or last 64 KiB hold the `mark` that
    exports have there. `option` is what messages call it.
    """
    if path.suffix.lower() != suffix:
        raise InputError(
            f"{option} {path}: unknown extension {path.suffix!r}", f"name it {path.stem or 'model'}{suffix}"
        )
    check_output(path, "exported model", (lambda each: _has(each, mark)) if overwrite else None, "give another file")
    if path.exists() and not overwrite:
        raise InputError(f"{option}: {path} exists", "--overwrite replaces it, or give another file")


def _has(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        first = file.read(SEARCHED_BYTES)
        file.seek(max(0, path.stat().st_size - SEARCHED_BYTES))
        return mark in first or mark in file.read()
