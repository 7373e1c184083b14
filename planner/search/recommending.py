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


def recommend(space: Space, prices: Prices, order: Order = BALANCE, *, every_loss: bool = True) -> Recommendation:
    """Order what fits memory and time; a recommendation without choices names the nearest misses.

    The choices are those of the preferred loss, and with `every_loss` the best of every other one.
    """
    everything = {loss: order.sort(space.candidates(loss)) for loss in space.losses}
    ordered = {loss: [each for each in all_of if prices.in_time(each)] for loss, all_of in everything.items()}
    choices = _choices(ordered, space, prices, order, every_loss)
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


def _preferred(ordered: dict[str, list[Configuration]], prices: Prices) -> tuple[str | None, list[Configuration]]:
    """Return the loss to try first and the first of its configurations that fit; none where nothing does.

    Losses are compared by what their tensors alone allow, which takes no replay.
    """
    guesses = {loss: guess for loss, each in ordered.items() if (guess := prices.guess(each)) is not None}
    while guesses:
        best = preferred_loss(guesses, prices)
        if picked := prices.first_fitting(ordered[best], CHOICES) or _top(ordered[best], prices):
            return best, picked
        del guesses[best]
    return None, []


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
    ordered: dict[str, list[Configuration]], space: Space, prices: Prices, order: Order, every_loss: bool
) -> tuple[Choice, ...]:
    """Return three of the preferred loss, then the best of every other loss; none where nothing fits.

    Each is grown between the points of the grid, and ordered only then: growth changes what the rule looks at.
    """
    best, picked = _preferred(ordered, prices)
    if best is None:
        return ()
    first, *others = picked
    larger = [grown(first, space, prices), *(grown(each, space, prices, longer=False) for each in others)]
    first, *others = order.sort([*map(prices.settled, larger)], among=ordered[best])
    rest = [loss for loss in ordered if loss != best] if every_loss else []
    tops = [prices.settled(grown(top, space, prices)) for loss in rest for top in _top(ordered[loss], prices)]
    return (
        prices.choice(first, order.rule),
        *(prices.choice(each, order.why(each, first)) for each in others),
        *(
            prices.choice(each, f"best of {LOSSES[each.loss].title}")
            for each in sorted(tops, key=lambda each: (balance(each), each.seq_len), reverse=True)
        ),
    )
