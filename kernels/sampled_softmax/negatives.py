"""The negatives of a call of the Triton kernels as a tensor, which the kernels themselves never hold.

With them a loss whose negatives are drawn in the kernel can be held to a reference that is given its negatives.
Shape letters: M tokens, V items, ns negatives of a set, S sets.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from srsplan.kernels.block_softmax.grid import most_negatives
from srsplan.kernels.sampled_softmax import kernel as kernels
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.blocks import block_draw, draws_blocks
from srsplan.kernels.samplers.draw import kind_of
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.mixed import Mixed
from srsplan.kernels.samplers.sampling import Sampling

LARGEST_TILE = 1024


def triton_draws(
    shape: tuple[int, int],
    catalog: int,
    sampling: Sampling,
    drawn_by: Distribution | InBatch | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> Tensor:
    """Return the items that the Triton kernels draw for the first S sets of a batch, int64 of `shape` [S, ns].

    `sampling` says seed and step; without a distribution items are uniform in [0, V).
    """
    items = torch.full(shape, -1, device=device)
    sampler, pair, indices, size = kind_of(shape[1], drawn_by), (items, items), items, catalog
    from_batch = drawn_by.from_batch if isinstance(drawn_by, Mixed) else 0
    if isinstance(drawn_by, InBatch):
        indices, size = drawn_by.slots, catalog if isinstance(drawn_by, Mixed) else len(drawn_by.slots)
    elif drawn_by is not None:
        pair = (drawn_by.prob, drawn_by.alias)
    tile = min(LARGEST_TILE, max(64, triton.next_power_of_2(shape[1])))
    kernels.sample[(shape[0], triton.cdiv(shape[1], tile))](
        items, sampling.seed, sampling.step, size, shape[1], *pair, indices, len(indices), from_batch,
        SAMPLER=int(sampler), BLOCK_N=tile,
    )  # fmt: skip
    return items


def triton_negatives(
    negatives: int | Tensor,
    tokens: int,
    catalog: int,
    sampling: Sampling,
    drawn_by: Distribution | InBatch | None,
    device: torch.device,
) -> Tensor:
    """Return the negatives of every token of a call that is a batch by itself, int64 [M, ns].

    Arguments are those of `cce_neg_triton`: a number of negatives to draw, or the negatives of the sets, [S, ns].
    """
    blocks = draws_blocks(negatives, sampling, drawn_by)
    if draws_blocks(negatives, sampling, drawn_by):
        negatives = min(negatives, most_negatives(catalog))
    sets = CallSets.of(negatives, sampling, tokens)
    if isinstance(negatives, Tensor):
        items = negatives
    elif blocks:
        items = block_draw(negatives, catalog, sampling).items(0, sets.numbers.stop, device)
    else:
        items = triton_draws((sets.numbers.stop, negatives), catalog, sampling, drawn_by, device)
    return items[set_of_token(sets, device)]


def set_of_token(sets: CallSets, device: torch.device) -> Tensor:
    """Return the set that each token of a call belongs to, int64 [M]."""
    members = sets.members(sets.numbers, device)
    inside = (members >= 0) & (members < sets.tokens)
    numbers = torch.arange(sets.numbers.start, sets.numbers.stop, device=device)[:, None].expand_as(members)
    found = torch.empty(sets.tokens, dtype=torch.long, device=device)
    found[members[inside]] = numbers[inside]
    return found
