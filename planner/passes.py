"""The pass of a configuration: the whole batch where memory has room for it, otherwise the largest that fits.

A batch runs in passes of at most so many tokens, whose gradients accumulate: the step is the same, memory is that of
one pass, and a smaller pass costs time. `largest_pass` looks for the largest on a grid of round sizes, some 2 to 3%
apart. Whether a size fits is a replay of some milliseconds, so the closed form of the tensors, which is nearly free,
says first where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.planner.workload import Workload

LARGEST_PASS = 1 << 20
"""Tokens of the largest pass: no kernel is faster with more."""

SMALL_PASS = 1024
"""Tokens: smaller passes leave a GPU idle and are tried only where nothing else fits."""

SIZES_PER_DOUBLING = 32

USUAL_SHARE = {True: 0.85, False: 0.6}
"""Share of the memory above that of the smallest pass that tensors can take, about, by whether the loss is chunked:
where a search begins."""

SURE_SHARE = 0.65
"""Tensors of less than this share of a limit always fit it."""


class Memory(Protocol):
    """What a search for the largest pass asks of memory."""

    def allocated(self, configurations: Sequence[Configuration]) -> list[int]:
        """Return the bytes of tensors at the peak of each."""
        ...

    def fits(self, configuration: Configuration) -> bool:
        """Tell whether everything that a process may reserve is within the limit."""
        ...

    @property
    def limit(self) -> int:
        """Bytes that the allocator may reserve."""
        ...


def whole_pass(workload: Workload, batch_size: int, seq_len: int) -> int:
    """Return the tokens of a pass that holds practically every batch, at most `LARGEST_PASS`."""
    return max(seq_len, min(workload.fullest_batch(batch_size, seq_len), LARGEST_PASS, batch_size * seq_len))


def with_pass(configuration: Configuration, tokens: int, workload: Workload) -> Configuration:
    """Return the configuration in passes of so many tokens, and the sequences that they may have with this workload."""
    sequences = workload.pass_sequences(tokens, configuration.batch_size, configuration.seq_len)
    return replace(configuration, pass_tokens=tokens, pass_sequences=sequences)


def with_whole_pass(configuration: Configuration, workload: Workload) -> Configuration:
    """Return the configuration in one pass."""
    tokens = whole_pass(workload, configuration.batch_size, configuration.seq_len)
    return with_pass(configuration, tokens, workload)


def in_one_pass(whole: Configuration, memory: Memory) -> Configuration:
    """Return what takes less memory of two: a pass that practically holds every batch, and one that surely does.

    The second has more tokens. The first may need another pass after it, and so has room for a second gradient of the
    table, which is more where the catalog is large.
    """
    sure = replace(whole, pass_tokens=whole.batch_tokens, pass_sequences=whole.batch_size)
    if sure.tokens > LARGEST_PASS or not whole.several_passes:
        return whole
    return min((whole, sure), key=lambda each: memory.allocated([each])[0])


def pass_sizes(least: int, whole: int) -> list[int]:
    """Return round numbers of tokens from `least` up, 32 for each doubling, and `whole` as the last."""
    sizes = {min(least, whole), whole, *range(least, min(SIZES_PER_DOUBLING, whole))}
    unit = 1
    while SIZES_PER_DOUBLING * unit < whole:
        steps = range(SIZES_PER_DOUBLING, 2 * SIZES_PER_DOUBLING)
        sizes |= {step * unit for step in steps if least < step * unit < whole}
        unit *= 2
    return sorted(sizes)


def smallest_pass(whole: Configuration, workload: Workload, least: int = SMALL_PASS) -> Configuration:
    """Return a configuration, given with its whole batch in a pass, in the smallest passes that are tried."""
    return with_pass(whole, min(whole.tokens, max(least, whole.seq_len)), workload)


def largest_pass(
    whole: Configuration, workload: Workload, memory: Memory, least: int = SMALL_PASS, share: float | None = None
) -> Configuration | None:
    """Return a configuration, given with its whole batch in a pass, in the largest passes that fit; None where none do.

    The next larger size does not fit: its tensors alone do not, or not what the allocator reserves for them. The search
    begins where tensors take a `share` of what the smallest pass leaves: a guess, which changes how long it takes.
    """
    share = USUAL_SHARE[LOSSES[whole.loss].chunked] if share is None else share
    one = in_one_pass(whole, memory)
    if memory.allocated([one])[0] <= memory.limit and memory.fits(one):
        return one
    cut = passes_within(whole, workload, memory, least)
    peaks = memory.allocated(cut)
    if not cut or (peaks[0] > SURE_SHARE * memory.limit and not memory.fits(cut[0])):
        return None
    start = sum(peak <= peaks[0] + share * (memory.limit - peaks[0]) for peak in peaks) - 1
    return _largest_fitting(cut, memory, max(0, start))


def larger_pass(found: Configuration, workload: Workload, memory: Memory) -> Configuration:
    """Return a configuration in the largest passes that fit, not below those that `largest_pass` found for it.

    That search takes what fits to be monotone. Of eager losses it is not: under a cap some sizes find a lasting place
    for their blocks, and smaller ones make the allocator give memory back at every pass. Here every larger size of
    which the tensors fit is tried, the largest first: for the few configurations that are shown.
    """
    within = passes_within(with_whole_pass(found, workload), workload, memory, found.tokens)
    larger = (each for each in reversed(within) if each.tokens > found.tokens)
    return next(filter(memory.fits, larger), found)


def passes_within(
    whole: Configuration, workload: Workload, memory: Memory, least: int = SMALL_PASS
) -> list[Configuration]:
    """Return a configuration in passes smaller than the whole batch, ascending, up to the largest whose tensors fit."""
    cut = _cut(whole, workload, least)
    within = [place for place, peak in enumerate(memory.allocated(cut)) if peak <= memory.limit]
    return cut[: within[-1] + 1] if within else []


def _cut(whole: Configuration, workload: Workload, least: int) -> list[Configuration]:
    sizes = pass_sizes(smallest_pass(whole, workload, least).tokens, whole.tokens)
    return [with_pass(whole, tokens, workload) for tokens in sizes[:-1]]


def _largest_fitting(ascending: Sequence[Configuration], memory: Memory, start: int) -> Configuration | None:
    """Return the largest that fits: from `start` by doubling steps to the other side of the limit, then by halves."""
    fits, fails, step = -1, len(ascending), 1
    while fails - fits > 1:
        at = start if step == 1 else fits + step if fails == len(ascending) else fails - step
        if fits >= 0 and fails < len(ascending):
            at = (fits + fails) // 2
        at = min(max(at, fits + 1), fails - 1)
        fits, fails = (at, fails) if memory.fits(ascending[at]) else (fits, at)
        step *= 2
    return ascending[fits] if fits >= 0 else None
