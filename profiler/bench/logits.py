"""The logits that contestants are given: random ones of a deviation, and such as a trained model has. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("random", "trained")
DEVIATIONS = (0.8, 1.0)
"""Standard deviations of random logits: they decide how much of the softmax is small enough to be skipped."""


@dataclass(frozen=True)
class Logits:
    """A kind of logits; those of a trained model have no deviation that anybody chose."""

    kind: str = "random"
    deviation: float | None = 1.0

    @property
    def title(self) -> str:
        """The words that screens and lines have for it."""
        return (
            f"{self.kind} logits" if self.deviation is None else f"{self.kind} logits of deviation {self.deviation:g}"
        )


def logits_of(kinds: Sequence[str], deviations: Sequence[float]) -> list[Logits]:
    """Return the kinds as they are compared, in the order asked for: random ones once for each deviation."""
    found = []
    for kind in kinds:
        found += [Logits(kind, each) for each in deviations] if kind == "random" else [Logits(kind, None)]
    return found


def largest(logits: Sequence[Logits]) -> list[Logits]:
    """Return those that matter to a loss that skips nothing: of random logits the largest deviation alone."""
    most = max((each.deviation for each in logits if each.deviation is not None), default=None)
    return [each for each in logits if each.deviation == most or each.deviation is None]
