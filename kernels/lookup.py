"""The item lookup of a tied table, whose gradient goes into the buffer that the loss has already filled.

Autograd would build a second dense [V, D] gradient for the lookup and add the two: one whole table of memory, 1.7 GB at
1.66 million items of 256. Here the lookup is no edge to the table in autograd's graph. The loss's gradient therefore
arrives in `item_table.grad` as soon as it is known, and the lookup's backward, which runs last, adds its rows to it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def tied_lookup(item_table: Tensor, items: Tensor) -> Tensor:
    """Look up rows of item_table [V, D] (a leaf) for items int64 [..., L] -> [..., L, D].

    Backward adds to `item_table.grad` in place, fp32, without sorting and without temporaries of the table's size; the
    order of additions is not fixed on a GPU. The table's gradient hooks see the loss's part only, so this is not for
    DistributedDataParallel. Where no gradient is wanted it is a plain lookup.
    """
    if not (torch.is_grad_enabled() and item_table.requires_grad):
        return torch.nn.functional.embedding(items, item_table)
    if not item_table.is_leaf:
        raise ValueError("tied_lookup needs a leaf: the gradient goes to its .grad")
    anchor = torch.empty(0, device=item_table.device, requires_grad=True)
    # The table goes in wrapped: as a plain argument it would be an edge, and its gradient would wait for this one.
    return cast(Tensor, _TiedLookup.apply(anchor, item_table.detach(), items, (item_table,)))


class _TiedLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, rows: Tensor, items: Tensor, tied: tuple[Tensor]) -> Tensor:
        ctx.save_for_backward(items)
        ctx.tied = tied
        return torch.nn.functional.embedding(items, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        (items,) = ctx.saved_tensors
        (table,) = ctx.tied
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, items.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        return None, None, None, None
