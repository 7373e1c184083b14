"""Reserved bytes of a training process: its allocations, step after step, through the allocator's model. No torch.

A process lives: model and first batch, two full steps, an evaluation, another full step: what its allocator holds by
then is expected. Real batches differ: fewer valid targets, an epoch's last batch of fewer sequences. Every new shape
cuts the free blocks anew. The same process, played on with such batches, gives the upper bound: what it must be allowed
so that all of that runs without a retry. That is the larger of two figures, and so never below what is expected:

- what it holds in the end. Expandable segments grow by pages of 20 MiB, a request is rounded to 2 MiB: what is held can
  be larger than any cap that was asked for, as in PyTorch itself;
- the largest cap that a request asks for. The cap is compared with what is held and the whole request, even where a
  part of it is mapped already: that can be more than what is held afterwards.

Where a budget is less, the same is played under it as a hard cap: often a few retries at the beginning are all it
takes, and the upper bound is what is held then. Forty random batches instead of these reserved at most 4% more, and
such an excess costs a retry, not the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from srsplan.models.config import Configuration
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.allocator import CapReachedError
from srsplan.profiler.memory.program import Code, Process, Program

FILL_PERCENT = (93, 100, 81, 97, 100, 88, 100)
"""Tokens of later passes, in percent of the fullest's."""

LATE_RETRIES = 1
"""Retries in the later steps: more, and training would be slowed down again and again."""

CAP_STEP = 0.005
"""Caps are tried in steps of half a percent."""

LAST_BATCH = 3
"""The last batch of an epoch has a third of the sequences."""

Programs = Callable[[str, Configuration, bool], Program]


@dataclass(frozen=True)
class Reserved:
    """Peaks of what a process holds of the card, in bytes."""

    expected: int
    """Bytes held after the first steps and an evaluation."""
    upper: int
    """Bytes that must fit, never below `expected`; the module explains them."""


@dataclass(frozen=True)
class Part:
    """A program and the sizes of one run of it."""

    program: Program
    sizes: list[int]
    repeats: int


def reserved(
    configuration: Configuration, users: int, seen_pairs: int, programs: Programs, cap: float = inf
) -> Reserved:
    """Return the peaks of a training process whose evaluation batches have so many users and (user, seen item) pairs.

    Under a `cap` in bytes the process runs there exactly where `upper` is at most the cap.
    """
    life = _life(configuration, users, seen_pairs, programs)
    free = life.play(inf, enough=cap)
    if free.needed <= cap:
        return Reserved(free.expected, free.needed)
    capped = life.play(cap)
    if capped.runs_under(cap):
        return Reserved(capped.expected, capped.held)
    return Reserved(free.expected, free.needed)


def smallest_cap(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> int:
    """Return the cap in bytes from which on training runs at full speed: only its beginning retries.

    Found from above, in steps of half a percent: what fits is not monotone in the cap.
    """
    life = _life(configuration, users, seen_pairs, programs)
    safe = life.play(inf).needed
    while True:
        cap = safe - int(safe * CAP_STEP)
        if not life.play(cap).runs_under(cap):
            return safe
        safe = cap


def steady(configuration: Configuration, programs: Programs, expandable_segments: bool = True) -> int:
    """Return the reserved bytes of a process that runs nothing but full steps, as a probe does at first."""
    full, process = _steps(configuration, programs)[0], Process(expandable_segments=expandable_segments)
    for code in (full.program.setup, full.program.first, full.program.step, full.program.step):
        process.run(code, full.sizes, full.repeats)
    return process.allocator.peak_reserved


@dataclass(frozen=True)
class _Played:
    """The peaks of a process, in bytes."""

    expected: int
    """Bytes held after the early parts."""
    held: int
    """Bytes held at most."""
    asked: int
    """The largest cap that a request wants."""
    late_retries: float
    """Times that the later parts had to give memory back; infinite where they did not run at all."""

    @property
    def needed(self) -> int:
        """The cap under which all of this runs without a retry, and which what is held never exceeds."""
        return max(self.held, self.asked)

    def runs_under(self, cap: float) -> bool:
        """Tell whether what was played under a cap runs there at full speed: only its beginning retries."""
        return self.late_retries <= LATE_RETRIES and self.held <= cap


Parts = list[tuple[Part, Code]]


@dataclass(frozen=True)
class _Life:
    """The parts that a training process runs: first the early ones, which decide what is expected."""

    early: Parts
    later: Parts

    def play(self, cap: float, enough: float = inf) -> _Played:
        """Run the process under a cap; not played on once it needs more than `enough`, or retries too often."""
        process = Process(None if cap == inf else int(cap))
        allocator, expected, early_retries = process.allocator, 0, 0
        late_retries: float = inf
        try:
            for number, (part, code) in enumerate([*self.early, *self.later]):
                process.run(code, part.sizes, part.repeats)
                if number < len(self.early):
                    expected, early_retries = allocator.peak_reserved, allocator.retries
                elif allocator.retries - early_retries > LATE_RETRIES:
                    break
                if max(allocator.peak_asked, allocator.peak_reserved) > enough:
                    break
            late_retries = allocator.retries - early_retries
        except CapReachedError:
            pass  # it does not run under this cap
        return _Played(expected, allocator.peak_reserved, allocator.peak_asked, late_retries)


def _life(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> _Life:
    full, *others = _steps(configuration, programs)
    ranking = _ranking(configuration, users, seen_pairs, programs)
    early = [(full, full.program.setup), (full, full.program.first)]
    early += [(part, part.program.step) for part in (full, ranking, full)]
    return _Life(early, [(part, part.program.step) for part in (*others, full, ranking, full)])


def _steps(configuration: Configuration, programs: Programs) -> list[Part]:
    """Return the step of the fullest pass, then those of others."""
    values = expressions.pass_values(configuration, _passes(configuration))
    counts = [int(count) for count in expressions.chunks(values)]
    by_kind = {many: programs(configuration.loss, configuration, many) for many in {count > 1 for count in counts}}
    sizes = {many: program.sizes(values) for many, program in by_kind.items()}
    return [
        Part(by_kind[count > 1], [int(size[at]) for size in sizes[count > 1]], max(0, count - 2))
        for at, count in enumerate(counts)
    ]


def _passes(full: Configuration) -> list[tuple[int, int]]:
    """Return the tokens and sequences of passes: the fullest, others, and that of an epoch's last batch."""
    fills = [max(1, (fill * full.tokens + 50) // 100) for fill in FILL_PERCENT] if full.several_passes else []
    sizes = [full.tokens, *fills, max(1, full.tokens // LAST_BATCH)]
    return [(tokens, max(1, min(tokens, full.sequences * tokens // full.tokens))) for tokens in sizes]


def _ranking(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> Part:
    """Return the program of one evaluation batch."""
    values = expressions.evaluation_values(configuration, users, seen_pairs)
    chunks = int(expressions.chunks(values)[0])
    program = programs(expressions.EVALUATION, configuration, chunks > 1)
    return Part(program, [int(size[0]) for size in program.sizes(values)], max(0, chunks - 2))
