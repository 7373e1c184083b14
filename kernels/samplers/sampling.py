"""Which items the sampled losses compare a target with.

Shape letters: M tokens, V items, ns negatives of a set, g tokens that share a set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from srsplan.kernels.chunking import set_count
from srsplan.kernels.samplers.alias import Distribution, InBatch

COIN = 1 << 24
"""Sides of the coin that chooses between an item and its alias: as many as fp32 tells apart."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How negatives are drawn, the same for every sampled loss."""

    tokens_per_set: int = 32
    """g: tokens that share one set of negatives. 1 draws for every token. Set k holds tokens k, k + sets, ...:
    the stride puts tokens of different users into a set, which is what keeps quality (neighbours lose 12%)."""
    log_q: bool = True
    """Add log((V - 1) / kept negatives) to their logits, so that the sum estimates that of the whole catalog."""
    seed: int = 0
    """With `step`, fixes the draw: a resumed run repeats it."""
    step: int = 0
    """The training step."""

    def __post_init__(self) -> None:
        if self.tokens_per_set < 1:
            raise ValueError(f"tokens_per_set {self.tokens_per_set} is below 1")


def draw_uniform(
    shape: tuple[int, int], catalog: int, sampling: Sampling, first_set: int, device: torch.device
) -> Tensor:
    """Uniform item indices in [0, V), int64 of `shape`; equal arguments draw equal items.

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
    """Items of a distribution, int64 of `shape`; uniform without one. Arguments are those of `draw_uniform`."""
    if distribution is None:
        return draw_uniform(shape, catalog, sampling, first_set, device)
    if isinstance(distribution, InBatch):
        return distribution.slots[draw_uniform(shape, len(distribution.slots), sampling, first_set, device)]
    slots = draw_uniform(shape, catalog, sampling, first_set, device)
    coins = draw_uniform(shape, COIN, sampling, -1 - first_set, device) / COIN
    return torch.where(coins < distribution.prob[slots], slots, distribution.alias[slots].long())


def draw_sets(tokens: int, negatives: int, catalog: int, sampling: Sampling, device: torch.device) -> Tensor:
    """All sets of a batch at once, int64 [sets, ns]: for comparisons; the chunked losses draw chunk by chunk."""
    sets = set_count(tokens, sampling.tokens_per_set)
    return draw_uniform((sets, negatives), catalog, sampling, 0, device)


def correction(
    items: Tensor, target: Tensor, kept: Tensor, catalog: int, distribution: Distribution | InBatch | None
) -> Tensor:
    """log((1 - q of the target) / (kept x q of the item)), fp32, for shapes that broadcast: what a negative stands for.

    A kept negative has probability q / (1 - q of the target); `kept` counts those of a token that are not its target.
    """
    if distribution is None:
        return log_q_correction(kept, catalog)
    rest = torch.log1p(-torch.exp(distribution.log_prob[target]))
    return rest - distribution.log_prob[items] - torch.log(kept.clamp(min=1).float())


def given_or_drawn(negatives: int | Tensor, distribution: Distribution | InBatch | None) -> None:
    """ValueError where items are given, and a distribution to draw them from."""
    if isinstance(negatives, Tensor) and distribution is not None:
        raise ValueError("negatives are given, and a distribution to draw them from: give one of the two")


def log_q_correction(kept: Tensor, catalog: int) -> Tensor:
    """log((V - 1) / kept), fp32, the shape of `kept` (how many of a token's negatives differ from its target).

    Uniform negatives that are not the target have probability 1 / (V - 1) each.
    """
    return math.log(catalog - 1) - torch.log(kept.clamp(min=1).float())
