"""The seam between models and everything that trains, ranks or simulates them: packed items in, hidden states out.

A batch is tokens: the items of B sequences one after another, without padding, from the first lookup to the loss.

Shape letters: M tokens, B sequences, D hidden size, V items, T tokens whose hidden states are wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srsplan.kernels.attention import Packing

Context = Callable[[], AbstractContextManager[object]]
"""Something that makes a context, such as autocast."""


@dataclass(frozen=True, eq=False)
class PackedItems:
    """The items of packed sequences, on the model's device."""

    items: Tensor
    """int64 [M], 0-based; V stands for a mask."""
    positions: Tensor
    """int64 [M]: each token's place in its sequence, 0 for the oldest item."""
    packing: Packing
    """The bounds of the sequences, which attention needs."""
    wanted: Tensor | None = None
    """int64 [T]: the tokens whose hidden states are wanted, such as those that have a target; None wants all, T = M."""

    def choose(self, hidden: Tensor) -> Tensor:
        """Return the wanted rows [T, D] of hidden states [M, D]."""
        return hidden if self.wanted is None else hidden.index_select(0, self.wanted)


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
        """Turn packed items [M] into the hidden states [T, D] that are wanted."""

    def run_block(self, block: nn.Module, x: Tensor, packing: Packing) -> Tensor:
        """Run a block on hidden states [M, D]; with `recompute` its activations are made once more in backward."""
        if self.recompute is None or not self.training:
            return cast(Tensor, block(x, packing))
        again = self.recompute
        kept = checkpoint(block, x, packing, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
        return cast(Tensor, kept)


def initialise_normal(module: nn.Module, std: float) -> None:
    """Draw the weights of a linear layer or an embedding from a normal cut at two deviations; biases become 0."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
