"""Which configurations fit, and which to try first.

The order is a rule with evidence (747 public runs, five datasets): the configuration that maximises
min(batch size, negatives) within the budget loses 9.7% of NDCG with the first pick and 4.5% with the best of three;
nothing learned from the other datasets does better without runs of its own. Equal balance prefers the longer sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product as combinations

from srsplan.kernels.losses import LOSSES, SAMPLERS, Sampler
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.planner import step_time as timing
from srsplan.planner.budget import Budget
from srsplan.planner.several_gpus import Layout, layouts
from srsplan.planner.step_time import ASSUMED, Rates
from srsplan.planner.workload import USERS_PER_BATCH, Workload
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import Memory, MemoryModel
from srsplan.profiler.probes.catalogue import Gpu

BATCH_SIZES: list[int] = sorted(
    size for power in range(4, 14) for size in (2**power, 3 * 2 ** (power - 1)) if size <= 8192
)
NEGATIVES = [2**power for power in range(5, 13)]
"""Published runs use batches up to 5,120 and up to 4,095 negatives: the rule is not trusted far beyond."""

TOKENS_PER_SET = 32
BALANCED_CHOICES = 3
FULL_SOFTMAX_PATIENCE = 2.0
"""A full softmax is preferred while it takes at most so many times the sampled loss's time per token."""

TRIES = 60
"""Replays of one search step: each takes a few milliseconds."""

LEAST_SHARE = 0.65
"""Reserved bytes are at most 1.5 times what tensors take."""

NEAR_MISSES = 3

EVALUATION_USERS = (64, 1024)
"""Evaluation batches: smaller ones waste the GPU, larger ones gain nothing."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched."""

    catalog: int
    losses: tuple[str, ...]
    architecture: Architecture
    precision: Precision
    workload: Workload
    recompute: bool = False
    """Activation checkpointing."""
    sampler: Sampler = "uniform"
    """Of the losses that have it; the others draw uniformly."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"unknown sampler {self.sampler!r}", f"samplers are {', '.join(SAMPLERS)}")


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """What trying a choice under a hard cap of the budget came to."""

    basis: str
    fits: bool
    allocated_bytes: int
    reserved_bytes: int
    retries: int | None
    """How often the cap made the allocator give memory back in settled steps; None where that was not counted."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration with everything predicted about it."""

    configuration: Configuration
    memory: Memory
    evaluation_users: int
    step_ms: float
    steps_per_epoch: int | None
    why: str
    confirmed: Confirmed | None = None

    @property
    def epoch_seconds(self) -> float | None:
        """None where the number of users is unknown."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.step_ms / 1e3


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A configuration that does not fit, and by how much."""

    configuration: Configuration
    memory: Memory
    over_bytes: int


@dataclass(frozen=True, kw_only=True)
class Knob:
    """What one step of a knob does to the allocated peak."""

    name: str
    change: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer of a search."""

    choices: tuple[Choice, ...]
    near_misses: tuple[Miss, ...]
    knobs: tuple[Knob, ...]
    considered: int


Order = Callable[[Sequence[Configuration]], list[int]]


class Search:
    """Predicts and orders the configurations of a space under a budget."""

    def __init__(self, space: Space, budget: Budget, gpu: Gpu, model: MemoryModel, rates: Rates = ASSUMED) -> None:
        """`rates` of the step-time model: what a profile found."""
        self.space, self.budget, self.gpu, self.model, self.rates = space, budget, gpu, model, rates
        self._users: dict[Configuration, int] = {}

    def run(self, order: Order | None = None) -> Outcome:
        """Rank what fits; `order` replaces the balance rule. An outcome without choices names the nearest misses."""
        ordered: dict[str, list[Configuration]] = {}
        tops: dict[str, Configuration] = {}
        pool: list[Configuration] = []
        for loss in self.space.losses:
            candidates = list(self.candidates(loss))
            pool += candidates
            each = self._affordable(candidates)
            ordered[loss] = [each[index] for index in (order or by_balance)(each)] if each else []
            for top in self._first_fitting(ordered[loss], 1) or self._first_fitting(self._roomy(ordered[loss]), 1):
                tops[loss] = top
        chosen = self._choose(ordered, tops) if tops else ()
        return Outcome(
            choices=chosen,
            near_misses=self._nearest(pool, chosen[0].configuration if chosen else None),
            knobs=self._knobs(chosen[0]) if chosen else (),
            considered=len(pool),
        )

    def candidates(self, loss: str) -> Iterable[Configuration]:
        """Every combination of the knobs for a loss."""
        kind = LOSSES[loss]
        negatives: list[int | None] = [None]
        if kind.sampled:
            counts = [kind.fixed_negatives] if kind.fixed_negatives else NEGATIVES
            negatives = [count for count in counts if count < self.space.catalog]
        for seq_len in self.space.workload.seq_lens():
            for batch_size in (size for size in BATCH_SIZES if size <= self._largest_batch):
                base = self.configuration(loss, batch_size, seq_len, negatives[0]) if negatives else None
                for count in negatives:
                    if base is not None:
                        yield replace(base, negatives=count)

    @property
    def _largest_batch(self) -> int:
        """An epoch has steps enough."""
        users: int = self.space.workload.users or BATCH_SIZES[-1] * USERS_PER_BATCH
        return min(BATCH_SIZES[-1], max(BATCH_SIZES[0], users // USERS_PER_BATCH // 8 * 8))

    def configuration(self, loss: str, batch_size: int, seq_len: int, negatives: int | None) -> Configuration:
        """One configuration of this space."""
        return Configuration(
            loss=loss,
            catalog=self.space.catalog,
            batch_size=batch_size,
            seq_len=seq_len,
            negatives=negatives,
            tokens_per_set=TOKENS_PER_SET if LOSSES[loss].shares_negatives else 1,
            sampler=self.space.sampler if self.space.sampler in LOSSES[loss].samplers else "uniform",
            valid_tokens=self.space.workload.valid_tokens(batch_size, seq_len),
            architecture=self.space.architecture,
            precision=self.space.precision,
            recompute=self.space.recompute,
        )

    def predict(self, configuration: Configuration, why: str = "") -> Choice:
        """Everything about one configuration, whether it fits or not."""
        users, known = self.evaluation_users(configuration), self.space.workload.users
        pairs, usable = self._seen_pairs(users, configuration), self.budget.usable_bytes
        return Choice(
            configuration=configuration,
            memory=self.model.predict(configuration, users, pairs, usable),
            evaluation_users=users,
            step_ms=timing.step_ms(configuration, self.gpu, self.rates),
            steps_per_epoch=None if known is None else -(-known // configuration.batch_size),
            why=why,
        )

    def smallest_cap(self, choice: Choice) -> int:
        """The least that the allocator may reserve at full speed."""
        pairs = self._seen_pairs(choice.evaluation_users, choice.configuration)
        return lifetime.smallest_cap(choice.configuration, choice.evaluation_users, pairs, self.model.program)

    def on_several(self, choice: Choice, gpus: int) -> tuple[Layout, ...]:
        """What each of several GPUs would need for a choice; nothing for one."""
        if gpus == 1:
            return ()
        users = choice.evaluation_users
        return layouts(choice.configuration, gpus, self.model, users, self._seen_pairs(users, choice.configuration))

    def evaluation_users(self, configuration: Configuration) -> int:
        """The largest evaluation batch, a power of two, that needs no more than training; 64 or less where none does.

        1 is the least, whether it fits or not.
        """
        if configuration not in self._users:
            self._users[configuration] = self._largest_evaluation(configuration)
        return self._users[configuration]

    def _largest_evaluation(self, configuration: Configuration) -> int:
        training, (smallest, users) = int(self.model.allocated([configuration])[0]), EVALUATION_USERS
        while users > smallest and self._evaluation(configuration, users) > training:
            users //= 2
        while users > 1 and self._evaluation(configuration, users) > max(training, self.budget.usable_bytes):
            users //= 2
        return users

    def _evaluation(self, configuration: Configuration, users: int) -> int:
        return self.model.evaluation(configuration, users, self._seen_pairs(users, configuration))

    def _seen_pairs(self, users: int, configuration: Configuration) -> int:
        return self.space.workload.seen_pairs(users) or users * configuration.seq_len

    def _affordable(self, candidates: list[Configuration]) -> list[Configuration]:
        """Those whose tensors alone do not exceed the budget; fragmentation decides later."""
        if not candidates:
            return []
        allocated = self.model.allocated(candidates)
        return [each for each, peak in zip(candidates, allocated, strict=True) if peak <= self.budget.usable_bytes]

    def _roomy(self, candidates: list[Configuration]) -> list[Configuration]:
        """Those that fragmentation does not keep from fitting."""
        if not candidates:
            return []
        allocated, limit = self.model.allocated(candidates), LEAST_SHARE * self.budget.usable_bytes
        return [each for each, peak in zip(candidates, allocated, strict=True) if peak <= limit]

    def fits(self, configuration: Configuration) -> bool:
        """Whether everything a process may reserve, evaluation included, is within the budget."""
        users = self.evaluation_users(configuration)
        pairs = self._seen_pairs(users, configuration)
        return self.model.fits(configuration, users, pairs, self.budget.usable_bytes)

    def _first_fitting(self, ordered: Iterable[Configuration], count: int) -> list[Configuration]:
        """The first of an order that fit, of different sequence lengths: a choice, not three times the same."""
        picked, tries = list[Configuration](), TRIES
        for configuration in ordered:
            if len(picked) == count or not tries:
                break
            if all(configuration.seq_len != other.seq_len for other in picked):
                tries -= 1
                picked += [configuration] if self.fits(configuration) else []
        return picked

    def _choose(self, ordered: dict[str, list[Configuration]], tops: dict[str, Configuration]) -> tuple[Choice, ...]:
        """Three of the preferred loss, then the best of every other loss; each grown into what is left."""
        best = self.preferred_loss(tops)
        first, *others = self._first_fitting(ordered[best], BALANCED_CHOICES) or [tops[best]]
        picked = [self.grown(first), *(self.grown(each, lengths=False) for each in others)]
        choices = [self.predict(each, _why(each, picked[0])) for each in picked]
        rest = sorted((loss for loss in tops if loss != best), key=lambda loss: -_balance(tops[loss]))
        choices += [self.predict(self.grown(tops[loss]), f"best of {LOSSES[loss].title}") for loss in rest]
        return tuple(choices)

    def grown(self, base: Configuration, lengths: bool = True) -> Configuration:
        """The best of what lies between a configuration and the next ones of the grid; then the largest batch."""
        seq_lens = _between(base.seq_len, max(self.space.workload.seq_lens()) if lengths else base.seq_len)
        negatives: list[int | None] = [base.negatives]
        if base.negatives is not None and not LOSSES[base.loss].fixed_negatives:
            negatives = [*_between(base.negatives, min(NEGATIVES[-1], self.space.catalog - 1))]
        batch_sizes = [
            *_between(base.batch_size, self._largest_batch),
            *(size for size in BATCH_SIZES if size <= self._largest_batch),
        ]
        finer = [
            replace(self.configuration(base.loss, batch_size, seq_len, negatives[0]), negatives=count)
            for batch_size, seq_len in combinations({*batch_sizes}, seq_lens)
            if batch_size >= base.batch_size
            for count in negatives
        ]
        affordable = sorted(
            self._affordable(finer), key=lambda each: (_balance(each), each.seq_len, each.batch_size), reverse=True
        )
        return next(iter(self._first_fitting(affordable, 1)), base)

    def preferred_loss(self, tops: dict[str, Configuration]) -> str:
        """The full softmax while it costs little more time per token, otherwise the sampled loss; never bce first.

        Among forms of one function, the better balance; then the faster.
        """

        def merit(loss: str) -> tuple[int, float]:
            return tops[loss].balance, -self._token_ms(tops[loss])

        full = [loss for loss in tops if not LOSSES[loss].sampled]
        sampled = [loss for loss in tops if LOSSES[loss].sampled and not LOSSES[loss].baseline]
        if not full or not sampled:
            return max(full or sampled or tops, key=merit)
        full_best, sampled_best = max(full, key=merit), max(sampled, key=merit)
        if self._token_ms(tops[full_best]) <= FULL_SOFTMAX_PATIENCE * self._token_ms(tops[sampled_best]):
            return full_best
        return sampled_best

    def _token_ms(self, configuration: Configuration) -> float:
        return timing.step_ms(configuration, self.gpu, self.rates) / configuration.fullest_tokens

    def _nearest(self, pool: list[Configuration], rank_1: Configuration | None) -> tuple[Miss, ...]:
        """The least over budget: of rank 1's loss those that would rank above it, else of any loss."""
        if rank_1 is not None:
            pool = [each for each in pool if each.loss == rank_1.loss and each.balance >= rank_1.balance]
        allocated = {
            each: int(peak)
            for loss in self.space.losses
            if (same := [each for each in pool if each.loss == loss])
            for each, peak in zip(same, self.model.allocated(same), strict=True)
        }
        at_least = self.budget.usable_bytes * LEAST_SHARE
        nearest = sorted(
            (each for each in allocated if allocated[each] > at_least),
            key=lambda each: (allocated[each], -each.balance),
        )
        misses = []
        for configuration in nearest[:TRIES]:
            memory = self.predict(configuration).memory
            over = memory.upper_bytes - self.budget.usable_bytes
            if over > 0:
                misses.append(Miss(configuration=configuration, memory=memory, over_bytes=over))
            if len(misses) == NEAR_MISSES:
                break
        return tuple(sorted(misses, key=lambda miss: miss.over_bytes))

    def _knobs(self, choice: Choice) -> tuple[Knob, ...]:
        """What doubling or halving each knob of a choice does to its allocated peak."""
        base, found = choice.configuration, []
        knobs = {"batch_size": base.batch_size, "seq_len": base.seq_len}
        if base.negatives is not None and not LOSSES[base.loss].fixed_negatives:
            knobs["negatives"] = base.negatives
        for name, value in knobs.items():
            for factor, change in ((2.0, "x 2"), (0.5, "/ 2")):
                stepped = int(value * factor)
                if stepped < 1 or (name == "negatives" and stepped >= self.space.catalog):
                    continue
                sizes = {**knobs, name: stepped}
                negatives = sizes.get("negatives", base.negatives)
                other = self.configuration(base.loss, sizes["batch_size"], sizes["seq_len"], negatives)
                more = int(self.model.allocated([other])[0]) - choice.memory.allocated_bytes
                found.append(Knob(name=name, change=change, bytes=more))
        return tuple(found)


def by_balance(configurations: Sequence[Configuration]) -> list[int]:
    """Largest min(batch size, negatives) first; then longer sequences; then fewer scores, which is faster."""

    def key(each: Configuration) -> tuple[int, int, int]:
        return -_balance(each), -each.seq_len, each.batch_size * (each.negatives or 1)

    keys = [key(each) for each in configurations]
    return sorted(range(len(keys)), key=lambda index: keys[index])


def _balance(configuration: Configuration) -> int:
    """A loss with a fixed number of negatives has nothing to balance: its batch size counts."""
    fixed = LOSSES[configuration.loss].fixed_negatives
    return configuration.batch_size if fixed else configuration.balance


def _between(size: int, limit: int) -> list[int]:
    """From a size up to the next of the grid, in eighths, multiples of 8 where it is large; never above `limit`."""
    unit = 8 if size >= 64 else 1
    return sorted({size, *(min(limit, size * part // 8 // unit * unit) for part in range(9, 16) if size < limit)})


def _why(configuration: Configuration, first: Configuration) -> str:
    if configuration is first:
        return "largest min(batch size, negatives) that fits, then the longest sequence"
    length = "longer" if configuration.seq_len > first.seq_len else "shorter"
    balance = "the same balance" if configuration.balance == first.balance else f"min(bs, ns) {configuration.balance}"
    return f"{length} sequences at {balance}"
