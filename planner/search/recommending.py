"""The search itself: from a space, prices and an order to a recommendation."""

from __future__ import annotations

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.planner.search.growth import grown
from srsplan.planner.search.neighbours import knob_costs, near_misses
from srsplan.planner.search.order import BALANCE, Order, balance, preferred_loss
from srsplan.planner.search.prices import LEAST_SHARE, Prices
from srsplan.planner.search.recommendation import Choice, Recommendation
from srsplan.planner.search.space import Space

CHOICES = 3
"""Choices of the preferred loss; every other loss has one."""


def recommend(space: Space, prices: Prices, order: Order = BALANCE) -> Recommendation:
    """Order what fits; a recommendation without choices names the nearest misses."""
    pool = {loss: space.candidates(loss) for loss in space.losses}
    ordered = {loss: order.sort(prices.within(candidates)) for loss, candidates in pool.items()}
    tops = {loss: top for loss, each in ordered.items() for top in _top(each, prices)}
    everything = [each for candidates in pool.values() for each in candidates]
    choices = _choices(ordered, tops, space, prices, order) if tops else ()
    return Recommendation(
        choices=choices,
        near_misses=near_misses(everything, choices[0].configuration if choices else None, prices),
        knobs=knob_costs(choices[0], space, prices) if choices else (),
        considered=len(everything),
    )


def _top(ordered: list[Configuration], prices: Prices) -> list[Configuration]:
    """Return the first that fits, or, where the tries do not suffice, the first that surely does; none or one."""
    return prices.first_fitting(ordered) or prices.first_fitting(prices.within(ordered, LEAST_SHARE))


def _choices(
    ordered: dict[str, list[Configuration]],
    tops: dict[str, Configuration],
    space: Space,
    prices: Prices,
    order: Order,
) -> tuple[Choice, ...]:
    """Return three of the preferred loss, then the best of every other loss.

    Each is grown into the memory that is left, and ordered only then: growth changes what the rule looks at.
    """
    best = preferred_loss(tops, prices)
    first, *others = prices.first_fitting(ordered[best], CHOICES) or [tops[best]]
    larger = [grown(first, space, prices), *(grown(each, space, prices, longer=False) for each in others)]
    first, *others = order.sort(larger, among=ordered[best])
    rest = [grown(top, space, prices) for loss, top in tops.items() if loss != best]
    return (
        prices.choice(first, order.rule),
        *(prices.choice(each, order.why(each, first)) for each in others),
        *(
            prices.choice(each, f"best of {LOSSES[each.loss].title}")
            for each in sorted(rest, key=lambda each: (balance(each), each.seq_len), reverse=True)
        ),
    )
