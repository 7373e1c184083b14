"""items.parquet: the item id in the user's file of every row of the item table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srsplan.models.errors import InputError
from srsplan.models.files import check_input, write_atomically
from srsplan.models.training.folder import START_ANEW

INDEX, ITEM_ID = "index", "item_id"


def write_items(path: Path, item_ids: NDArray[Any]) -> None:
    """Write the columns index int64, 0 to V - 1, and item_id, as the user's file has it; atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({INDEX: np.arange(len(item_ids)), ITEM_ID: pa.array(item_ids)})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # opened here: pyarrow takes no names that are not UTF-8
            pq.write_table(table, file)

    write_atomically(path, write)


def read_items(path: Path) -> NDArray[Any]:
    """Read the item ids [V], that of row i of the item table at place i; InputError for an absent or damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_input(path, "list of item ids", START_ANEW)
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        index = table[INDEX].to_numpy()
        ids: NDArray[Any] = table[ITEM_ID].to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"cannot read the item ids {path}: {' '.join(str(error).split())[:200]}", START_ANEW) from None
    if not np.array_equal(index, np.arange(len(index))):
        raise InputError(f"the item ids {path} are not in the order of the item table", START_ANEW)
    return ids


def check_items(path: Path, item_ids: NDArray[Any]) -> None:
    """Raise InputError unless the file holds exactly these item ids."""
    if not np.array_equal(read_items(path), item_ids):
        raise InputError(
            f"{path} holds other item ids than the data", "resume with the same --data, or start anew with --overwrite"
        )
