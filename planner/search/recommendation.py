"""The answer of a search: choices in the order to try them, what nearly fits, and what one step of a knob costs."""

from __future__ import annotations

from dataclasses import dataclass

from srsplan.models.config import Configuration
from srsplan.profiler.memory.model import Memory


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """The result of trying a choice under a hard cap of the budget."""

    basis: str
    fits: bool
    allocated_bytes: int
    reserved_bytes: int
    retries: int | None
    """Times that the cap made the allocator give memory back in settled steps; None where they were not counted."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration with everything predicted about it."""

    configuration: Configuration
    memory: Memory
    evaluation_users: int
    """Users ranked at once."""
    step_ms: float
    """Milliseconds of a step of the mean batch."""
    step_tokens: float
    """Tokens of the mean batch."""
    passes: int
    """Passes of the mean batch."""
    steps_per_epoch: int | None
    """Steps of an epoch; None where the number of users is unknown."""
    why: str = ""
    confirmed: Confirmed | None = None

    @property
    def epoch_seconds(self) -> float | None:
        """The time of an epoch; None where the number of users is unknown."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.step_ms / 1e3

    @property
    def seconds_per_million(self) -> float:
        """The time that a million tokens take."""
        return 1e3 * self.step_ms / self.step_tokens


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What a choice takes in passes of another size."""

    pass_tokens: int
    passes: int
    """Passes of the mean batch."""
    upper_bytes: int
    """Bytes that must fit."""
    step_ms: float
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A configuration that does not fit, and by how much."""

    configuration: Configuration
    memory: Memory
    over_bytes: int


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The change of the allocated peak when one knob is doubled or halved."""

    name: str
    change: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Everything a search found. Without choices nothing fits, and the near misses say by how much."""

    choices: tuple[Choice, ...]
    near_misses: tuple[Miss, ...]
    knobs: tuple[Knob, ...]
    """Costs of the knobs of the first choice."""
    passes: tuple[PassCost, ...]
    """The first choice in passes of other sizes beside its own, the largest first."""
    considered: int
    """Configurations of the grid."""
    too_slow: int = 0
    """How many of them would stand above the first choice, but for the time limit."""
