"""How negatives come in blocks, and how a call's kernels are cut into programs: plain arithmetic. No torch.

Shape letters: M tokens, V items, D hidden size. kernels.samplers.blocks says what blocks are.
"""

from __future__ import annotations

from dataclasses import dataclass

from srsplan.kernels.launches.table import blocks_table, launch_for

BLOCK_ITEMS = 32
"""Items of a block: as wide as a tile of the kernels."""

STATE_ROWS = 128
"""Tokens of a program that prepares backward."""


@dataclass(frozen=True)
class Halves:
    """A place of the permutation as two numbers: `upper` values of the first, 2^`bits` of the second."""

    upper: int
    bits: int

    @classmethod
    def of(cls, catalog: int) -> Halves:
        """Return two halves that are about equal; at most the square root of V items are left over."""
        bits = max(0, (catalog.bit_length() - 1) // 2)
        return cls(upper=catalog >> bits, bits=bits)

    @property
    def places(self) -> int:
        """The places that are permuted; those after them, to V, are only turned, and no block has them."""
        return self.upper << self.bits


def blocks_of(catalog: int) -> int:
    """Return n: the blocks of a catalog; one, of fewer items, where there are not enough for a whole one."""
    return max(1, Halves.of(catalog).places // BLOCK_ITEMS)


def most_negatives(catalog: int) -> int:
    """Return the negatives that a set can have without taking one twice: all items of all blocks."""
    return min(catalog, blocks_of(catalog) * BLOCK_ITEMS)


def rounds_of(negatives: int) -> int:
    """Return R: the blocks of a set, of which the last may be taken in part; at least one."""
    return max(1, -(-negatives // BLOCK_ITEMS))


@dataclass(frozen=True, kw_only=True)
class BlockGrid:
    """The programs of backward."""

    tokens: int
    catalog: int
    dim: int
    fp32: bool

    @property
    def program_items(self) -> int:
        """The items of a program that makes the table's gradient: those of a block, or a part of them."""
        return launch_for(blocks_table("blocks_backward", self.fp32), self.dim).block_n

    @property
    def programs(self) -> int:
        """The programs that make the table's gradient."""
        return -(-self.catalog // self.program_items)

    @property
    def padded(self) -> int:
        """Tokens, padded to whole programs that prepare backward."""
        return -(-self.tokens // STATE_ROWS) * STATE_ROWS
