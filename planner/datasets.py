"""Interactions as the planner sees them: how many items and users, and how long their sequences are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srsplan.models.interaction_files import Columns
from srsplan.models.interactions import read_interactions
from srsplan.models.splits import Strategy, split
from srsplan.planner.workload import FromData


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which file, and how it is read and split: the same for recommend and train."""

    path: Path
    columns: Columns = field(default_factory=Columns)
    strategy: Strategy = "auto"


def workload_of(options: DataOptions) -> tuple[int, FromData, tuple[str, ...]]:
    """Catalog, workload of the training part, and what was done to the data, in sentences."""
    interactions = read_interactions(options.path, columns=options.columns)
    parts = split(interactions, options.strategy)
    histories = np.concatenate([parts.validation.histories.lengths, parts.test.histories.lengths])
    workload = FromData(options.path, parts.train.lengths, histories)
    return interactions.catalog, workload, (*interactions.notes, *parts.notes)
