"""`srsplan predict` as functions: the best items of a run for the users of a file, on disk or in memory.

prepared = prepare(order)               the run loaded, the file read; nothing is written
rows = write(prepared, listener)        a table of all recommendations, as a whole or not at all
table = tables(prepared, listener)      or the same in memory, part by part
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from srsplan.models.checks import require_positive
from srsplan.models.data.column_names import FOUND_BY_NAME, Columns, find
from srsplan.models.errors import DeviceOutOfMemory, InputError
from srsplan.models.files import read_limited
from srsplan.models.loading import TrainedRun, load_run
from srsplan.models.prediction.histories import Histories, read_histories
from srsplan.models.prediction.recommending import Recommended, recommend
from srsplan.models.prediction.tables import PART_ROWS, Labels, check_target, write_tables
from srsplan.models.training.device import find_device

if TYPE_CHECKING:
    import pyarrow as pa

Listener = Callable[[int, int], None]
"""Called with the users that are done, and with all of them."""


@dataclass(frozen=True, kw_only=True)
class PredictionOrder:
    """What is to be predicted."""

    run: Path
    """Folder of a run."""
    data: Path
    """Interactions, in any format that training reads."""
    columns: Columns = FOUND_BY_NAME
    best: int = 10
    """Items for each user."""
    users: Sequence[str] = ()
    """Users who must be there; all of the file where neither they nor `users_file` are given."""
    users_file: Path | None = None
    """Text with a user id a line; those who are not there are noted."""
    keep_seen: bool = False
    device: str = "auto"
    output: Path | None = None
    """A .parquet or .csv file."""
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedPrediction:
    """A loaded run, and the histories that it is asked about."""

    order: PredictionOrder
    run: TrainedRun
    histories: Histories


def prepare(order: PredictionOrder) -> PreparedPrediction:
    """Load the run and read the histories; InputError for everything that is wrong with them or with the order."""
    require_positive(k=order.best)
    if order.users and order.users_file is not None:
        raise InputError("--user and --users contradict each other", "give the one that is meant")
    if order.output is not None:
        check_target(order.output, order.overwrite)
    asked = None if order.users_file is None else read_users(order.users_file)
    run = load_run(order.run, find_device(order.device).type)
    if order.best > len(run.item_ids):
        raise InputError(
            f"k {order.best} is above the catalog of {len(run.item_ids):,} items", "ask for fewer items a user"
        )
    found = read_histories(order.data, run.item_ids, order.columns)
    if order.users:
        histories = found.of(order.users)
    else:
        histories = found.with_items() if asked is None else found.of_those_there(asked)
    if not len(histories.sequences):
        raise InputError(
            f"none of the users of {order.users_file or order.data} has an item that the model knows",
            f"users of {order.data} are needed",
        )
    return PreparedPrediction(order=order, run=run, histories=histories)


def read_users(path: Path) -> list[str]:
    """Read user ids, one a line; a first line such as `user_id` is a header. InputError where there is none."""
    hint = "give text with one user id a line"
    try:
        text = read_limited(path, "list of users", hint).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"the list of users {path} is not text in UTF-8", hint) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    users = lines[1:] if lines and find("user", lines[:1]) else lines
    if not users:
        raise InputError(f"the list of users {path} is empty", hint)
    return users


def write(prepared: PreparedPrediction, listener: Listener) -> int:
    """Write the recommendations to the order's output, which is named; return the number of rows."""
    assert prepared.order.output is not None
    return write_tables(prepared.order.output, tables(prepared, listener))


def tables(prepared: PreparedPrediction, listener: Listener) -> Iterator[pa.Table]:
    """Yield the recommendations, some hundred thousand rows at a time, users in the order of the histories."""
    run, order, histories = prepared.run, prepared.order, prepared.histories
    labels, users = Labels.of(histories.user_ids, run.item_ids), len(histories.sequences)
    waiting: list[Recommended] = []
    with _out_of_memory_explained():
        for batch in recommend(run.model, histories.sequences, run.wanted(order.best, order.keep_seen)):
            waiting.append(batch)
            listener(batch.rows.stop, users)
            first = waiting[0].rows.start
            if (batch.rows.stop - first) * order.best >= PART_ROWS or batch.rows.stop == users:
                items, scores = (
                    np.concatenate([getattr(each, name) for each in waiting]) for name in ("items", "scores")
                )
                waiting.clear()
                yield labels.table(first, items, scores)


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceOutOfMemory(
            f"the GPU ran out of memory: {str(error).partition('.')[0]}", "end other programs on it, or --device cpu"
        ) from error
