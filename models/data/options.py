"""Options for reading a file of interactions: the same for every verb that takes `--data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from srsplan.models.data.column_names import Columns
from srsplan.models.data.splits import Strategy

DEFAULT_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Minimums:
    """k-core filters of the data: users and items with fewer interactions are left out."""

    user: int = 0
    item: int = 0


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A file of interactions or a folder of parquet parts, its columns, and how it is split."""

    path: Path
    columns: Columns = field(default_factory=Columns)
    """Names of the columns, where they are not the usual ones."""
    strategy: Strategy = "auto"
    """Rule that splits the file into train, validation and test."""
