"""Options for reading a file of interactions: the same for every verb that takes `--data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from srsplan.models.data.formats import Columns
from srsplan.models.data.splits import Strategy


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A file of interactions, its columns, and how it is split."""

    path: Path
    columns: Columns = field(default_factory=Columns)
    """Names of the columns, where they are not the usual ones."""
    strategy: Strategy = "auto"
    """Rule that splits the file into train, validation and test."""
