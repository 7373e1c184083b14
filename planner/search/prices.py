"""The price of a configuration: memory in training and evaluation, whether it fits a budget, and the time of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from srsplan.models.config import Configuration
from srsplan.planner import step_time as timing
from srsplan.planner.budget import Budget
from srsplan.planner.search.recommendation import Choice
from srsplan.planner.several_gpus import Layout, layouts
from srsplan.planner.step_time import ASSUMED, Rates
from srsplan.planner.workload import Workload
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import Gpu

EVALUATION_USERS = (64, 1024)
"""Evaluation batches: smaller ones waste the GPU, larger ones gain nothing."""

TRIES = 60
"""Replays of one search step: each takes a few milliseconds."""

LEAST_SHARE = 0.65
"""Reserved bytes are at most 1.5 times the bytes of tensors: up to this share of the budget every peak fits."""


class Prices:
    """Prices configurations against a budget on a card; what was priced once is remembered."""

    def __init__(
        self, workload: Workload, budget: Budget, gpu: Gpu, model: MemoryModel, rates: Rates = ASSUMED
    ) -> None:
        """Take the constants of the step-time model, `rates`, and a memory `model`; both may come from a profile."""
        self.workload, self.budget, self.gpu, self.model, self.rates = workload, budget, gpu, model, rates
        self._peaks: dict[Configuration, int] = {}
        self._users: dict[Configuration, int] = {}

    def choice(self, configuration: Configuration, why: str = "") -> Choice:
        """Return everything about one configuration, whether it fits or not."""
        users, known = self.evaluation_users(configuration), self.workload.users
        pairs, usable = self.seen_pairs(users, configuration), self.budget.usable_bytes
        return Choice(
            configuration=configuration,
            memory=self.model.predict(configuration, users, pairs, usable),
            evaluation_users=users,
            step_ms=self.step_ms(configuration),
            steps_per_epoch=None if known is None else -(-known // configuration.batch_size),
            why=why,
        )

    def fits(self, configuration: Configuration) -> bool:
        """Tell whether everything a process may reserve, evaluation included, is within the budget."""
        users = self.evaluation_users(configuration)
        pairs = self.seen_pairs(users, configuration)
        return self.model.fits(configuration, users, pairs, self.budget.usable_bytes)

    def allocated(self, configurations: Sequence[Configuration]) -> list[int]:
        """Return the allocated peaks of a training step, for configurations of any losses."""
        unknown: dict[str, list[Configuration]] = {}
        for each in configurations:
            if each not in self._peaks:
                unknown.setdefault(each.loss, []).append(each)
        for same in unknown.values():
            self._peaks |= zip(same, self.model.allocated(same).tolist(), strict=True)
        return [self._peaks[each] for each in configurations]

    def within(self, configurations: Sequence[Configuration], share: float = 1.0) -> list[Configuration]:
        """Return those whose tensors alone take at most a share of the budget; fragmentation decides later."""
        limit = share * self.budget.usable_bytes
        peaks = zip(configurations, self.allocated(configurations), strict=True)
        return [each for each, peak in peaks if peak <= limit]

    def first_fitting(self, ordered: Iterable[Configuration], count: int = 1) -> list[Configuration]:
        """Return the first of an order that fit, of different sequence lengths: a choice, not three times the same."""
        picked, tries = list[Configuration](), TRIES
        for configuration in ordered:
            if len(picked) == count or not tries:
                break
            if all(configuration.seq_len != other.seq_len for other in picked):
                tries -= 1
                picked += [configuration] if self.fits(configuration) else []
        return picked

    def step_ms(self, configuration: Configuration) -> float:
        """Return the milliseconds of a training step on the card."""
        return timing.step_ms(configuration, self.gpu, self.rates)

    def token_ms(self, configuration: Configuration) -> float:
        """Return the milliseconds of a step for each valid token of it."""
        return self.step_ms(configuration) / configuration.fullest_tokens

    def smallest_cap(self, choice: Choice) -> int:
        """Return the bytes from which on every cap of reserved bytes is safe and fast; smaller caps may be so too."""
        pairs = self.seen_pairs(choice.evaluation_users, choice.configuration)
        return lifetime.smallest_cap(choice.configuration, choice.evaluation_users, pairs, self.model.program)

    def on_several(self, choice: Choice, gpus: int) -> tuple[Layout, ...]:
        """Return what each of several GPUs would need for a choice, by the way they are used; nothing for one GPU."""
        if gpus == 1:
            return ()
        users = choice.evaluation_users
        return layouts(choice.configuration, gpus, self.model, users, self.seen_pairs(users, choice.configuration))

    def evaluation_users(self, configuration: Configuration) -> int:
        """Return the largest evaluation batch, a power of two, that needs no more than training; 64 where none does.

        Where 64 users do not fit the budget either, the batch is smaller; 1 is the least, whether it fits or not.
        """
        if configuration not in self._users:
            self._users[configuration] = self._largest_evaluation(configuration)
        return self._users[configuration]

    def _largest_evaluation(self, configuration: Configuration) -> int:
        (training,), (smallest, users) = self.allocated([configuration]), EVALUATION_USERS
        while users > smallest and self._evaluation(configuration, users) > training:
            users //= 2
        while users > 1 and self._evaluation(configuration, users) > max(training, self.budget.usable_bytes):
            users //= 2
        return users

    def _evaluation(self, configuration: Configuration, users: int) -> int:
        return self.model.evaluation(configuration, users, self.seen_pairs(users, configuration))

    def seen_pairs(self, users: int, configuration: Configuration) -> int:
        """Return how many items a batch of so many users has seen, at most; whole sequences where nothing is known."""
        return self.workload.seen_pairs(users) or users * configuration.seq_len
