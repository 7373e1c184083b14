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
takes, and the upper bound is what is held then. Where blocks find their places depends on the way there, so a process
whose passes are all full has to settle as well. Forty random batches instead of these reserved at most 4% more, and
such an excess costs a retry, not the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from srsplan.models.config import Configuration
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.allocator import CapReachedError, Layout
from srsplan.profiler.memory.program import Code, Process, Program

FILL_PERCENT = (93, 100, 81, 97, 100, 88, 100)
"""Tokens of later passes, in percent of the fullest's."""

ALIKE = (6, 4)
"""Full passes in a row, before an evaluation and after it."""

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


def reserved(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> Reserved:
    """Return the peaks of a training process that evaluates so many users and (user, seen item) pairs at once."""
    free = _life(configuration, users, seen_pairs, programs).play(inf)
    return Reserved(free.expected, free.needed)


def reserved_under(
    cap: float, configuration: Configuration, users: int, seen_pairs: int, programs: Programs
) -> Reserved | None:
    """Return the same for a process that may hold `cap` bytes; None where it does not run there at full speed."""
    capped = _life(configuration, users, seen_pairs, programs).play(cap)
    if not capped.runs_under(cap):
        return None
    if capped.retries and not _uniform_life(configuration, users, seen_pairs, programs).play(cap).runs_under(cap):
        return None
    # as long as the cap gives nothing back, a process lives as it does without one
    return Reserved(capped.expected, capped.held if capped.retries else capped.needed)


def smallest_cap(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> int:
    """Return the cap in bytes from which on training runs at full speed: only its beginning retries.

    Found from above, in steps of half a percent: what fits is not monotone in the cap.
    """
    safe = reserved(configuration, users, seen_pairs, programs).upper
    while True:
        cap = safe - int(safe * CAP_STEP)
        if reserved_under(cap, configuration, users, seen_pairs, programs) is None:
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
    retries: int
    """Times that the cap made it give memory back."""
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

    def play(self, cap: float) -> _Played:
        """Run the process under a cap; not played on once it holds more than that, or retries too often."""
        process = _Settling(None if cap == inf else int(cap))
        allocator, expected, early_retries = process.allocator, 0, 0
        late_retries: float = inf
        try:
            for number, (part, code) in enumerate([*self.early, *self.later]):
                process.run_part(part, code)
                if number < len(self.early):
                    expected, early_retries = allocator.peak_reserved, allocator.retries
                elif allocator.retries - early_retries > LATE_RETRIES:
                    break
                if allocator.peak_reserved > cap:
                    break
            late_retries = allocator.retries - early_retries
        except CapReachedError:
            pass  # it does not run under this cap
        return _Played(expected, allocator.peak_reserved, allocator.peak_asked, allocator.retries, late_retries)


class _Settling(Process):
    """A process that does not run again what is known to change nothing: a part that found and left this layout."""

    def __init__(self, cap_bytes: int | None) -> None:
        super().__init__(cap_bytes)
        self._settled: dict[tuple[int, int], Layout] = {}
        """By identity of a part and its code, the layout that they left as it was, without a retry."""

    def run_part(self, part: Part, code: Code) -> None:
        """Run a part, unless it would end as it began."""
        key, before, retries = (id(part), id(code)), self.layout(), self.allocator.retries
        if self._settled.get(key) == before:
            return
        self.run(code, part.sizes, part.repeats)
        if self.allocator.retries == retries and self.layout() == before:
            self._settled[key] = before


def _life(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> _Life:
    full, *others = _steps(configuration, programs)
    ranking = _ranking(configuration, users, seen_pairs, programs)
    early = [(full, full.program.setup), (full, full.program.first)]
    early += [(part, part.program.step) for part in (full, ranking, full)]
    return _Life(early, [(part, part.program.step) for part in (*others, full, ranking, full)])


def _uniform_life(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> _Life:
    """Return a life whose passes are all full."""
    full, ranking = _steps(configuration, programs)[0], _ranking(configuration, users, seen_pairs, programs)
    early = [(full, full.program.setup), (full, full.program.first)]
    before, after = ([(full, full.program.step)] * count for count in ALIKE)
    return _Life([*early, *before, (ranking, ranking.program.step)], after)


def _steps(configuration: Configuration, programs: Programs) -> list[Part]:
    """Return the step of the fullest pass, then those of others."""
    rows = [expressions.pass_row(configuration, *size) for size in _passes(configuration)]
    return [_part(configuration.loss, configuration, row, programs) for row in rows]


def _part(loss: str, configuration: Configuration, row: expressions.Row, programs: Programs) -> Part:
    chunks = expressions.chunks(row)
    program = programs(loss, configuration, chunks > 1)
    return Part(program, program.numbers(row), max(0, chunks - 2))


def _passes(full: Configuration) -> list[tuple[int, int]]:
    """Return the tokens and sequences of passes: the fullest, others, and that of an epoch's last batch."""
    fills = [max(1, (fill * full.tokens + 50) // 100) for fill in FILL_PERCENT] if full.several_passes else []
    sizes = [full.tokens, *fills, max(1, full.tokens // LAST_BATCH)]
    return [(tokens, max(1, min(tokens, full.sequences * tokens // full.tokens))) for tokens in sizes]


def _ranking(configuration: Configuration, users: int, seen_pairs: int, programs: Programs) -> Part:
    """Return the program of one evaluation batch."""
    row = expressions.evaluation_row(configuration, users, seen_pairs)
    return _part(expressions.EVALUATION, configuration, row, programs)
