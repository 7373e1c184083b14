"""A choice of the coarse grid, grown into the memory that the grid leaves free."""

from __future__ import annotations

from srsplan.models.config import Configuration
from srsplan.planner.search.order import balance
from srsplan.planner.search.prices import Prices
from srsplan.planner.search.space import Space


def grown(base: Configuration, space: Space, prices: Prices, *, longer: bool = True) -> Configuration:
    """Return the best configuration that fits between `base` and the next ones of the grid; then the largest batch.

    The sequence length stays as it is unless `longer`.
    """
    finer = sorted(
        prices.within(space.between(base, longer)),
        key=lambda each: (balance(each), each.seq_len, each.batch_size),
        reverse=True,
    )
    return next(iter(prices.first_fitting(finer)), base)
