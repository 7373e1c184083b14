"""The files of closed forms that ship: an archive for each model, in it a part for each loss with each sampler.

A part holds a line for each program: its `expressions.program_key`, a blank, JSON. A plan reads the parts that it asks
for; the programs of all losses and samplers would take several times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from srsplan.kernels.losses import SAMPLERS
from srsplan.models.kinds import MODEL_KINDS

FOLDER = Path(__file__).parent / "data"


def read_program(model: str, key: str) -> str | None:
    """Return the JSON of a model's program; None where the archive holds none of that key."""
    return _part(model, _part_of(key)).get(key)


def read_programs(model: str) -> dict[str, str]:
    """Return the JSON of every program of a model, by key."""
    return {key: text for part in _parts(model) for key, text in _part(model, part).items()}


def write_programs(model: str, programs: Mapping[str, str]) -> None:
    """Replace a model's archive; equal programs make equal files."""
    parts: dict[str, list[str]] = {}
    for key in sorted(programs):
        parts.setdefault(_part_of(key), []).append(f"{key} {programs[key]}\n")
    with ZipFile(_path(model), "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for part, lines in sorted(parts.items()):
            information = ZipInfo(part)  # with a date that is always the same
            information.compress_type = ZIP_DEFLATED
            archive.writestr(information, "".join(lines))


def _path(model: str) -> Path:
    return FOLDER / f"{model}.zip"


def _part_of(key: str) -> str:
    """Return the part that a program is in: its loss, or "evaluation", and its sampler."""
    words = key.split("/")
    loss = words[1] if words[0] in MODEL_KINDS else words[0]
    return f"{loss} {next((word for word in words if word in SAMPLERS), 'uniform')}"


@cache
def _parts(model: str) -> frozenset[str]:
    """Return the parts of a model's archive; none where there is no archive."""
    if not _path(model).exists():
        return frozenset()
    with ZipFile(_path(model)) as archive:
        return frozenset(archive.namelist())


@cache
def _part(model: str, part: str) -> dict[str, str]:
    """Return the programs of a part, by key."""
    if part not in _parts(model):
        return {}
    with ZipFile(_path(model)) as archive:
        lines = archive.read(part).decode().splitlines()
    return {key: text for key, _, text in (line.partition(" ") for line in lines)}
