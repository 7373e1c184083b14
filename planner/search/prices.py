"""The price of a configuration: memory in training and evaluation, whether it fits a budget, and the time of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from srsplan.models.config import Configuration
from srsplan.planner import step_time as timing
from srsplan.planner.budget import Budget
from srsplan.planner.passes import SMALL_PASS, larger_pass, largest_pass, passes_within, smallest_pass, with_pass
from srsplan.planner.search.recommendation import Choice
from srsplan.planner.several_gpus import Layout, layouts
from srsplan.planner.step_time import ASSUMED, Rates
from srsplan.planner.time_limit import TimeLimit
from srsplan.planner.workload import Workload
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import Gpu

EVALUATION_USERS = (64, 1024)
"""Evaluation batches: smaller ones waste the GPU, larger ones gain nothing."""

TRIES = 60
"""Configurations that one step of the search tries: each takes a few replays of some milliseconds."""

LESS = 0.99
"""Where tensors of a size did not fit, those of nearly the same size are not tried."""

RECOMPUTE_GAIN = 0.95
"""Blocks are recomputed where a step takes at most so much of the time: the calculation is not better than that."""

BLOCK = 16
"""Configurations whose tensors are priced together: nearly always one of the first fits."""

LEAST_SHARE = 0.65
"""Reserved bytes are at most 1.5 times the bytes of tensors: up to this share of the budget every peak fits."""


class Prices:
    """Prices configurations against a budget on a card; what was priced once is remembered."""

    def __init__(
        self,
        workload: Workload,
        budget: Budget,
        gpu: Gpu,
        model: MemoryModel,
        rates: Rates = ASSUMED,
        *,
        time: TimeLimit | None = None,
        may_recompute: bool = False,
    ) -> None:
        """Take the constants of the step-time model, `rates`, and a memory `model`; both may come from a profile.

        `time` is a second budget; with `may_recompute` blocks are recomputed where that makes a step faster.
        """
        self.workload, self.budget, self.gpu, self.model, self.rates = workload, budget, gpu, model, rates
        self.time, self.may_recompute = time, may_recompute
        self._peaks: dict[Configuration, int] = {}
        self._users: dict[Configuration, int] = {}
        self._shares: dict[str, float] = {}
        self._fitted: dict[tuple[Configuration, int], Configuration | None] = {}

    @property
    def limit(self) -> int:
        """Bytes that the allocator may reserve."""
        return self.budget.usable_bytes

    def choice(self, configuration: Configuration, why: str = "") -> Choice:
        """Return everything about one configuration, whether it fits or not."""
        users, mean = self.evaluation_users(configuration), self.workload.mean_tokens(configuration.seq_len)
        pairs, usable = self.seen_pairs(users, configuration), self.budget.usable_bytes
        return Choice(
            configuration=configuration,
            memory=self.model.predict(configuration, users, pairs, usable),
            evaluation_users=users,
            step_ms=self.step_ms(configuration),
            step_tokens=configuration.batch_size * mean,
            passes=timing.mean_pass(configuration, mean).count,
            steps_per_epoch=self.steps_per_epoch(configuration),
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
                unknown.setdefault(expressions.program_key(each.loss, each, many_chunks=False), []).append(each)
        for same in unknown.values():
            self._peaks |= zip(same, self.model.allocated(same).tolist(), strict=True)
        return [self._peaks[each] for each in configurations]

    def fitted(self, whole: Configuration, least: int = SMALL_PASS) -> Configuration | None:
        """Return a configuration of a space in the largest passes that fit; None where none do.

        Where blocks may be recomputed they are if a batch takes more than a pass, and a step is faster so.
        """
        if (whole, least) not in self._fitted:
            self._fitted[whole, least] = self._fit(whole, least)
        return self._fitted[whole, least]

    def _fit(self, whole: Configuration, least: int) -> Configuration | None:
        plain = self._largest(whole, least)
        if not self.may_recompute or (plain is not None and plain.tokens >= whole.tokens):
            return plain
        lighter = replace(whole, recompute=True)
        if plain is not None:
            within = [*passes_within(lighter, self.workload, self, least), *self.within([lighter])]
            if not within or self.step_ms(within[-1]) > RECOMPUTE_GAIN * self.step_ms(plain):
                return plain  # not faster even in passes of which the tensors alone fit
        cut = [each for each in (plain, self._largest(lighter, least)) if each is not None]
        return min(cut, key=self.step_ms, default=None)

    def _largest(self, whole: Configuration, least: int) -> Configuration | None:
        """Return a configuration in the largest passes; the search begins where that of the last of its kind ended."""
        found = largest_pass(whole, self.workload, self, least, self._shares.get(whole.loss))
        if found is not None and found.tokens < whole.tokens:
            smallest, taken = self.allocated([smallest_pass(whole, self.workload, least), found])
            self._shares[whole.loss] = (taken - smallest) / max(1, self.limit - smallest)
        return found

    def settled(self, fitted: Configuration) -> Configuration:
        """Return what is to be shown of a configuration that fits: in passes of which no larger ones fit."""
        return larger_pass(fitted, self.workload, self)

    def first_fitting(
        self, ordered: Sequence[Configuration], count: int = 1, *, least: int = SMALL_PASS, share: float = 1.0
    ) -> list[Configuration]:
        """Return the first of an order that fit, in their passes; of different lengths: a choice, not one three times.

        Only those are tried whose tensors take at most a `share` of the budget in the smallest passes, and less than
        those of others that were found not to fit.
        """
        picked, tries, limit = list[Configuration](), TRIES, share * self.limit
        for configuration, peak in self.priced(ordered, least):
            if len(picked) == count or not tries:
                break
            if peak <= limit and all(configuration.seq_len != other.seq_len for other in picked):
                tries -= 1
                fitted = self.fitted(configuration, least)
                picked += [fitted] if fitted is not None and self.in_time(fitted) else []
                limit = limit if fitted is not None else LESS * peak
        return picked

    def guess(self, ordered: Sequence[Configuration], least: int = SMALL_PASS) -> Configuration | None:
        """Return the first of an order whose tensors alone fit, in the largest passes of which that is so."""
        fitting = (each for floor in (least, 1) for each, peak in self.priced(ordered, floor) if peak <= self.limit)
        first = next(fitting, None)
        if first is None or self.within([first]):
            return first
        cut = passes_within(first, self.workload, self, 1)
        return cut[-1] if cut else first

    def priced(self, ordered: Sequence[Configuration], least: int) -> Iterator[tuple[Configuration, int]]:
        """Yield configurations with the bytes of tensors that they take at least."""
        for start in range(0, len(ordered), BLOCK):
            block = ordered[start : start + BLOCK]
            peaks = (self.allocated(variants) for variants in self.lightest(block, least))
            yield from zip(block, map(min, *peaks), strict=True)

    def lightest(
        self, configurations: Sequence[Configuration], least: int = 1
    ) -> tuple[list[Configuration], list[Configuration]]:
        """Return configurations as they take least, recomputed where that may be: in the smallest passes, and in one.

        One pass is less where there is little beside the table, as there is no second gradient of it then.
        """
        if self.may_recompute:
            configurations = [replace(each, recompute=True) for each in configurations]
        one = [replace(each, pass_tokens=None, pass_sequences=None) for each in configurations]
        return [smallest_pass(each, self.workload, least) for each in configurations], one

    def within(self, configurations: Sequence[Configuration]) -> list[Configuration]:
        """Return those whose tensors alone are within the limit."""
        return [each for each in configurations if self.allocated([each])[0] <= self.limit]

    def step_ms(self, configuration: Configuration) -> float:
        """Return the milliseconds of a training step of the mean batch on the card."""
        mean = self.workload.mean_tokens(configuration.seq_len)
        return timing.step_ms(configuration, self.gpu, self.rates, mean)

    def token_ms(self, configuration: Configuration) -> float:
        """Return the milliseconds of a step for each token of the mean batch."""
        mean = self.workload.mean_tokens(configuration.seq_len)
        return self.step_ms(configuration) / (configuration.batch_size * mean)

    def steps_per_epoch(self, configuration: Configuration) -> int | None:
        """Return the steps of an epoch; None where the number of users is unknown."""
        users = self.workload.users
        return None if users is None else -(-users // configuration.batch_size)

    def epoch_seconds(self, configuration: Configuration) -> float | None:
        """Return the seconds of an epoch; None where the number of users is unknown."""
        steps = self.steps_per_epoch(configuration)
        return None if steps is None else steps * self.step_ms(configuration) / 1e3

    def in_time(self, configuration: Configuration) -> bool:
        """Tell whether an epoch is within the time limit, if there is one."""
        seconds = None if self.time is None else self.epoch_seconds(configuration)
        return self.time is None or seconds is None or seconds <= self.time.epoch_seconds

    def cut(self, configuration: Configuration, tokens: int) -> Configuration:
        """Return a configuration in passes of so many tokens."""
        return with_pass(configuration, tokens, self.workload)

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
