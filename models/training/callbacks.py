"""Callbacks: the listeners that the training loop tells how it goes."""

from __future__ import annotations

from typing import Protocol

from srsplan.models.training.epochs_log import EpochRecord


class Callbacks(Protocol):
    """The training loop calls these methods. An exception raised in one of them ends the training."""

    def on_epoch_start(self, epoch: int, batches: int) -> None:
        """Called before the first step of an epoch; epochs count from 1."""
        ...

    def on_batch_end(self) -> None:
        """Called after every optimizer step."""
        ...

    def on_out_of_memory(self, sentence: str) -> None:
        """Called where the GPU ran out of memory; the sentence says what is cut smaller from here on."""
        ...

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Called after an epoch whose checkpoint is on disk."""
        ...


class Together:
    """Several listeners as one: each is told, in their order."""

    def __init__(self, *callbacks: Callbacks) -> None:
        self._callbacks = callbacks

    def on_epoch_start(self, epoch: int, batches: int) -> None:
        """Tell all."""
        for each in self._callbacks:
            each.on_epoch_start(epoch, batches)

    def on_batch_end(self) -> None:
        """Tell all."""
        for each in self._callbacks:
            each.on_batch_end()

    def on_out_of_memory(self, sentence: str) -> None:
        """Tell all."""
        for each in self._callbacks:
            each.on_out_of_memory(sentence)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Tell all."""
        for each in self._callbacks:
            each.on_epoch_end(record)


class NoCallbacks:
    """Callbacks for a training that nobody watches, and a base for those who want to know one thing only."""

    def on_epoch_start(self, epoch: int, batches: int) -> None:
        """Do nothing."""

    def on_batch_end(self) -> None:
        """Do nothing."""

    def on_out_of_memory(self, sentence: str) -> None:
        """Do nothing."""

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Do nothing."""
