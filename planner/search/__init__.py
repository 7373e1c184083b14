"""The search: which configurations fit a budget, and which of them to try first.

space.py            which configurations are candidates, on a coarse grid and between its points
prices.py           what a configuration takes, whether it fits, how long a step is
order.py            the rule that says which to try first, and its reason in words
growth.py           a choice grown between the points of the grid
neighbours.py       what nearly fits, what other passes take, and what one step of a knob costs
recommendation.py   the answer
recommending.py     the search itself
"""

from srsplan.kernels.losses import TOKENS_PER_SET
from srsplan.planner.search.order import BALANCE, Order
from srsplan.planner.search.prices import Prices
from srsplan.planner.search.recommendation import Choice, Confirmed, Knob, Miss, Recommendation
from srsplan.planner.search.recommending import recommend
from srsplan.planner.search.space import Space

__all__ = [
    "BALANCE", "TOKENS_PER_SET", "Choice", "Confirmed", "Knob", "Miss", "Order", "Prices", "Recommendation", "Space",
    "recommend",
]  # fmt: skip
