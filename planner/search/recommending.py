"""The search itself: from a space, prices and an order to a recommendation."""

from __future__ import annotations

from itertools import takewhile

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.planner.passes import SMALL_PASS
from srsplan.planner.search.growth import grown
from srsplan.planner.search.neighbours import knob_costs, near_misses, pass_costs
from srsplan.planner.search.order import BALANCE, Order, balance, preferred_loss
from srsplan.planner.search.prices import LEAST_SHARE, Prices
from srsplan.planner.search.recommendation import Choice, Recommendation
from srsplan.planner.search.space import Space

CHOICES = 3
"""Choices of the preferred loss; every other loss has one."""


def recommend(space: Space, prices: Prices, order: Order = BALANCE) -> Recommendation:
    """Order what fits memory and time; a recommendation without choices names the nearest misses."""
    everything = {loss: order.sort(space.candidates(loss)) for loss in space.losses}
    ordered = {loss: [each for each in all_of if prices.in_time(each)] for loss, all_of in everything.items()}
    tops = {loss: top for loss, each in ordered.items() for top in _top(each, prices)}
    choices = _choices(ordered, tops, space, prices, order) if tops else ()
    first = choices[0] if choices else None
    pool = [each for all_of in everything.values() for each in all_of]
    return Recommendation(
        choices=choices,
        near_misses=near_misses(pool, first.configuration if first else None, prices),
        knobs=knob_costs(first, space, prices) if first else (),
        passes=pass_costs(first, prices) if first else (),
        considered=len(pool),
        too_slow=_too_slow(everything[first.configuration.loss], first.configuration, prices) if first else 0,
    )


def _top(ordered: list[Configuration], prices: Prices) -> list[Configuration]:
    """Return the first that fits, or, where the tries do not suffice, the first that surely does; none or one.

    Passes that are too small for a GPU are tried only where no others fit.
    """
    for least in (SMALL_PASS, 1):
        for share in (1.0, LEAST_SHARE):
            if found := prices.first_fitting(ordered, least=least, share=share):
                return found
    peaks = dict(prices.priced(ordered, 1))
    return prices.first_fitting(sorted(ordered, key=lambda each: peaks[each])[:1], least=1)


def _too_slow(ordered: list[Configuration], first: Configuration, prices: Prices) -> int:
    """Return how many that rank above the first choice are not in time."""
    best = balance(first), first.seq_len
    above = takewhile(lambda each: (balance(each), each.seq_len) > best, ordered)
    return sum(not prices.in_time(each) for each in above) if prices.time is not None else 0


def _choices(
    ordered: dict[str, list[Configuration]],
    tops: dict[str, Configuration],
    space: Space,
    prices: Prices,
    order: Order,
) -> tuple[Choice, ...]:
    """Return three of the preferred loss, then the best of every other loss.

    Each is grown between the points of the grid, and ordered only then: growth changes what the rule looks at.
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
