"""Advice where nothing fits. Every way out that is named was priced first: it works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.models.errors import NothingFits, SrsplanError
from srsplan.models.units import format_duration, format_gib
from srsplan.planner.budget import Budget, make_budget
from srsplan.planner.passes import SMALL_PASS
from srsplan.planner.question import Question
from srsplan.planner.search.order import EVIDENCE_ENDS
from srsplan.planner.search.recommendation import Choice, Recommendation
from srsplan.planner.time_limit import TimeLimit
from srsplan.planner.words import knobs_of
from srsplan.profiler.probes.catalogue import Gpu, load_gpus

FASTEST = 20
"""Configurations that are tried where none is fast enough, those with the shortest epochs first."""

GRANULE_BYTES = 10**7
"""Budgets are advised in hundredths of a GB."""


def check_floor(question: Question) -> None:
    """Raise NothingFits where not even the table, its gradient and the moments fit: no search is needed."""
    catalog, dim, usable = question.space.catalog, question.space.architecture.dim, question.budget.usable_bytes
    averaged = question.space.ema is not None
    floor = (20 if averaged else 16) * catalog * dim
    if floor > usable:
        raise NothingFits(
            f"nothing fits: the budget leaves {format_gib(usable)}, below the fixed floor of {format_gib(floor)}: the "
            f"item table of {catalog:,} x {dim}, its gradient{', its average' if averaged else ''} and Adam's moments",
            ways_out(question),
        )


def nothing_fits(found: Recommendation, question: Question) -> NothingFits:
    """Return the error of a recommendation without choices."""
    if question.prices.time is not None and (fastest := _fastest(question)) is not None:
        return _too_slow(fastest, question, question.prices.time)
    if not found.near_misses:
        return NothingFits("nothing fits: no configuration can be built from these knobs", ways_out(question))
    miss = found.near_misses[0]
    return NothingFits(
        f"nothing fits: of {found.considered} configurations the nearest, {knobs_of(miss.configuration)}, "
        f"takes at most {format_gib(miss.memory.upper_bytes)} and {format_gib(miss.over_bytes)} of it are missing",
        ways_out(question),
    )


def _too_slow(fastest: Configuration, question: Question, limit: TimeLimit) -> NothingFits:
    """Return the error where something fits memory and nothing the time limit: the fastest, and by how much."""
    seconds = question.prices.epoch_seconds(fastest) or 0.0
    cards = (gpu for gpu in load_gpus() if gpu.capacity_bytes >= question.budget.bytes)
    faster = [gpu for gpu in cards if question.under(gpu=gpu).prices.in_time(fastest)]
    ways = [limit.asking(seconds)]
    if faster:
        ways.append(f"--gpu {min(faster, key=lambda gpu: (gpu.bandwidth_bytes_s, gpu.name)).name}")
    return NothingFits(
        f"nothing fits the time: {limit.describe()}; the fastest that fits memory, {knobs_of(fastest)}, takes "
        f"{format_duration(seconds)} an epoch, {format_duration(seconds - limit.epoch_seconds)} too long",
        ", or ".join(ways),
    )


def _fastest(question: Question) -> Configuration | None:
    """Return the configuration with the shortest epoch among those that fit memory; None where none does."""
    prices = question.prices
    pool = [each for loss in question.space.losses for each in question.space.candidates(loss)]
    ordered = sorted(pool, key=lambda each: prices.epoch_seconds(each) or 0.0)
    fitting = (prices.fitted(each, least) for least in (SMALL_PASS, 1) for each in ordered[:FASTEST])
    found = [each for each in fitting if each is not None]
    return min(found, key=lambda each: prices.epoch_seconds(each) or 0.0, default=None)


def ways_out(question: Question) -> str:
    """Name other losses, a larger budget or card, a smaller hidden size: those that were found to work."""
    ways = [*_other_losses(question), *_larger(question), *_smaller_dim(question)]
    return ", or ".join(ways) or "a smaller catalog: nothing else that could be tried fits any card of `srsplan gpus`"


def _other_losses(question: Question) -> Iterator[str]:
    useful = sorted((loss for loss in LOSSES.values() if not loss.baseline), key=lambda loss: not loss.chunked)
    others = [loss.name for loss in useful if loss.name not in question.space.losses]
    fitting = [name for name in others if _fits(question.under(space=replace(question.space, losses=(name,))))]
    if fitting:
        yield f"{' and '.join(fitting)} fit{'s' * (len(fitting) == 1)}: --loss {fitting[0]}"


def _larger(question: Question) -> Iterator[str]:
    """Yield a budget, on the card that was named or on any; and a card where the one that was named is too small."""
    unlimited = _largest_card(question)
    smallest = [each for each in _smallest(unlimited) if unlimited.prices.fits(each)]
    if not smallest:
        return
    needed = min(unlimited.prices.choice(each).memory.upper_bytes for each in smallest)
    total = -(-question.budget.for_usable(needed) // GRANULE_BYTES) * GRANULE_BYTES
    for gpu in [question.gpu] if question.gpu_is_given else []:
        if gpu.capacity_bytes >= total and _works(question, total, gpu):
            yield f"--budget {total / 1e9:.2f}GB"
            return
    cards = sorted((gpu for gpu in load_gpus() if gpu.capacity_bytes >= total), key=lambda gpu: gpu.capacity_bytes)
    if cards and _works(question, total, cards[0]):
        yield f"--gpu {cards[0].name}" if question.gpu_is_given else f"--budget {total / 1e9:.2f}GB"


def _works(question: Question, total: int, gpu: Gpu) -> bool:
    return _fits(question.under(budget=_budget(question, total, gpu), gpu=gpu))


def _budget(question: Question, total: int, gpu: Gpu) -> Budget:
    """Return a budget with the context and the margin of the question's."""
    share = question.budget.margin_bytes / question.budget.bytes
    context = question.budget.context_bytes, question.budget.context_basis
    return replace(make_budget(total, gpu, share), context_bytes=context[0], context_basis=context[1])


def _largest_card(question: Question) -> Question:
    largest = max(load_gpus(), key=lambda gpu: gpu.capacity_bytes)
    return question.under(budget=_budget(question, largest.capacity_bytes, largest), gpu=largest)


def _smaller_dim(question: Question) -> Iterator[str]:
    """Yield the largest hidden size below the present one that fits."""
    unit = 8 * question.space.architecture.heads
    floor = question.budget.usable_bytes // (16 * question.space.catalog)
    fits, fails = 0, min(question.space.architecture.dim - 1, floor) // unit + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _fits(_with_dim(question, unit * middle)) else (fits, middle)
    if fits:
        yield f"--dim {unit * fits}"


def _with_dim(question: Question, dim: int) -> Question:
    architecture = replace(question.space.architecture, dim=dim)
    return question.under(space=replace(question.space, architecture=architecture))


def _fits(question: Question) -> bool:
    """Tell whether the smallest configuration of any of the losses fits."""
    try:
        return any(question.prices.fits(each) for each in _smallest(question))
    except SrsplanError:
        return False


def _smallest(question: Question) -> list[Configuration]:
    """Return for each loss the configuration of the grid that takes least, in the smallest passes."""
    candidates = (question.space.candidates(loss) for loss in question.space.losses)
    pools = ([each for variants in question.prices.lightest(pool) for each in variants] for pool in candidates)
    return [min(zip(question.prices.allocated(pool), range(len(pool)), pool, strict=True))[2] for pool in pools if pool]


def quality_note(choices: tuple[Choice, ...], trust: str) -> str:
    """Return a sentence on how good the order is, and where the evidence for it ends."""
    worth = trust or (
        "a rule, not a measurement: on public runs its first pick loses 12.0% of the best NDCG on average, the best "
        "of three 6.9%"
    )
    batch_size, negatives = EVIDENCE_ENDS["batch_size"], EVIDENCE_ENDS["negatives"]
    beyond = any(
        each.configuration.batch_size > batch_size or (each.configuration.negatives or 0) > negatives
        for each in choices
    )
    ends = f"; those runs end at bs {batch_size:,} and ns {negatives:,}: larger ones are beyond all evidence"
    return worth + (ends if beyond and not trust else "")
