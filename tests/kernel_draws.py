"""The draws of the Triton kernels as a tensor, for tests in the interpreter and on a card."""

from __future__ import annotations

import torch
from torch import Tensor

from srsplan.kernels import Sampling
from srsplan.kernels.sampled_softmax import kernel as kernels
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.draw import kind_of
from srsplan.kernels.samplers.in_batch import InBatch


def kernel_draws(
    shape: tuple[int, int],
    catalog: int,
    sampling: Sampling,
    drawn_by: Distribution | InBatch | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> Tensor:
    """int64 [sets, ns]"""
    items = torch.full(shape, -1, device=device)
    sampler, pair, indices, size = kind_of(shape[1], drawn_by), (items, items), items, catalog
    if isinstance(drawn_by, InBatch):
        indices, size = drawn_by.slots, len(drawn_by.slots)
    elif drawn_by is not None:
        pair = (drawn_by.prob, drawn_by.alias)
    tile = 64 if shape[1] <= 64 else 1024
    kernels.sample[(shape[0], -(-shape[1] // tile))](
        items, sampling.seed, sampling.step, size, shape[1], *pair, indices, SAMPLER=int(sampler), BLOCK_N=tile
    )
    return items
