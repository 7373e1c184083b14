"""Negatives as tensors, drawn from a distribution; equal settings draw equal items.

Shape letters: V items, S sets, ns negatives of a set.

The generator is a function of (seed, step, stream, number of the set, place in the set) and keeps no state: calls that
share a set draw the same negatives for it, on every device and however the sets are cut into chunks. It is splitmix64
(Steele, Lea, Flood, 2014, Fast splittable pseudorandom number generators): every set begins at a point of its own in
the sequence, which is itself drawn by the set's number. Integers are int64, whose products wrap as those of uint64 do.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b

import torch
from torch import Tensor

from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.kind import SamplerKind
from srsplan.kernels.samplers.mixed import Mixed
from srsplan.kernels.samplers.sampling import Sampling

COIN = 1 << 24
"""Sides of the coin that chooses between an item and its alias: as many as fp32 tells apart."""


class Stream(IntEnum):
    """The sequences that a step draws from, independent of each other."""

    ITEMS = 0
    COINS = 1


def kind_of(negatives: int | Tensor, distribution: Distribution | InBatch | None) -> SamplerKind:
    """Return the sampler of a call; ValueError where items are given, and a distribution to draw them from; and
    for a mixture of another number of negatives."""
    if isinstance(negatives, Tensor):
        if distribution is not None:
            raise ValueError("negatives are given, and a distribution to draw them from: give one of the two")
        return SamplerKind.GIVEN
    if distribution is None:
        return SamplerKind.UNIFORM
    if isinstance(distribution, Mixed):
        distribution.check(negatives)
        return SamplerKind.MIXED
    return SamplerKind.IN_BATCH if isinstance(distribution, InBatch) else SamplerKind.WEIGHTED


def draw_uniform(
    shape: tuple[int, int],
    catalog: int,
    sampling: Sampling,
    first_set: int,
    device: torch.device,
    stream: Stream = Stream.ITEMS,
) -> Tensor:
    """Return uniform item indices in [0, V), int64 of `shape` [S, ns], for S sets of the batch from `first_set` on.

    An item's probability is off by at most V / 2^(63 - bits of V) of itself: 1e-10 at 30,000 items, 2e-3 at 1e8.
    Memory: one [S, ns] int64 beside the result. On meta tensors nothing is drawn, in the same memory.
    """
    bits = 63 - catalog.bit_length()
    # floor(fraction x V) for a fraction of so many bits: no product is beyond 2^63
    draws = _fractions(shape, bits, sampling, first_set, device, stream)
    return draws.mul_(catalog).bitwise_right_shift_(bits)


def _fractions(
    shape: tuple[int, int], bits: int, sampling: Sampling, first_set: int, device: torch.device, stream: Stream
) -> Tensor:
    """Return uniform integers of so many bits, int64 of `shape`."""
    sets, negatives = shape
    starts = _mixed(_numbered(_key(sampling, stream), first_set, sets, device))
    draws = _mixed(starts[:, None] + _numbered(0, 0, negatives, device))
    return draws.bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)


def _draw_mixed(
    shape: tuple[int, int], catalog: int, sampling: Sampling, first_set: int, device: torch.device, source: Mixed
) -> Tensor:
    """Return items of which the first of every set are the batch's. Memory: two [S, ns] int64 beside the result."""
    there, from_batch = len(source.slots), source.from_batch
    bits = 63 - max(catalog, there).bit_length()
    draws = _fractions(shape, bits, sampling, first_set, device, Stream.ITEMS)
    draws[:, :from_batch].mul_(there)
    draws[:, from_batch:].mul_(catalog)
    draws.bitwise_right_shift_(bits)
    items = source.slots[draws.clamp(max=there - 1)]
    items[:, from_batch:] = draws[:, from_batch:]
    return items


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
    if isinstance(distribution, Mixed):
        return _draw_mixed(shape, catalog, sampling, first_set, device, distribution)
    if isinstance(distribution, InBatch):
        return distribution.slots[draw_uniform(shape, len(distribution.slots), sampling, first_set, device)]
    coins = draw_uniform(shape, COIN, sampling, first_set, device, Stream.COINS) / COIN
    slots = draw_uniform(shape, catalog, sampling, first_set, device)
    keep = coins < distribution.prob[slots]
    del coins
    return torch.where(keep, slots, distribution.alias[slots].long(), out=slots)


def _key(sampling: Sampling, stream: Stream) -> int:
    """Return where a stream of a step begins, an int64; ValueError where seed or step are tensors."""
    seed, step = sampling.moment()
    text = f"{seed} {step} {int(stream)}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


def _signed(value: int) -> int:
    """Return the int64 of the same bits as a uint64."""
    return value - (value >> 63 << 64)


STRIDE = _signed(0x9E3779B97F4A7C15)
"""Between one state of splitmix64 and the next: 2^64 by the golden ratio."""

ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
"""The shifts and factors of its output function, of which the last exclusive or is left out: it reaches no more than
the lower half, and draws are made from the upper bits."""


def _numbered(start: int, first: int, count: int, device: torch.device) -> Tensor:
    """Return the states `first` to `first + count` of the sequence that begins at `start`, int64 [count]."""
    return torch.arange(first, first + count, device=device).mul_(STRIDE).add_(start)


def _mixed(states: Tensor) -> Tensor:
    """Turn states into uniform bits, in place; beside them one tensor of their size is held."""
    shifted = torch.empty_like(states)
    for shift, factor in ROUNDS:
        torch.bitwise_right_shift(states, shift, out=shifted)
        states.bitwise_xor_(shifted.bitwise_and_((1 << 64 - shift) - 1)).mul_(factor)  # a shift that brings in zeros
    return states
