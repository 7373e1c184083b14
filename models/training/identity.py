"""Identity of a run: a checkpoint goes on only with the options and the data that it began with."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from srsplan.models.config import Configuration
from srsplan.models.data.splits import Split
from srsplan.models.errors import InputError
from srsplan.models.training.settings import Settings

Value = str | int | float | bool | None
Identity = dict[str, Value]

MAY_CHANGE = (
    "clip_norm", "epochs", "final_learning_rate", "learning_rate", "precision", "schedule", "warmup_percent",
    "warmup_steps", "weight_decay",
)  # fmt: skip
"""Options that a resumed run may change: they are the ways out of a loss that diverged, or the length of the run."""

LATER = ("clip_norm", "final_learning_rate", "osf", "schedule", "warmup_percent", "warmup_steps")
"""Settings that a run's identity names only where they are not the default: checkpoints from before them go on."""

MEMORY_ONLY = ("pass_tokens", "pass_sequences", "recompute", "kernel")
"""Parts of a configuration that decide the memory it takes and its speed, not what is computed."""


def identity(configuration: Configuration, settings: Settings, split: Split) -> Identity:
    """Collect by name everything that must be equal for a resumed run to be the same run."""
    values = configuration.to_dict()
    sizes = values.pop("architecture")
    for name in MEMORY_ONLY:
        del values[name]
    names = ["seed", "optimizer", "learning_rate", "weight_decay", "keep_seen"]
    names += ["popularity_exponent"] * (configuration.sampler == "popularity")
    names += ["epochs"] * settings.rates_follow_epochs
    names += [name for name in LATER if getattr(settings, name) != _default(name)]
    chosen = {name: getattr(settings, name) for name in names}
    return {**values, **sizes, **chosen, "data": _checksum(split)}


def _default(name: str) -> Value:
    """Return what a run has where its identity does not name an option: the option's default, None where it has none.

    Checkpoints from before there was an option go on so.
    """
    found: Value = getattr(Settings, name, getattr(Configuration, name, None))
    return found


def changes(before: Identity, now: Identity, folder: Path) -> tuple[str, ...]:
    """Return the allowed differences from the run that was saved, as sentences; InputError for any other."""
    names = sorted({*before, *now} - ({"epochs"} - (before.keys() & now.keys())))  # they count on a curve alone
    before, now = ({name: each.get(name, _default(name)) for name in names} for each in (before, now))
    differing = [name for name in names if before[name] != now[name]]
    if "data" in differing:
        raise InputError(
            f"the run in {folder} was trained on other data, or on another split of them",
            "resume with the same --data, columns and --split, or start anew with --overwrite",
        )
    for name in differing:
        if name not in MAY_CHANGE:
            raise InputError(
                f"the run in {folder} has {name} {before[name]}, not {now[name]}",
                "resume with the same options, or start anew with --overwrite",
            )
    return tuple(_told(name, before[name], now[name]) for name in differing)


def _told(name: str, before: Value, now: Value) -> str:
    """Return the sentence on an option that a resumed run changes."""
    if name == "epochs":
        return (
            f"{now} epochs are planned from here on instead of {before}: the learning rate goes on along their course"
        )
    return f"{name} is {now} from here on, it was {before}"


def _checksum(split: Split) -> str:
    """Return a CRC-32 of the sequences of train and of the test: equal for the same data split the same way."""
    found = 0
    for part in (split.train.offsets, split.train.values, split.validation.targets, split.test.targets):
        found = zlib.crc32(np.ascontiguousarray(part).data, found)
    return f"{found:08x}"
