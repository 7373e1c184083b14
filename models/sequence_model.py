"""The seam between models and everything that trains, ranks or simulates them.

Shape letters: B sequences, L positions, D hidden size, V items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

Context = Callable[[], AbstractContextManager[object]]
"""Something that makes a context, such as autocast."""


class SequenceModel(nn.Module, ABC):
    """A module that turns sequences of items into hidden states, and whose item table scores them.

    An abstract class and no structural protocol, because optimizers, checkpoints and autograd want a torch module.
    """

    recompute: Context | None = None
    """Context (autocast) in which backward recomputes blocks, as in forward; None keeps their activations."""

    @property
    @abstractmethod
    def item_table(self) -> Tensor:
        """The table [V, D] in fp32 that items are looked up in and scored with; a leaf of autograd."""

    @abstractmethod
    def forward(self, items: Tensor) -> Tensor:
        """Turn items int64 [B, L], 0-based with any item at padding, into hidden states [B, L, D]."""
