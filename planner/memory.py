"""The memory of a configuration from the closed form: no torch, thousands of configurations at once.

The closed form (profiler/derive.py) is the ledger's own trace as formulas: at the last derivation it equalled the
ledger to the byte on almost every configuration tried. What it predicts is the allocated peak. Reserved bytes, which
are what runs out, are larger by fragmentation, which has no formula: the allocator's model replays random
configurations of every loss, and the plan expects the median and keeps room for the worst of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srsplan.models.config import Configuration
from srsplan.models.errors import InputError
from srsplan.profiler import expressions

Bytes = NDArray[np.int64]
GRANULE_BYTES = 512


@dataclass(frozen=True)
class Memory:
    """Predicted memory of a configuration, bytes."""

    allocated_bytes: int
    """Peak of what tensors take during a training step."""
    reserved_bytes: int
    """Expected peak of what the process holds of the card, CUDA context excluded."""
    evaluation_bytes: int
    """Peak of what tensors take during evaluation."""
    upper_bytes: int
    """What must fit: the larger of training and evaluation at the worst ratio."""
    basis: str
    """Where the figures come from."""
    breakdown_bytes: Mapping[str, int] = field(default_factory=dict)
    """Who holds the allocated peak; adds up to it."""


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Reserved bytes as a multiple of the allocated peak plus a little: expected, at worst, and where that is from."""

    reserved: float
    upper: float
    slack_bytes: int
    basis: str

    def upper_bytes(self, allocated: int) -> int:
        """What must fit."""
        return int(allocated * self.upper) + self.slack_bytes


class ClosedForm:
    """One loss, precision and depth: the instants at which memory can peak."""

    def __init__(self, instants: Sequence[Sequence[tuple[str, str, int]]]) -> None:
        """`instants`: live storages as (tag, expression, count)."""
        self._instants = [[(tag, text, count) for tag, text, count in instant] for instant in instants]

    def totals(self, values: expressions.Values) -> Bytes:
        """Allocated bytes of every instant (rows) for every configuration (columns)."""
        sizes: dict[str, Bytes] = {}
        for text in {text for instant in self._instants for _, text, _ in instant}:
            size = expressions.evaluate(text, values)
            sizes[text] = -(-size // GRANULE_BYTES) * GRANULE_BYTES
        return np.stack([sum(count * sizes[text] for _, text, count in instant) for instant in self._instants])

    def peaks(self, values: expressions.Values) -> Bytes:
        """Allocated peak of every configuration."""
        peaks: Bytes = self.totals(values).max(0)
        return peaks

    def breakdown(self, values: expressions.Values) -> dict[str, int]:
        """Bytes by tag at the peak of the first configuration, largest first."""
        instant = self._instants[int(self.totals(values)[:, 0].argmax())]
        sums: dict[str, int] = {}
        for tag, text, count in instant:
            size = int(expressions.evaluate(text, values)[0])
            sums[tag] = sums.get(tag, 0) + count * -(-size // GRANULE_BYTES) * GRANULE_BYTES
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


class MemoryModel:
    """Every closed form that ships, and the ratios of reserved to allocated bytes."""

    def __init__(self, measured: Ratios | None = None) -> None:
        """`measured` ratios take the place of the simulated ones that ship."""
        self._measured = measured

    @cached_property
    def _document(self) -> dict[str, Any]:
        text = files("srsplan.planner.data").joinpath("closed_form.json").read_text()
        document: dict[str, Any] = json.loads(text)
        return document

    def ratios(self, configuration: Configuration) -> Ratios:
        """What fragmentation adds for a configuration's loss and precision."""
        if self._measured is not None:
            return self._measured
        width = "fp32" if configuration.precision == "fp32" else "fp16"
        found = self._document["ratios"][f"{configuration.loss}/{width}"]
        basis = f"allocator replayed for {found['samples']} configurations (simulated), expected {found['median']:.2f}"
        return Ratios(
            reserved=max(1.0, found["median"]),
            upper=found["largest"],
            slack_bytes=self._document["slack_bytes"],
            basis=f"{basis}, worst {found['largest']:.2f} times allocated",
        )

    @cache  # noqa: B019 - one model per process
    def form(self, loss: str, precision: str, blocks: int) -> ClosedForm:
        """The closed form of a loss (or "evaluation"); InputError for a depth that has none."""
        key = f"{loss}/{precision}/{blocks}"
        forms = self._document["forms"]
        if key not in forms:
            raise InputError(f"blocks {blocks}: no memory model of that depth", "1 to 4 blocks are covered")
        return ClosedForm(forms[key])

    def allocated(self, configurations: Sequence[Configuration]) -> Bytes:
        """Allocated training peaks of configurations that share loss, precision and depth."""
        first = configurations[0]
        form = self.form(first.loss, first.precision, first.architecture.blocks)
        return form.peaks(expressions.step_values(configurations))

    def evaluation(self, configuration: Configuration, users: int, seen_pairs: int) -> int:
        """Allocated peak of evaluation with so many users in a batch."""
        form = self.form("evaluation", configuration.precision, configuration.architecture.blocks)
        return int(form.peaks(expressions.evaluation_values(configuration, users, seen_pairs))[0])

    def predict(self, configuration: Configuration, users: int, seen_pairs: int) -> Memory:
        """Everything about one configuration, the breakdown included."""
        form = self.form(configuration.loss, configuration.precision, configuration.architecture.blocks)
        values = expressions.step_values([configuration])
        allocated, evaluation = int(form.peaks(values)[0]), self.evaluation(configuration, users, seen_pairs)
        ratios = self.ratios(configuration)
        return Memory(
            allocated_bytes=allocated,
            reserved_bytes=int(allocated * ratios.reserved) + ratios.slack_bytes,
            evaluation_bytes=evaluation,
            upper_bytes=ratios.upper_bytes(max(allocated, evaluation)),
            basis=f"allocated: closed form of the ledger; reserved: {ratios.basis}",
            breakdown_bytes=form.breakdown(values),
        )
