"""Uniform negatives in blocks: every set takes whole blocks of a permutation of the catalog that is new in every step.

Shape letters: V items, S sets, ns negatives of a set, n blocks, R blocks of a set (rounds), w blocks of a stratum.

The permutation puts the catalog in an order; 32 neighbours in it are a block. A set takes ns / 32 blocks, one of each
of R strata of w neighbouring blocks: set s = q n + t takes block (t + r_qj) mod n in round j, where r_qj is drawn anew
for every q and j from the j-th stratum of a circle. Strata do not overlap, so a set never takes a block twice: its
negatives are a uniform sample of the catalog without replacement, as every fixed choice of places of a random
permutation is.

Who uses a block can be computed: for q and j it is the one set whose t is (block - r_qj) mod n. So a kernel can make
the gradient of the item table block by block, without atomic additions and without indices in memory; that is what
blocks are for (kernels.block_softmax). As rounds follow the circle, the sets that a call has use a block in
neighbouring rounds only: no more than these are looked at.

The permutation is a Feistel network on two unequal halves with modular addition (Black, Rogaway, 2002, Ciphers with
arbitrary finite domains), turned by a random offset. It is a function of (seed, step) and keeps no state: equal
settings give equal negatives on every device, in PyTorch and in the Triton kernels, which are the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

from srsplan.kernels.block_softmax.grid import BLOCK_ITEMS, Halves, blocks_of, most_negatives, rounds_of
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.sampling import Sampling

PAIRS = 4
"""Pairs of rounds of the permutation: each changes both halves of a place."""

MASK_32, MASK_64 = (1 << 32) - 1, (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 by the golden ratio: the stride of splitmix64, which makes the keys."""
MIX_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
ROUND_FACTORS = 0xED5AD4BB, 0xAC4C1B51
MIX_32 = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
"""triple32 (Wellons, 2018), as in kernels.sampled_softmax.kernel."""


def draws_blocks(
    negatives: int | Tensor, sampling: Sampling, distribution: Distribution | InBatch | None
) -> TypeGuard[int]:
    """Tell whether a call of `cce-` takes its negatives in blocks: uniform ones that are drawn and all kept."""
    return isinstance(negatives, int) and distribution is None and sampling.blocks and sampling.hardest is None


def block_draw(negatives: int, catalog: int, sampling: Sampling) -> BlockDraw:
    """Return the draw of a step's sampling; ValueError where its seed or step are tensors."""
    seed, step = sampling.moment()
    return BlockDraw(catalog=catalog, negatives=negatives, seed=seed, step=step)


@dataclass(frozen=True, kw_only=True)
class BlockDraw:
    """The negatives of a step: which blocks a set takes, and which items are in them."""

    catalog: int
    negatives: int
    seed: int
    step: int

    def __post_init__(self) -> None:
        if not 0 <= self.negatives <= most_negatives(self.catalog):
            raise ValueError(f"{self.negatives} negatives of {self.catalog} items: no whole blocks hold as many")

    @cached_property
    def halves(self) -> Halves:
        """The sizes of the permutation."""
        return Halves.of(self.catalog)

    @property
    def blocks(self) -> int:
        """n: the blocks that sets take."""
        return blocks_of(self.catalog)

    @property
    def rounds(self) -> int:
        """R: the blocks of a set."""
        return rounds_of(self.negatives)

    @property
    def width(self) -> int:
        """w: the blocks of a stratum."""
        return self.blocks // self.rounds

    @cached_property
    def keys(self) -> tuple[int, ...]:
        """64 bits a key: one for every pair of rounds, one for the offset, one for the strata."""
        state = _mixed_64(_mixed_64(self.seed + GOLDEN) + self.step * GOLDEN)
        return tuple(_mixed_64(state + (number + 1) * GOLDEN) for number in range(PAIRS + 2))

    @property
    def offset(self) -> int:
        """The places that the permuted catalog is turned by."""
        return (self.keys[PAIRS] >> 32) * self.catalog >> 32

    def items(self, first_set: int, sets: int, device: torch.device) -> Tensor:
        """Return the negatives of consecutive sets, int64 [S, ns]. Memory: three more of that size while it works."""
        slots = torch.arange(self.negatives, device=device)
        places = self.block_numbers(first_set, sets, device)[:, slots // BLOCK_ITEMS].mul_(BLOCK_ITEMS)
        return self.permuted(places.add_(slots % BLOCK_ITEMS))

    def block_numbers(self, first_set: int, sets: int, device: torch.device) -> Tensor:
        """Return the blocks that consecutive sets take, int64 [S, R]."""
        numbers = torch.arange(first_set, first_set + sets, device=device)[:, None]
        rounds = torch.arange(self.rounds, device=device)
        first, second = self.keys[PAIRS + 1] >> 32, self.keys[PAIRS + 1] & MASK_32
        turn = _mixed_32(numbers // self.blocks + first, second)
        within = _mixed_32(turn + 1 + rounds, first) * self.width >> 32
        return (numbers + (turn * self.blocks >> 32) + rounds * self.width + within) % self.blocks

    def permuted(self, places: Tensor) -> Tensor:
        """Return the items at places int64 [*], in [0, V), of the permutation; the argument's memory is reused."""
        bits, upper = self.halves.bits, self.halves.upper
        left, right = places >> bits, places.bitwise_and_((1 << bits) - 1)
        permuted = left < upper
        for pair in range(PAIRS):
            high, low = self.keys[pair] >> 32, self.keys[pair] & MASK_32
            added = (_round(right, high).mul_(upper).bitwise_right_shift_(32)).add_(left)
            left = torch.where(permuted, added.sub_(added.ge(upper) * upper), left)
            right = torch.where(permuted, right ^ (_round(left, low) >> 32 - bits), right)
        items = left.bitwise_left_shift_(bits).bitwise_or_(right).add_(self.offset)
        return items.sub_(items.ge(self.catalog) * self.catalog)


def _round(half: Tensor, key: int) -> Tensor:
    """Return 32 bits for a half of a place and a key: int64 [*] below 2^32."""
    bits = (half + key).mul_(ROUND_FACTORS[0]).bitwise_and_(MASK_32)
    return bits.bitwise_xor_(bits >> 16).mul_(ROUND_FACTORS[1]).bitwise_and_(MASK_32)


def _mixed_32(bits: Tensor, salt: int) -> Tensor:
    """Return kernels.sampled_softmax.kernel.mixed of the lower 32 bits, int64 [*] below 2^32."""
    bits = bits & MASK_32
    for number, (shift, factor) in enumerate(MIX_32):
        bits = bits ^ (bits >> shift)
        bits = (bits ^ salt if number == 1 else bits) * factor & MASK_32
    return bits ^ (bits >> 14)


def _mixed_64(bits: int) -> int:
    """Return splitmix64's output for a state."""
    bits &= MASK_64
    for shift, factor in MIX_64:
        bits = (bits ^ (bits >> shift)) * factor & MASK_64
    return bits ^ (bits >> 31)
