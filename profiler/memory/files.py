"""The files of closed forms that ship: one for each model, a line for each program."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "data"


def programs_path(model: str) -> Path:
    """Return the file of a model's programs."""
    return FOLDER / f"{model}.gz"


@cache
def read_programs(model: str) -> dict[str, str]:
    """Return a document of JSON for every program of a model, by `expressions.program_key`; none where no file is.

    A document is parsed where its program is asked for.
    """
    path = programs_path(model)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines() if path.exists() else []
    return {key: text for key, _, text in (line.partition(" ") for line in lines)}
