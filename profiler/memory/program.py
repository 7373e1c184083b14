"""A training step as a program of allocations: sizes are expressions, a nested list is a loop. Imports no torch.

    12          allocate a storage of symbol 12, (tag, expression): see `expressions`
    -3          free the third newest storage that is live
    [7, 9, -1]  repeat: once for every chunk between the first and the last

One program answers everything about memory: the running sum of its sizes is the ledger's (allocated bytes, for
thousands of configurations at once), and played through the allocator's model it gives reserved bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.allocator import CachingAllocator, Layout
from srsplan.profiler.memory.workspaces import Size

GRANULE_BYTES = 512
STEADY_CHUNKS = 2
"""A chunk between the first and the last leaves the allocator as it found it: more of them change nothing."""

WEIGHTS = ("table", "model")
"""Tags of the model's weights, which a program allocates in its set-up."""
AVERAGE = "average"
"""The tag of the averages of the weights, where a configuration keeps them."""

Bytes = NDArray[np.int64]
Code = Sequence[Any]
"""int or Code."""


@dataclass(frozen=True)
class Program:
    """Allocations of a process: `setup` once, the `first` step (making optimizer states), then every later `step`."""

    symbols: tuple[tuple[str, str], ...]
    """(tag, expression) of every kind of storage."""
    setup: Code
    first: Code
    step: Code
    shards: int = 1
    """The table's rows, their gradient and moments are spread over so many GPUs: this is one of them."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Program:
        """Return the program of a document: the inverse of `to_document`."""
        symbols = tuple((tag, text) for tag, text in document["symbols"])
        return cls(symbols, document["setup"], document["first"], document["step"])

    def to_document(self) -> dict[str, Any]:
        """Return the program as lists and strings."""
        return {"symbols": self.symbols, "setup": self.setup, "first": self.first, "step": self.step}

    def with_average(self) -> Program:
        """Return the same program where one more copy of every weight is kept from the start: `Configuration.ema`.

        The copies come first: what is freed later is counted from the newest storage, and so remains the same one.
        """
        weights = [code for code in self.setup if isinstance(code, int) and self._is_weight(code)]
        kinds = sorted(set(weights))
        copies = {symbol: len(self.symbols) + place for place, symbol in enumerate(kinds)}
        symbols = (*self.symbols, *((AVERAGE, self.symbols[symbol][1]) for symbol in kinds))
        return replace(self, symbols=symbols, setup=[*(copies[symbol] for symbol in weights), *self.setup])

    def _is_weight(self, code: int) -> bool:
        return code >= 0 and self.symbols[code][0] in WEIGHTS

    def sizes(self, values: expressions.Values) -> list[Bytes]:
        """Return the bytes requested per symbol, an array over configurations each; exact at any size."""
        enough = values if self._within_64_bits(values) else expressions.exact(values)
        return [-(-expressions.evaluate(text, enough) // self._parts(text)) for _, text in self.symbols]

    def numbers(self, row: expressions.Row) -> list[int]:
        """Return the same for one configuration, as plain numbers."""
        return [-(-expressions.evaluate(text, row) // self._parts(text)) for _, text in self.symbols]

    def _within_64_bits(self, values: expressions.Values) -> bool:
        """Say whether all that this program ever allocates stays below 2^62 bytes together, for every configuration."""
        bounds = expressions.largest(values)
        if bounds is None:
            return False
        sizes = (float(expressions.evaluate(text, bounds)[0]) + GRANULE_BYTES for _, text in self.symbols)
        return sum(size * count for size, count in zip(sizes, self._births, strict=True)) < expressions.LARGEST_SAFE

    @cached_property
    def _births(self) -> list[int]:
        """The number of times each symbol is allocated; a loop counts once, because a round leaves nothing behind."""
        codes = Counter(flat([*self.setup, *self.first, *self.step], 1))
        return [codes[symbol] for symbol in range(len(self.symbols))]

    def _parts(self, expression: str) -> int:
        if self.shards == 1:
            return 1
        factors = expressions.variables(expression)
        return self.shards if factors["V"] and factors["D"] else 1

    def peaks(self, values: expressions.Values, repeats: int) -> Bytes:
        """Return the allocated peak of a later step of every configuration; all have the same number of `repeats`."""
        sizes = [_rounded(size) for size in self.sizes(values)]
        peak = np.zeros_like(sizes[0])
        for _, current in self._walk(sizes, np.zeros_like(sizes[0]), repeats):
            np.maximum(peak, current, out=peak)
        return peak

    def peak(self, row: expressions.Row, repeats: int) -> int:
        """Return the same for one configuration, which takes a tenth of the time in plain numbers."""
        sizes = [_rounded(size) for size in self.numbers(row)]
        return max(current for _, current in self._walk(sizes, 0, repeats))

    def breakdown(self, row: expressions.Row, repeats: int) -> dict[str, int]:
        """Return the bytes by tag at the peak of one configuration, largest first; they add up to it."""
        sizes = [_rounded(size) for size in self.numbers(row)]
        best, holders = -1, list[int]()
        for live, current in self._walk(sizes, 0, repeats):
            if current > best:
                best, holders = current, live.copy()
        sums: dict[str, int] = {}
        for symbol in holders:
            sums[self.symbols[symbol][0]] = sums.get(self.symbols[symbol][0], 0) + sizes[symbol]
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def _walk(self, sizes: list[Size], current: Size, repeats: int) -> Iterator[tuple[list[int], Size]]:
        """Yield the live symbols and their sum, from zero, after every allocation of a later step.

        The list is updated in place, and so is a sum that is an array. The sizes of one configuration may be plain
        numbers, which are ten times as fast.
        """
        live: list[int] = []
        for code in flat([*self.setup, *self.first], repeats):
            live.append(code) if code >= 0 else live.pop(code)
        for symbol in live:
            current += sizes[symbol]
        for code in flat(self.step, repeats):
            if code < 0:
                current -= sizes[live.pop(code)]
            else:
                live.append(code)
                current += sizes[code]
                yield live, current


class Process:
    """A process's allocator while programs run in it, one after another."""

    def __init__(self, cap_bytes: int | None = None, expandable_segments: bool = True) -> None:
        """Begin an empty process; `run` raises CapReachedError where `cap_bytes` are not enough."""
        self.allocator = CachingAllocator(cap_bytes, expandable_segments=expandable_segments)
        self._live: list[int] = []
        self._next_key = 0

    def run(self, code: Code, sizes: Sequence[int], repeats: int) -> None:
        """Allocate and free; storages that a part leaves behind stay for the next."""
        live, allocate, free, key = self._live, self.allocator.allocate, self.allocator.free, self._next_key
        for each in self._written_out(code, min(repeats, STEADY_CHUNKS)):
            if each < 0:
                old = live.pop(each)
                if old:
                    free(old)
            elif sizes[each]:
                key += 1
                allocate(key, sizes[each])
                live.append(key)
            else:
                live.append(0)  # nothing is asked of the allocator
        self._next_key = key

    def layout(self) -> Layout:
        """Return where everything lies, the storages that are live in their order included."""
        return self.allocator.layout(self._live)

    @staticmethod
    def _written_out(code: Code, repeats: int) -> tuple[int, ...]:
        """Return a program's integers with its loops written out, remembered because a process runs code again."""
        known = _WRITTEN_OUT.get((id(code), repeats))
        if known is None:
            known = _WRITTEN_OUT[id(code), repeats] = (code, tuple(flat(code, repeats)))
        return known[1]


_WRITTEN_OUT: dict[tuple[int, int], tuple[Code, tuple[int, ...]]] = {}
"""By identity of the code, which is kept beside its integers so that it stays the only one of that identity."""


def flat(code: Code, repeats: int) -> Iterator[int]:
    """Yield a program's integers with its loops written out."""
    for each in code:
        if isinstance(each, int):
            yield each
        else:
            for _ in range(repeats):
                yield from flat(each, repeats)


def encode(events: Iterable[int], symbol_of: Mapping[int, int], live: list[int]) -> list[int]:
    """Return a trace's events (+index at birth, ~index at death) as code; `live`, the indices alive, is updated."""
    code = []
    for event in events:
        if event >= 0:
            live.append(event)
            code.append(symbol_of[event])
        else:
            place = live.index(~event)
            code.append(place - len(live))
            del live[place]
    return code


def looped(two: Code, three: Code, four: Code) -> Code:
    """Return the code whose loop runs chunks - 2 times, from those of 2, 3 and 4 chunks; ValueError if none is.

    What three chunks have more than two is one run of integers, whose start is where the two begin to differ.
    """
    extra = len(three) - len(two)
    start = next((at for at, (one, other) in enumerate(zip(two, three, strict=False)) if one != other), len(two))
    body, head, tail = list(three[start : start + extra]), two[:start], two[start:]
    if [*head, *body, *tail] != [*three] or [*head, *body, *body, *tail] != [*four]:
        raise ValueError("the codes of 2, 3 and 4 chunks are not those of one loop")
    return [*head, body, *tail] if body else two


def _rounded(size: Size) -> Size:
    return -(-size // GRANULE_BYTES) * GRANULE_BYTES
