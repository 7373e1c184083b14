"""The neighbours of a choice: configurations that nearly fit, other passes, and the cost of one step of each knob."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.planner.passes import SMALL_PASS, with_whole_pass
from srsplan.planner.search.prices import LEAST_SHARE, TRIES, Prices
from srsplan.planner.search.recommendation import Choice, Knob, Miss, PassCost
from srsplan.planner.search.space import Space

NEAR_MISSES = 3
STEPS = (("x 2", 2.0), ("/ 2", 0.5))
SMALLER_PASSES = (2, 8)
"""Passes of a half and an eighth are shown."""


def near_misses(
    pool: Sequence[Configuration], first: Configuration | None, prices: Prices, count: int = NEAR_MISSES
) -> tuple[Miss, ...]:
    """Return those least over budget in the smallest passes that are tried.

    Of the first choice's loss if they rank above it; without one, of any loss.
    """
    if first is not None:
        above = first.balance, first.seq_len
        pool = [each for each in pool if each.loss == first.loss and (each.balance, each.seq_len) > above]
    least = SMALL_PASS if first is not None else 1
    pool = [*dict.fromkeys(each for variants in prices.lightest(pool, least) for each in variants)]
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


def pass_costs(choice: Choice, prices: Prices) -> tuple[PassCost, ...]:
    """Return what a choice takes in its own passes, in smaller ones, and in one pass where that does not fit."""
    own, whole = choice.configuration, with_whole_pass(choice.configuration, prices.workload)
    least = max(SMALL_PASS, own.seq_len)
    smaller = [own.tokens // part for part in SMALLER_PASSES]
    passes = [own, *(prices.cut(own, tokens) for tokens in smaller if tokens >= least)]
    return tuple(_pass_cost(each, prices) for each in [whole, *passes][whole.tokens <= own.tokens :])


def _pass_cost(configuration: Configuration, prices: Prices) -> PassCost:
    choice = prices.choice(configuration)
    upper = choice.memory.upper_bytes
    return PassCost(
        pass_tokens=configuration.tokens,
        passes=choice.passes,
        upper_bytes=upper,
        step_ms=choice.step_ms,
        fits=upper <= prices.limit,
    )


def knob_costs(choice: Choice, space: Space, prices: Prices) -> tuple[Knob, ...]:
    """Return the changes of a choice's allocated peak when a knob that takes memory is doubled or halved."""
    steps = list(_steps(choice.configuration, space, prices))
    peaks = prices.allocated([other for _, _, other in steps])
    return tuple(
        Knob(name=name, change=change, bytes=peak - choice.memory.allocated_bytes)
        for (name, change, _), peak in zip(steps, peaks, strict=True)
    )


def _steps(base: Configuration, space: Space, prices: Prices) -> Iterator[tuple[str, str, Configuration]]:
    for change, factor in STEPS:
        tokens = int(base.tokens * factor)
        if base.seq_len <= tokens <= base.batch_tokens:
            yield "pass_tokens", change, prices.cut(base, tokens)
    if base.negatives is None or LOSSES[base.loss].usual_negatives:
        return
    for change, factor in STEPS:
        negatives = int(base.negatives * factor)
        if 1 <= negatives < space.catalog:
            yield "negatives", change, replace(base, negatives=negatives)
