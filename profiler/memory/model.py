"""The memory of a configuration from the closed form: no torch, thousands of configurations at once.

The closed form (`derive`) is the ledger's own trace as a program whose sizes are formulas: what it predicts is the
allocated peak, to the byte but for rounding. Reserved bytes, which are what runs out, are larger by fragmentation,
which has no formula: the program is played through the allocator's model (`reserved`). Sizes are exact however large
they are; a prediction of more than 8 EiB, which no file can hold and no machine has, is refused in words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf

import numpy as np
from numpy.typing import NDArray

from srsplan.models.config import Configuration
from srsplan.models.errors import InputError
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.files import read_program
from srsplan.profiler.memory.program import Bytes, Program

LARGEST_BYTES = 2**63
"""8 EiB: sizes in plans and records are below."""


@dataclass(frozen=True)
class Memory:
    """Predicted memory of a configuration, in bytes: allocated <= reserved <= upper, where no profile corrects it."""

    allocated_bytes: int
    """Peak of what tensors take during a training step."""
    reserved_bytes: int
    """Expected peak of what the process holds of the card, CUDA context excluded."""
    evaluation_bytes: int
    """Peak of what tensors take during evaluation."""
    upper_bytes: int
    """Bytes that must fit: the peak reserved with batches of many shapes and evaluations between them."""
    basis: str
    """Source of the figures."""
    breakdown_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the allocated peak by what holds them; they add up to it."""


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Measured reserved bytes as multiples of the predicted ones."""

    reserved: float
    """The multiple to expect."""
    upper: float
    """The multiple at worst, never below `reserved`."""
    basis: str
    """Source of both."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.reserved <= self.upper < inf:
            raise ValueError(f"ratios are not 1 <= {self.reserved} <= {self.upper}")


class MemoryModel:
    """The memory of any configuration by the closed forms that ship, corrected by a profile where there is one."""

    def __init__(self, measured: Ratios | None = None) -> None:
        """Predict without a profile, or with the ratios that one measured."""
        self.measured = measured
        self._known: dict[tuple[Configuration, int, int, float], lifetime.Reserved | None] = {}
        self._read: dict[tuple[str, bool], Program] = {}
        self._evaluated: dict[tuple[object, ...], int] = {}

    def program(self, loss: str, configuration: Configuration, many_chunks: bool) -> Program:
        """Return the closed form of a loss (or of "evaluation"); InputError for a depth that has none."""
        key, averaged = expressions.program_key(loss, configuration, many_chunks), configuration.ema is not None
        if (key, averaged) not in self._read:
            document = read_program(configuration.model, key)
            if document is None:
                blocks = configuration.architecture.blocks
                raise InputError(f"blocks {blocks}: no memory model of that depth", "1 to 4 blocks are covered")
            program = Program.from_document(json.loads(document))
            self._read[key, averaged] = program.with_average() if averaged else program
        return self._read[key, averaged]

    def allocated(self, configurations: Sequence[Configuration]) -> Bytes:
        """Return the allocated training peaks of configurations that share loss, precision, depth and options."""
        first = configurations[0]
        if len(configurations) == 1:
            return expressions.integers([self._peak(first.loss, first, expressions.step_row(first))])
        return self._peaks(first.loss, first, expressions.step_values(configurations))

    def allocated_sizes(self, configurations: Sequence[Configuration]) -> list[int]:
        """Return the same as whole numbers."""
        return [int(peak) for peak in self.allocated(configurations)]

    def evaluation(self, configuration: Configuration, users: int, seen_pairs: int) -> int:
        """Return the allocated peak of evaluation with so many users, and pairs they have seen, in a batch."""
        sizes = configuration.catalog, configuration.architecture, configuration.precision, configuration.seq_len
        key = (
            *sizes,
            expressions.evaluation_tokens(configuration, users),
            users,
            seen_pairs,
            configuration.model,
            configuration.ema is not None,
        )  # nothing else of a configuration is in the programs of an evaluation
        if key not in self._evaluated:
            row = expressions.evaluation_row(configuration, users, seen_pairs)
            self._evaluated[key] = self._peak(expressions.EVALUATION, configuration, row)
        return self._evaluated[key]

    def _peak(self, loss: str, configuration: Configuration, row: expressions.Row) -> int:
        """Return the peak of one configuration; a loop's is that of one round."""
        count = min(expressions.chunks(row), 3)
        return self.program(loss, configuration, count > 1).peak(row, max(0, count - 2))

    def _peaks(self, loss: str, configuration: Configuration, values: expressions.Values) -> Bytes:
        """Walk once for what fits one chunk, for two chunks, and for more: a loop's peak is that of one round."""
        rounds = np.minimum(expressions.chunks(values), 3)
        groups: list[tuple[NDArray[np.bool_], Bytes]] = []
        for count in sorted({*map(int, rounds)}):
            chosen = rounds == count
            program = self.program(loss, configuration, count > 1)
            part = {name: array[chosen] for name, array in values.items()}
            groups.append((chosen, program.peaks(part, max(0, count - 2))))
        peaks = np.zeros(rounds.shape, dtype=np.result_type(*(found for _, found in groups)))
        for chosen, found in groups:
            peaks[chosen] = found
        return peaks

    def breakdown(self, configuration: Configuration) -> dict[str, int]:
        """Return the bytes by tag at the allocated peak of a training step, largest first."""
        row = expressions.step_row(configuration)
        chunks = expressions.chunks(row)
        program = self.program(configuration.loss, configuration, chunks > 1)
        return program.breakdown(row, min(1, max(0, chunks - 2)))

    def reserved(
        self, configuration: Configuration, users: int, seen_pairs: int, usable_bytes: float = inf
    ) -> lifetime.Reserved:
        """Return the peaks of what the process holds of the card, under a cap if it runs there.

        This takes some 10 milliseconds.
        """
        found = self._under(configuration, users, seen_pairs, usable_bytes)
        found = found or self._under(configuration, users, seen_pairs, inf)
        assert found is not None, "without a cap everything runs"
        return found

    def fits(self, configuration: Configuration, users: int, seen_pairs: int, usable_bytes: int) -> bool:
        """Say whether the upper bound is within so many bytes; faster than `reserved` where it is not."""
        return self._under(configuration, users, seen_pairs, usable_bytes) is not None

    def _under(
        self, configuration: Configuration, users: int, seen_pairs: int, usable_bytes: float
    ) -> lifetime.Reserved | None:
        """Play the process under a cap; None where it does not run there. What was played is remembered."""
        key = configuration, users, seen_pairs, usable_bytes
        if key not in self._known:
            cap = usable_bytes / self._worst
            played = lifetime.reserved_under(cap, configuration, users, seen_pairs, self.program)
            self._known[key] = None if played is None else self._corrected(played)
        return self._known[key]

    @property
    def _worst(self) -> float:
        return self.measured.upper if self.measured else 1.0

    def _corrected(self, played: lifetime.Reserved) -> lifetime.Reserved:
        """Return the measured multiples of what was played; `Ratios` keeps expected below upper."""
        if self.measured is None:
            return played
        expected, upper = Fraction(self.measured.reserved), Fraction(self.measured.upper)
        return lifetime.Reserved(int(played.expected * expected), int(played.upper * upper))

    def predict(self, configuration: Configuration, users: int, seen_pairs: int, usable_bytes: float = inf) -> Memory:
        """Return everything about one configuration, the breakdown included.

        Evaluation has batches of `users` with `seen_pairs` (user, seen item) pairs; `usable_bytes` is the cap that it
        has to run under. InputError where it takes more than 8 EiB.
        """
        found = self.reserved(configuration, users, seen_pairs, usable_bytes)
        if found.upper >= LARGEST_BYTES:
            raise _too_large(configuration)
        breakdown = self.breakdown(configuration)
        basis = "the same step replayed through the allocator's model (simulated)"
        return Memory(
            allocated_bytes=sum(breakdown.values()),
            reserved_bytes=found.expected,
            evaluation_bytes=self.evaluation(configuration, users, seen_pairs),
            upper_bytes=found.upper,
            basis=f"allocated: closed form of the ledger; reserved: {self.measured.basis if self.measured else basis}",
            breakdown_bytes=breakdown,
        )


def _too_large(configuration: Configuration) -> InputError:
    from srsplan.models.schema import shown

    sizes = f"batch_size {shown(configuration.batch_size)} and seq_len {shown(configuration.seq_len)}"
    return InputError(
        f"{configuration.loss!r} with {sizes} takes more than 8 EiB", "give sizes that a machine can have"
    )
