"""A trained run, loaded for use: `srsplan.models.load_run(folder)`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from srsplan.models.checks import require_positive
from srsplan.models.config import Configuration
from srsplan.models.data.splits import Sequences
from srsplan.models.errors import InputError
from srsplan.models.prediction.histories import example
from srsplan.models.prediction.recommending import Wanted, recommend
from srsplan.models.registry import build_model
from srsplan.models.schema import shown
from srsplan.models.sequence_model import SequenceModel
from srsplan.models.training.checkpoint import best_path, check_tensors, forms, read_state, read_tensors
from srsplan.models.training.folder import BEST, CONFIG, ITEMS, RunFolder, read_document
from srsplan.models.training.items import read_items
from srsplan.models.training.run import RunConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRun:
    """The model of a run with the weights of its best epoch, and the item ids that its rows stand for.

    >>> run = srsplan.models.load_run("runs/ml-100k-cce")
    >>> run.rank([[50, 181, 174], [12]], k=3)  # two users, three item ids for each
    """

    folder: Path
    configuration: Configuration
    """Loss, sizes and batch of the training."""
    model: SequenceModel
    """Model for evaluation, in fp32: packed items [M] to hidden states [M, D]; `item_table` [V, D]."""
    item_ids: NDArray[Any]
    """Ids [V] in the training file: that of row i of the item table at place i."""

    def rank(self, histories: Sequence[Sequence[Hashable]], k: int = 10, *, keep_seen: bool = False) -> list[list[Any]]:
        """Return the k items that the model recommends to each user, best first, as ids of the training file.

        A history holds item ids, the oldest first; the model sees the last `configuration.seq_len` of them. What is in
        the history is not recommended again, unless `keep_seen`: where fewer than k items are left, the list is
        shorter. InputError for an empty history and for an id that was not in the training file.
        """
        require_positive(k=k)
        if not len(histories):
            return []
        found = [self._indices(number, history) for number, history in enumerate(histories)]
        users = Sequences(np.cumsum([0, *map(len, found)]), np.concatenate(found))
        batches = recommend(self.model, users, self.wanted(min(k, len(self.item_ids)), keep_seen))
        return [self.item_ids[row[row >= 0]].tolist() for batch in batches for row in batch.items]

    def wanted(self, best: int, keep_seen: bool) -> Wanted:
        """Return the order for `best` items of each user, by a model of this run's configuration."""
        mask = None if self.configuration.mask_share is None else self.configuration.catalog
        return Wanted(best=best, seq_len=self.configuration.seq_len, keep_seen=keep_seen, mask=mask)

    @cached_property
    def _places(self) -> dict[Hashable, int]:
        """Item ids to item numbers, 1 to V."""
        return {item: number for number, item in enumerate(self.item_ids.tolist(), start=1)}

    def _indices(self, number: int, history: Sequence[Hashable]) -> NDArray[np.int32]:
        if not len(history):
            raise InputError(f"history {number} is empty", "give at least one item a user")
        try:
            return np.array([self._places[item] for item in history], dtype=np.int32)
        except KeyError as error:
            raise InputError(
                f"history {number} holds the item {shown(error.args[0])}, which was not in the training data",
                f"ids are those of the training file, such as {example(self.item_ids)}; leave others out",
            ) from None


def load_run(folder: str | Path, device: str = "cpu") -> TrainedRun:
    """Load what `srsplan train` left in a folder: model, configuration and item ids. The folder is all it takes.

    The model has the weights of the best epoch so far, so that a run that still trains can be loaded too. `device` is
    torch's name of where the model goes. InputError where the folder is no run, or its files are damaged.

    `best.safetensors` alone goes into a model of the same sizes with `model.load_state_dict(load_file(path))`.
    """
    folder = Path(folder)
    if not RunFolder(folder).is_run():
        raise InputError(f"{folder} is not the folder of a run", "give the folder that srsplan train wrote")
    configuration = read_document(folder / CONFIG, RunConfig, "configuration").configuration
    item_ids = read_items(folder / ITEMS)
    if len(item_ids) != configuration.catalog:
        raise InputError(
            f"{folder / ITEMS} holds {len(item_ids):,} items, the model has {configuration.catalog:,}",
            "use the folder as srsplan train left it",
        )
    model = _load_model(folder, configuration).to(device)
    return TrainedRun(folder=folder, configuration=configuration, model=model, item_ids=item_ids)


def _load_model(folder: Path, configuration: Configuration) -> SequenceModel:
    """Return the model with the best weights so far, in evaluation mode and without gradients."""
    state, path = read_state(folder), folder / BEST
    if state is None or state.best is None:
        raise InputError(f"no epoch of the run in {folder} was evaluated yet", "go on with srsplan train --resume")
    path = best_path(folder, state.best)
    check_tensors(path, state.best.crc32)
    with torch.device("meta"):  # weights are not drawn, nor held twice
        model = build_model(configuration)
    model.load_state_dict(read_tensors(path, forms(model.state_dict())), assign=True)
    return model.eval().requires_grad_(False)
