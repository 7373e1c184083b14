"""Small JSON files about one card in the user's cache: what was found there once is not looked for again.

They lie in $XDG_CACHE_HOME/srsplan (~/.cache without it), one of each kind for a card. Nothing that is wrong with such
a file, or with its place, is a reason to stop.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LARGEST_FILE_BYTES = 1 << 20
"""Bytes that a file may hold: an entry takes some hundred, and there are a few per hidden size and type."""


def card_file(kind: str, card: str) -> Path:
    """Return the file of a kind ("launches") that belongs to a card."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "srsplan" / f"{kind}-{re.sub('[^A-Za-z0-9]+', '-', card)}.json"


def content_of(path: Path) -> bytes:
    """Return the bytes of a small regular file; a pipe would wait for ever, a device never ends.

    FileNotFoundError where there is none; OSError or ValueError for anything else that is not such a file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise ValueError(f"it is larger than {LARGEST_FILE_BYTES >> 20} MiB")
    return content


def replace_file(path: Path, document: Mapping[str, object]) -> None:
    """Write the file atomically; a place that cannot be written is no reason to stop, and only a file is replaced."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
