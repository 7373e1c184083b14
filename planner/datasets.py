"""Interactions as the planner sees them: how many items and users, and how long their sequences are."""

from __future__ import annotations

import numpy as np

from srsplan.models.data.options import DataOptions
from srsplan.models.data.reading import read_split
from srsplan.planner.workload import FromData


def workload_of(options: DataOptions, *, masked: bool = False) -> tuple[int, FromData, tuple[str, ...]]:
    """Return the catalog, the workload of the training part, and what was done to the data, in sentences.

    A `masked` model is trained on all items of a sequence.
    """
    found = read_split(options)
    parts = found.split
    histories = np.concatenate([parts.validation.histories.lengths, parts.test.histories.lengths])
    workload = FromData(options.path, parts.train.lengths, histories, masked=masked)
    return parts.catalog, workload, found.notes
