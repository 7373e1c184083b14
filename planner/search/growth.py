"""A choice of the coarse grid, grown between its points: negatives that memory has room for, sizes that time has."""

from __future__ import annotations

from srsplan.models.config import Configuration
from srsplan.planner.search.order import balance
from srsplan.planner.search.prices import Prices
from srsplan.planner.search.space import Space


def grown(base: Configuration, space: Space, prices: Prices, *, longer: bool = True) -> Configuration:
    """Return the best configuration that fits between `base`, which has its passes, and the next ones of the grid.

    The sequence length stays as it is unless `longer`.
    """
    finer = sorted(
        (each for each in space.between(base, longer) if prices.in_time(each)),
        key=lambda each: (balance(each), each.seq_len, each.batch_size),
        reverse=True,
    )
    return next(iter(prices.first_fitting(finer)), base)
