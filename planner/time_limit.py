"""The second budget: how long an epoch, or a whole training, may take."""

from __future__ import annotations

from dataclasses import dataclass

from srsplan.models.checks import require_positive
from srsplan.models.errors import InputError
from srsplan.models.units import format_duration, parse_seconds

EPOCHS = 50
"""Epochs that a whole training is assumed to take: early stopping ends public runs of SASRec after 20 to 100."""


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """Seconds that an epoch may take, and what was asked for."""

    epoch_seconds: float
    option: str
    """The option that says so, --epoch-time or --total-time."""
    epochs: int
    """Epochs that a whole training is assumed to take."""

    def describe(self) -> str:
        """Return the limit as a sentence."""
        epoch = f"an epoch within {format_duration(self.epoch_seconds)}"
        if self.option == "--epoch-time":
            return f"{epoch} ({self.option})"
        total = format_duration(self.epoch_seconds * self.epochs)
        return f"{total} in all ({self.option}): {epoch} where there are {self.epochs} epochs (--epochs)"

    def asking(self, epoch_seconds: float) -> str:
        """Return the option that allows an epoch of so many seconds."""
        whole = -(-round(1000 * epoch_seconds * (1 if self.option == "--epoch-time" else self.epochs)) // 1000)
        return f"{self.option} {whole}s"


def time_limit(
    epoch_time: float | str | None, total_time: float | str | None, epochs: int = EPOCHS
) -> TimeLimit | None:
    """Return the stricter of the two limits as people write them ("30min", seconds); None where there is none."""
    require_positive(epochs=epochs)
    limits = []
    if epoch_time is not None:
        seconds = parse_seconds(str(epoch_time), "--epoch-time")
        limits.append(TimeLimit(epoch_seconds=seconds, option="--epoch-time", epochs=epochs))
    if total_time is not None:
        seconds = parse_seconds(str(total_time), "--total-time") / epochs
        limits.append(TimeLimit(epoch_seconds=seconds, option="--total-time", epochs=epochs))
    return min(limits, key=lambda limit: limit.epoch_seconds, default=None)


def check_users(limit: TimeLimit | None, users: int | None) -> None:
    """Raise InputError for a limit where nobody says how many sequences an epoch has."""
    if limit is not None and users is None:
        raise InputError(
            f"{limit.option} needs the number of users: an epoch is all of them", "give --users, or the --data"
        )
