"""The seam between models and everything that trains, ranks or simulates them.

A batch is tokens: the items of B sequences one after another, without padding, from the first lookup to the loss.

Shape letters: M tokens, B sequences, D hidden size, V items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from srsplan.kernels.attention import Packing

Context = Callable[[], AbstractContextManager[object]]
"""Something that makes a context, such as autocast."""


@dataclass(frozen=True, eq=False)
class PackedItems:
    """The items of packed sequences, on the model's device."""

    items: Tensor
    """int64 [M], 0-based."""
    positions: Tensor
    """int64 [M]: each token's place in its sequence, 0 for the oldest item."""
    packing: Packing
    """The bounds of the sequences, which attention needs."""


class SequenceModel(nn.Module, ABC):
    """A module that turns packed sequences of items into hidden states, and whose item table scores them.

    An abstract class and no structural protocol, because optimizers, checkpoints and autograd want a torch module.
    """

    recompute: Context | None = None
    """Context (autocast) in which backward recomputes blocks, as in forward; None keeps their activations."""

    @property
    @abstractmethod
    def item_table(self) -> Tensor:
        """The table [V, D] in fp32 that items are looked up in and scored with; a leaf of autograd."""

    @abstractmethod
    def forward(self, sequences: PackedItems) -> Tensor:
        """Turn packed items [M] into hidden states [M, D]."""
