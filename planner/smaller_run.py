"""A smaller run for a first look: about two minutes on this machine, by measurement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from srsplan.models.config import Architecture, Configuration
from srsplan.models.training.pace import Pace, measure
from srsplan.models.training.run import Order, RunData

LONG_SECONDS = 300.0
"""A run that takes longer is offered with a smaller one beside it."""
SMALLER_SECONDS = 120.0
FEWEST_EPOCHS = 8
"""With fewer, a model has hardly begun to learn: a smaller model is tried instead."""
SIZES = ((64, 50), (32, 50), (32, 20), (16, 20))
"""Hidden sizes and sequence lengths to try, the best first."""


@dataclass(frozen=True, kw_only=True)
class SmallerRun:
    """A configuration to train instead, and the time that it takes."""

    configuration: Configuration
    epochs: int
    seconds: float


def smaller_run(order: Order, data: RunData, pace: Pace) -> SmallerRun:
    """Return the largest model of which enough epochs take about two minutes; `pace` is that of the order itself.

    Smaller sizes are measured, one after the other, until one is fast enough; the last one is taken as it is.
    """
    configuration = order.configuration
    smaller = _smaller(configuration)
    while pace.run_seconds(FEWEST_EPOCHS) > SMALLER_SECONDS:
        following = next(smaller, None)
        if following is None:
            break
        configuration, pace = following, measure(replace(order, configuration=following), data)
    fitting = int((SMALLER_SECONDS - pace.test_seconds) / pace.epoch_seconds)
    epochs = max(1, min(order.settings.epochs, fitting))
    return SmallerRun(configuration=configuration, epochs=epochs, seconds=pace.run_seconds(epochs))


def _smaller(configuration: Configuration) -> Iterator[Configuration]:
    """Yield smaller and smaller configurations."""
    sizes = configuration.architecture
    for dim, seq_len in SIZES:
        if dim <= sizes.dim and (dim, seq_len) != (sizes.dim, configuration.seq_len):
            heads = max(heads for heads in range(1, sizes.heads + 1) if dim % (8 * heads) == 0)
            architecture = Architecture(dim=dim, blocks=sizes.blocks, heads=heads, dropout=sizes.dropout)
            yield replace(configuration, architecture=architecture, seq_len=min(seq_len, configuration.seq_len))
