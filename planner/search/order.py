"""The rule that says which configuration to try first.

The rule has evidence: on 747 public runs of five datasets, in 37 combinations of dataset and budget, the configuration
with the largest min(batch size, negatives) that fits, with ties to the longer sequence, loses on average 12.0% of the
best NDCG with the first pick and 6.9% with the best of three; a random pick loses 30.1% and 16.8%
(tests/planner/test_quality.py measures it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.planner.search.prices import Prices

FULL_SOFTMAX_PATIENCE = 2.0
"""A full softmax is preferred while it takes at most so many times the sampled loss's time per token."""

EVIDENCE_ENDS = {"batch_size": 1024, "negatives": 2048}
"""The largest values of the public runs behind the rule."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A rule that orders configurations of one loss, and says why."""

    rule: str
    """The rule in words."""
    rank: Callable[[Sequence[Configuration]], list[int]]
    """Positions of configurations, the one to try first in front."""
    why: Callable[[Configuration, Configuration], str]
    """Returns the reason, in words, why its first argument stands below its second."""

    def sort(self, configurations: Sequence[Configuration], among: Sequence[Configuration] = ()) -> list[Configuration]:
        """Return configurations in the order to try them, ranked `among` others where the rule depends on company."""
        everyone = [*configurations, *among]
        return [everyone[at] for at in self.rank(everyone) if at < len(configurations)]


def balance(configuration: Configuration) -> int:
    """Return min(batch size, negatives), or the batch size for a loss whose negatives a plan does not choose."""
    usual = LOSSES[configuration.loss].usual_negatives
    return configuration.batch_size if usual else configuration.balance


def _by_balance(configurations: Sequence[Configuration]) -> list[int]:
    """Rank by the largest balance, then the longer sequences, then the fewer scores, which is faster."""
    keys = [(-balance(each), -each.seq_len, each.batch_size * (each.negatives or 1)) for each in configurations]
    return sorted(range(len(keys)), key=lambda index: keys[index])


def _below_in_balance(configuration: Configuration, first: Configuration) -> str:
    length = "longer" if configuration.seq_len > first.seq_len else "shorter"
    same = balance(configuration) == balance(first)
    return f"{length} sequences at {'the same balance' if same else f'min(bs, ns) {balance(configuration):,}'}"


BALANCE = Order(
    rule="largest min(batch size, negatives) that fits, then the longest sequence",
    rank=_by_balance,
    why=_below_in_balance,
)


def preferred_loss(tops: Mapping[str, Configuration], prices: Prices) -> str:
    """Return the loss to try first, from the best configuration of each.

    The full softmax while it costs little more time per token, otherwise the sampled loss; a baseline only where
    nothing else is left. Among forms of one function, the better balance; then the faster.
    """

    def merit(loss: str) -> tuple[int, float]:
        return tops[loss].balance, -prices.token_ms(tops[loss])

    full = [loss for loss in tops if not LOSSES[loss].sampled]
    sampled = [loss for loss in tops if LOSSES[loss].sampled and not LOSSES[loss].baseline]
    if not full or not sampled:
        return max(full or sampled or tops, key=merit)
    full_best, sampled_best = max(full, key=merit), max(sampled, key=merit)
    affordable = FULL_SOFTMAX_PATIENCE * prices.token_ms(tops[sampled_best])
    return full_best if prices.token_ms(tops[full_best]) <= affordable else sampled_best
