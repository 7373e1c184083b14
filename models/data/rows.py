"""Interactions on their way from the file to their order: columns that are replaced in place, one copy of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64] | NDArray[np.float64]


@dataclass(kw_only=True)
class Rows:
    """Columns of R rows. Not frozen: whoever replaces a column lets go of the old one, so memory holds it once."""

    users: NDArray[np.int32]
    """User numbers [R], 0 to U - 1."""
    items: NDArray[np.int32]
    """Item numbers [R], 1 to V."""
    times: Times | None
    user_ids: NDArray[Any]
    """Labels [U] of the users."""
    item_ids: NDArray[Any]
    """Labels [V] of the items."""

    def __len__(self) -> int:
        return len(self.users)
