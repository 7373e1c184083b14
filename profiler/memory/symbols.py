"""Symbols of a program: who holds a storage, and its bytes as an expression in the variables of `expressions`.

Sizes are chosen so that every variable has a prime factor of its own, its signature (`generic_sizes`). The bytes of a
storage therefore factor into a product of variables in one way only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.ledger import GRANULE_BYTES, Allocation

SMALL_PRIMES = (2, 3, 5, 7)
"""The primes that coefficients consist of; no signature is among them."""

LARGEST_COEFFICIENT = 1 << 14


class NotFactored(ValueError):
    """A storage's bytes are no product of the variables: the sizes chosen are not generic, or a variable is missing."""


@dataclass(frozen=True)
class Size:
    """A value of a variable. A variable may have several, such as full and last blocks."""

    variable: str
    value: int


Sizes = Mapping[str, Size]
"""Every size of a configuration, by a label of its own."""


@cache
def largest_prime_factor(number: int) -> int:
    """Return the signature of a size; 1 has none and gives 1."""
    factor, rest, largest = 2, number, 1
    while factor * factor <= rest:
        if rest % factor:
            factor += 1
        else:
            rest, largest = rest // factor, factor
    return max(largest, rest)


def factor(size: int, sizes: Sizes) -> str:
    """Return the expression of a size in bytes; NotFactored where a large factor is left over."""
    powers: Counter[str] = Counter()
    rest = size
    for each in sizes.values():
        while rest % largest_prime_factor(each.value) == 0 and rest % each.value == 0:
            powers[each.variable] += 1
            rest //= each.value
    left = rest
    for prime in SMALL_PRIMES:
        while left % prime == 0:
            left //= prime
    if left != 1 or rest > LARGEST_COEFFICIENT:
        raise NotFactored(f"{size} bytes leave {rest}")
    return expressions.product(rest, powers)


def symbol_of(allocation: Allocation, sizes: Sizes) -> tuple[str, str]:
    """Return the symbol of one storage: its tag and its expression."""
    formula, _, rest = allocation.operator.partition("/")
    if formula == "cublas":
        return "workspace", f"cublas/{allocation.requested_bytes}"
    if formula in ("flash_backward", "efficient_backward"):
        return "workspace", allocation.operator
    if formula in ("embedding_backward", "sort"):
        entry, _, tokens = rest.partition("/")
        return "workspace", f"{formula}/{entry}:{factor(int(tokens), sizes)}"
    if allocation.requested_bytes <= GRANULE_BYTES:
        return _tag(allocation, Counter()), str(GRANULE_BYTES)
    expression = factor(allocation.requested_bytes, sizes)
    return _tag(allocation, expressions.variables(expression)), expression


def _tag(allocation: Allocation, powers: Counter[str]) -> str:
    """Return what holds a storage, by the phase that made it and the variables that its size depends on."""
    if powers.keys() == {"V"}:  # weights of a sampler
        return "negatives"
    if allocation.phase == "build":
        return "table" if powers["V"] else "model"
    if allocation.phase in ("batch", "optimizer"):
        return allocation.phase
    if powers["V"] and powers["D"]:
        return "gradient" if allocation.dtype == "torch.float32" else "table copy"
    if powers["I"] or powers["E"]:
        return "workspace"
    if powers["V"] or powers["b"] or powers["q"] or powers["r"] or powers["C"] or powers["X"] or powers["Z"]:
        return "logits"
    if powers["n"] or powers["K"]:
        return "negatives"
    if allocation.phase == "backward" and not powers & Counter("BFJLAMNTSGPW"):
        return "gradient"
    return "activation"
