"""The neighbours of a choice: configurations that nearly fit, and the cost of one step of each knob."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.planner.search.prices import LEAST_SHARE, TRIES, Prices
from srsplan.planner.search.recommendation import Choice, Knob, Miss
from srsplan.planner.search.space import Space

NEAR_MISSES = 3
STEPS = (("x 2", 2.0), ("/ 2", 0.5))


def near_misses(
    pool: Sequence[Configuration], first: Configuration | None, prices: Prices, count: int = NEAR_MISSES
) -> tuple[Miss, ...]:
    """Return those least over budget: of the first choice's loss if they rank above it; without one, of any loss."""
    if first is not None:
        pool = [each for each in pool if each.loss == first.loss and each.balance >= first.balance]
    peaks = dict(zip(pool, prices.allocated(pool), strict=True))
    at_least = prices.budget.usable_bytes * LEAST_SHARE
    nearest = sorted((each for each in pool if peaks[each] > at_least), key=lambda each: (peaks[each], -each.balance))
    misses = list[Miss]()
    for configuration in nearest[:TRIES]:
        memory = prices.choice(configuration).memory
        over = memory.upper_bytes - prices.budget.usable_bytes
        if over > 0:
            misses.append(Miss(configuration=configuration, memory=memory, over_bytes=over))
        if len(misses) == count:
            break
    return tuple(sorted(misses, key=lambda miss: miss.over_bytes))


def knob_costs(choice: Choice, space: Space, prices: Prices) -> tuple[Knob, ...]:
    """Return the changes of a choice's allocated peak when each knob is doubled or halved."""
    steps = list(_steps(choice.configuration, space))
    peaks = prices.allocated([other for _, _, other in steps])
    return tuple(
        Knob(name=name, change=change, bytes=peak - choice.memory.allocated_bytes)
        for (name, change, _), peak in zip(steps, peaks, strict=True)
    )


def _steps(base: Configuration, space: Space) -> Iterator[tuple[str, str, Configuration]]:
    knobs: dict[str, int] = {"batch_size": base.batch_size, "seq_len": base.seq_len}
    if base.negatives is not None and not LOSSES[base.loss].fixed_negatives:
        knobs["negatives"] = base.negatives
    for name, value in knobs.items():
        for change, factor in STEPS:
            stepped = int(value * factor)
            if stepped < 1 or (name == "negatives" and stepped >= space.catalog):
                continue
            sizes = {**knobs, name: stepped}
            negatives = sizes.get("negatives", base.negatives)
            yield name, change, space.configuration(base.loss, sizes["batch_size"], sizes["seq_len"], negatives)
