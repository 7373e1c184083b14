"""epochs.jsonl: one line of JSON for each epoch of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from srsplan.models.errors import InputError
from srsplan.models.files import read_limited, write_atomically
from srsplan.models.schema import Count, Seconds

EPOCHS_FILE = "epochs.jsonl"
START_ANEW = "start anew with --overwrite, or put the file back as it was"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The figures of one epoch."""

    epoch: int
    """Epochs count from 1."""
    loss: float
    """The mean loss of the epoch's batches."""
    seconds: float
    """Seconds that the epoch's steps took, evaluation excluded."""
    learning_rate: float
    """The learning rate of the epoch's last step."""
    gradient_norm: float | None = None
    """The mean over the epoch's steps of the gradients' global norm before clipping; None where nothing is clipped."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation metrics such as NDCG_10; empty where the epoch was not evaluated."""

    def to_line(self) -> str:
        """Return one line of JSON, metrics beside the other keys."""
        figures = {"epoch": self.epoch, "loss": self.loss, "seconds": self.seconds, "learning_rate": self.learning_rate}
        norm = {} if self.gradient_norm is None else {"gradient_norm": self.gradient_norm}
        return json.dumps({**figures, **norm, **self.metrics})


class _Line(BaseModel):
    """A line as it is read back: three keys that every line has, and others by name."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, float]

    epoch: Count
    loss: float
    seconds: Seconds


class EpochsLog:
    """The file of one run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EPOCHS_FILE

    def check(self, epochs: int) -> None:
        """Raise InputError unless the file begins with one whole line for each of so many epochs."""
        lines = self._lines()
        for number in range(1, epochs + 1):
            try:
                found = _Line.model_validate_json(lines[number - 1])
            except (IndexError, ValidationError):
                found = None
            if found is None or found.epoch != number:
                raise InputError(f"{self.path}: line {number} is not the record of epoch {number}", START_ANEW)

    def append(self, record: EpochRecord) -> None:
        """Add an epoch. Lines of epochs that the last checkpoint does not know are dropped: they are trained again."""
        lines = self._lines() if self.path.exists() else []
        content = [*lines[: record.epoch - 1], record.to_line().encode(), b""]
        write_atomically(self.path, b"\n".join(content))

    def _lines(self) -> list[bytes]:
        return read_limited(self.path, "log of epochs", START_ANEW).splitlines()
