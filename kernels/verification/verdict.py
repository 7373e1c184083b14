"""What a check found: whether the kernels are right, how fast they are on which shape, and what follows, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ConfigDict

from srsplan.kernels.losses import Kernel
from srsplan.kernels.verification.race import Times
from srsplan.kernels.verification.subject import RunShape

REPORT = "report it as an issue of srsplan, with what `srsplan doctor --json` prints"
"""The way out where kernels are wrong: there is nothing that a user could change."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found. Reads back from a file by a strict schema."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    faults: list[str]
    """What is wrong, a phrase each; nothing where the kernels are right."""
    cases: int
    """Cases that were compared."""
    worst: float
    """The largest error as a share of what is allowed."""
    seconds: float
    """How long the check took, compilation included."""
    date: str
    lasting: bool = True
    """False where the check could not be done (memory, time): it says nothing about the kernels of this card."""
    times: dict[str, Times] = field(default_factory=dict)
    """Times on the shapes of runs, by their names."""

    @property
    def right(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.faults

    def kernel(self, shape: RunShape) -> Kernel:
        """Return the implementation to use for a run of this shape: the faster one that is right."""
        times = self.times.get(str(shape))
        return "triton" if self.right and times is not None and times.triton_wins else "chunked"

    def sentence(self, shape: RunShape) -> str:
        """Return why, with the figures, of kernels that are right."""
        return f"{self.checked()}; {_compared(self.times.get(str(shape)), shape)}"

    def checked(self) -> str:
        """Return what was compared, of kernels that are right."""
        errors = f"errors up to {self.worst:.0%} of what is allowed"
        return f"the Triton kernels are right in {self.cases} cases against float64 ({errors})"


def _compared(times: Times | None, shape: RunShape) -> str:
    if times is None:
        return "no time was taken"
    of = f"on {shape.tokens:,} tokens and {shape.catalog:,} items"
    if times.triton_ms is None:
        return f"they do not fit this card {of}"
    ours = f"they take {times.triton_ms:.3g} ms {of}"
    return f"{ours}, the chunked form " + ("does not fit" if times.chunked_ms is None else f"{times.chunked_ms:.3g} ms")


def failed(reason: str, date: str, *, lasting: bool) -> Verdict:
    """Return the verdict of a check that did not come to an end."""
    return Verdict(faults=[reason], cases=0, worst=0.0, seconds=0.0, date=date, lasting=lasting)
