"""The estimate of one configuration: an answer that can be asked for more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from srsplan.models.config import Configuration
from srsplan.planner.budget import Budget
from srsplan.planner.search.prices import Prices
from srsplan.planner.search.recommendation import Choice
from srsplan.planner.several_gpus import Layout
from srsplan.profiler.memory.model import Memory


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The memory and the step time of one configuration, and whether it fits a budget if there is one."""

    choice: Choice
    prices: Prices
    budget: Budget | None
    """The budget; None where neither a budget nor a card was named, and there is no verdict."""
    gpus: int
    step_basis: str

    @property
    def configuration(self) -> Configuration:
        """The configuration that was estimated."""
        return self.choice.configuration

    @property
    def memory(self) -> Memory:
        """Predicted bytes."""
        return self.choice.memory

    @property
    def step_ms(self) -> float:
        """Milliseconds of a training step on the card."""
        return self.choice.step_ms

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes that the budget leaves, negative where it does not suffice; None without a budget."""
        return None if self.budget is None else self.budget.usable_bytes - self.memory.upper_bytes

    @property
    def fits(self) -> bool | None:
        """True where the budget suffices; None without a budget."""
        return None if self.headroom_bytes is None else self.headroom_bytes >= 0

    @cached_property
    def smallest_cap_bytes(self) -> int:
        """Bytes from which on every cap is safe and fast; some smaller caps may be so as well."""
        return self.prices.smallest_cap(self.choice)

    @cached_property
    def several_gpus(self) -> tuple[Layout, ...]:
        """The needs of each of several GPUs, one layout for each way to use them; empty for one GPU."""
        return self.prices.on_several(self.choice, self.gpus)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain types for JSON."""
        from srsplan.planner.plan.making import choice_entry

        entry = choice_entry(1, self.choice, self.budget, self.step_basis).model_dump(exclude={"rank", "why"})
        return {
            "catalog": self.configuration.catalog,
            "dim": self.configuration.architecture.dim,
            "precision": self.configuration.precision,
            "gpu": self.prices.gpu.name,
            **entry,
            "fits": self.fits,
            "lengths": self.prices.workload.basis,
            "fixed_floor_bytes": self.configuration.table_copies * self.configuration.table_bytes,
            "smallest_cap_bytes": self.smallest_cap_bytes,
            "several_gpus": [asdict(layout) for layout in self.several_gpus],
        }
