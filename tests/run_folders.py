"""Folders of runs that took a second, for what is done with a run afterwards."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import torch

from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.run import Order, finish, fitted, opened, read_data
from srsplan.models.training.settings import Settings

USERS, ITEMS, SEEN, SEQ_LEN = 40, 30, 6, 5


def number(item: int) -> Hashable:
    """The id of item 0, 1, ...: 1000, 1010, ..."""
    return 1000 + 10 * item


def finished_run(home: Path, item_id: Callable[[int], Hashable] = number) -> Path:
    """One epoch on users who walk through all items in order, each from a start of its own; the data are gone."""
    data = home / "walks.csv"
    walked = ((user, item_id((user + step) % ITEMS), step) for user in range(USERS) for step in range(SEEN))
    data.write_text("\n".join(["user_id,item_id,timestamp", *(",".join(map(str, row)) for row in walked)]) + "\n")
    configuration = Configuration(
        loss="cce", catalog=ITEMS, batch_size=16, seq_len=SEQ_LEN, precision="fp32",
        architecture=Architecture(dim=16, blocks=1),
    )  # fmt: skip
    order = Order(
        configuration=configuration, settings=Settings(epochs=1, learning_rate=0.01),
        data=DataOptions(path=data, strategy="leave-one-out"), minimums=Minimums(), folder=home / "run",
        device=torch.device("cpu"),
    )  # fmt: skip
    found = read_data(order)
    with opened(fitted(order, found), found) as prepared:
        finish(prepared, NoCallbacks())
    data.unlink()
    return home / "run"
