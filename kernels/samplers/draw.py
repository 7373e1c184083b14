"""Negatives as tensors, drawn from a distribution; equal settings draw equal items.

Shape letters: V items.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.kind import SamplerKind
from srsplan.kernels.samplers.sampling import Sampling

COIN = 1 << 24
"""Sides of the coin that chooses between an item and its alias: as many as fp32 tells apart."""


def kind_of(negatives: int | Tensor, distribution: Distribution | InBatch | None) -> SamplerKind:
    """Return the sampler of a call; ValueError where items are given, and a distribution to draw them from."""
    if isinstance(negatives, Tensor):
        if distribution is not None:
            raise ValueError("negatives are given, and a distribution to draw them from: give one of the two")
        return SamplerKind.GIVEN
    if distribution is None:
        return SamplerKind.UNIFORM
    return SamplerKind.IN_BATCH if isinstance(distribution, InBatch) else SamplerKind.WEIGHTED


def draw_uniform(
    shape: tuple[int, int], catalog: int, sampling: Sampling, first_set: int, device: torch.device
) -> Tensor:
    """Return uniform item indices in [0, V), int64 of `shape`; equal arguments draw equal items.

    `first_set` numbers the first row, so that chunks of a batch draw different items. On meta tensors nothing is drawn.
    """
    generator = None
    if device.type != "meta":
        key = f"{sampling.seed} {sampling.step} {first_set}".encode()
        generator = torch.Generator(device)
        generator.manual_seed(int.from_bytes(blake2b(key, digest_size=7).digest(), "little"))
    return torch.randint(catalog, shape, device=device, generator=generator)


def draw_items(
    shape: tuple[int, int],
    catalog: int,
    sampling: Sampling,
    first_set: int,
    device: torch.device,
    distribution: Distribution | InBatch | None = None,
) -> Tensor:
    """Return items of a distribution, int64 of `shape`; uniform without one. Arguments are those of `draw_uniform`."""
    if distribution is None:
        return draw_uniform(shape, catalog, sampling, first_set, device)
    if isinstance(distribution, InBatch):
        return distribution.slots[draw_uniform(shape, len(distribution.slots), sampling, first_set, device)]
    slots = draw_uniform(shape, catalog, sampling, first_set, device)
    coins = draw_uniform(shape, COIN, sampling, -1 - first_set, device) / COIN
    return torch.where(coins < distribution.prob[slots], slots, distribution.alias[slots].long())
