"""Identity of a run: a checkpoint goes on only with the options and the data that it began with."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from srsplan.models.config import Configuration
from srsplan.models.data.splits import Split
from srsplan.models.errors import InputError
from srsplan.models.kinds import DEFAULT_MODEL
from srsplan.models.training.settings import Settings

Value = str | int | float | bool | None
Identity = dict[str, Value]

MAY_CHANGE = ("learning_rate", "precision", "weight_decay")
"""Options that a resumed run may change: they are the ways out of a loss that diverged."""

MEMORY_ONLY = ("pass_tokens", "pass_sequences", "recompute", "kernel")
"""Parts of a configuration that decide the memory it takes and its speed, not what is computed."""

DEFAULTS: Identity = {"model": DEFAULT_MODEL}
"""What a run was that was saved before there was a choice."""


def identity(configuration: Configuration, settings: Settings, split: Split) -> Identity:
    """Collect by name everything that must be equal for a resumed run to be the same run."""
    values = configuration.to_dict()
    sizes = values.pop("architecture")
    for name in MEMORY_ONLY:
        del values[name]
    names = ["seed", "optimizer", "learning_rate", "weight_decay", "keep_seen"]
    names += ["popularity_exponent"] * (configuration.sampler == "popularity")
    chosen = {name: getattr(settings, name) for name in names}
    return {**values, **sizes, **chosen, "data": _checksum(split)}


def changes(before: Identity, now: Identity, folder: Path) -> tuple[str, ...]:
    """Return the allowed differences from the run that was saved, as sentences; InputError for any other."""
    before = {**DEFAULTS, **before}
    differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if "data" in differing:
        raise InputError(
            f"the run in {folder} was trained on other data, or on another split of them",
            "resume with the same --data, columns and --split, or start anew with --overwrite",
        )
    for name in differing:
        if name not in MAY_CHANGE:
            raise InputError(
                f"the run in {folder} has {name} {before.get(name)}, not {now.get(name)}",
                "resume with the same options, or start anew with --overwrite",
            )
    return tuple(f"{name} is {now[name]} from here on, it was {before.get(name)}" for name in differing)


def _checksum(split: Split) -> str:
    """Return a CRC-32 of the sequences of train and of the test: equal for the same data split the same way."""
    found = 0
    for part in (split.train.offsets, split.train.values, split.validation.targets, split.test.targets):
        found = zlib.crc32(np.ascontiguousarray(part).data, found)
    return f"{found:08x}"
