"""Reserved bytes of a training process: its allocations, step after step, through the allocator's model. No torch.

A process lives: model and first batch, two full steps, an evaluation, another full step: what its allocator then holds
is expected. Real batches differ: fewer valid targets, an epoch's last batch of fewer sequences. Every new shape cuts
the free blocks anew. The upper bound is the smallest cap under which all of that runs without a retry: a cap is asked
for a request's whole size, even where part of it is mapped already. Where a budget is less, the same is played under it
as a hard cap: often a few retries at the beginning are all it takes. Forty random batches instead of these reserved at
most 4% more, and such an excess costs a retry, not the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from srsplan.models.config import Configuration
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.allocator import CapReachedError
from srsplan.profiler.memory.program import Code, Process, Program

FILLS = (0.93, 1.0, 0.81, 0.97, 1.0, 0.88, 1.0)
"""Valid targets of later batches, as a share of the fullest's."""

LATE_RETRIES = 1
"""Retries in the later steps: more, and training would be slowed down again and again."""

CAP_STEP = 0.005

LAST_BATCH = 3
"""The last batch of an epoch has a third of the sequences."""

Programs = Callable[[str, Configuration, bool], Program]


@dataclass(frozen=True)
class Reserved:
    """Peaks of what a process holds of the card, bytes."""

    expected: int
    upper: int
    """What must fit: see `reserved`."""


@dataclass(frozen=True)
class Part:
    """A program and the sizes of one run of it."""

    program: Program
    sizes: list[int]
    repeats: int


def reserved(
    configuration: Configuration, users: int, seen_pairs: int, programs: Programs, cap: float = inf
) -> Reserved:
    """Of training with evaluation batches of so many users; under a `cap`, whether it runs there is in `upper`.

    Where nothing has to be given back below the cap, upper is the smallest such cap. Else it is what is held under
    this one, if only the beginning retries; and more than the cap if the configuration does not run there.
    """
    full, *others = _steps(configuration, programs)
    ranking = _ranking(configuration, users, seen_pairs, programs)
    later = [(part, part.program.step) for part in (*others, full, ranking, full)]
    early = [(full, full.program.setup), (full, full.program.first)]
    early += [(part, part.program.step) for part in (full, ranking, full)]
    free = _played(early, later, inf, cap)
    if free.asked <= cap:
        return Reserved(free.expected, free.asked)
    capped = _played(early, later, cap, inf)
    return Reserved(capped.expected, capped.held) if capped.retries <= LATE_RETRIES else Reserved(free.held, free.asked)


def smallest_cap(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> int:
    """From here on every cap is safe and fast, in steps of half a percent: it runs, and only the beginning retries.

    Found from above, step by step: what fits is not monotone in the cap.
    """
    safe = reserved(configuration, users, seen_pairs, programs).upper
    while True:
        cap = int(safe * (1 - CAP_STEP))
        if reserved(configuration, users, seen_pairs, programs, cap).upper > cap:
            return safe
        safe = cap


def steady(configuration: Configuration, programs: Programs, expandable_segments: bool = True) -> int:
    """Reserved bytes of a process that runs nothing but full steps, as a probe does."""
    full, process = _steps(configuration, programs)[0], Process(expandable_segments=expandable_segments)
    for code in (full.program.setup, full.program.first, full.program.step, full.program.step):
        process.run(code, full.sizes, full.repeats)
    return process.allocator.peak_reserved


@dataclass(frozen=True)
class _Played:
    """Bytes held after the early parts and at most, the largest cap asked for, retries of the later parts."""

    expected: int
    held: int
    asked: int
    retries: float


Parts = list[tuple[Part, Code]]


def _played(early: Parts, later: Parts, cap: float, enough: float) -> _Played:
    """A process under a cap; not played on where it has asked for more than `enough`."""
    process = Process(None if cap == inf else int(cap))
    allocator = process.allocator
    expected, retries = 0, 0
    try:
        for number, (part, code) in enumerate([*early, *later]):
            process.run(code, part.sizes, part.repeats)
            if number < len(early):
                expected, retries = allocator.peak_reserved, allocator.retries
            if allocator.peak_asked > enough:
                break
    except CapReachedError:
        return _Played(expected, allocator.peak_reserved, allocator.peak_asked, inf)
    return _Played(expected, allocator.peak_reserved, allocator.peak_asked, allocator.retries - retries)


def _steps(configuration: Configuration, programs: Programs) -> list[Part]:
    """The full step first."""
    batches = [configuration, *_batches(configuration)]
    values = expressions.step_values(batches)
    chunks = expressions.chunks(configuration.loss, values)
    sizes = {
        many: programs(configuration.loss, configuration, many).sizes(values) for many in {bool(n > 1) for n in chunks}
    }
    return [
        Part(
            programs(configuration.loss, configuration, bool(count > 1)),
            [int(size[at]) for size in sizes[bool(count > 1)]],
            max(0, int(count) - 2),
        )
        for at, count in enumerate(chunks)
    ]


def _batches(full: Configuration) -> list[Configuration]:
    """Other batches of the same training; without padding only the last of an epoch differs."""
    fills = FILLS if full.fullest_tokens < full.tokens else ()
    last = replace(full, batch_size=max(full.micro_batches, full.batch_size // LAST_BATCH), valid_tokens=None)
    return [
        *(replace(full, valid_tokens=max(1, round(fill * full.fullest_tokens))) for fill in fills),
        replace(last, valid_tokens=min(max(1, full.fullest_tokens // LAST_BATCH), last.tokens)),
    ]


def _ranking(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> Part:
    values = expressions.evaluation_values(configuration, users, seen_pairs)
    chunks = int(expressions.chunks("evaluation", values)[0])
    program = programs("evaluation", configuration, chunks > 1)
    return Part(program, [int(size[0]) for size in program.sizes(values)], max(0, chunks - 2))
