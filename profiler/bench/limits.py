"""Sizes that are refused before any work: what cannot fit in memory, and what would take hours.

The time is a lower bound: what the device's measured rates leave no way around, and some microseconds for every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized

import torch

from srsplan.kernels.chunking import sampled_chunk_sets, set_count, softmax_chunk_tokens
from srsplan.models.errors import InputError
from srsplan.profiler.bench.ceilings import Ceilings, floor_ms
from srsplan.profiler.bench.contestants import Contestant
from srsplan.profiler.bench.inputs import input_bytes
from srsplan.profiler.bench.shapes import Shape

LONGEST_HOURS = 1.0
"""The lower bound of a whole run's time."""
MOST_REPEATS = 1000
MOST_SHAPES = 100

FORWARD_SHARE = 0.25
"""Forward is one of the four matrix products of forward and backward."""
UNTIMED_CALLS = 2
"""Calls of every contestant before the clock starts, forward and backward."""
CALL_SECONDS = 2e-5
CHUNK_SECONDS = 1e-3
"""Seconds that the ledger takes for each chunk of a chunked form."""


def check_repeats(repeats: int | None) -> None:
    """Raise InputError for a number of repeats that is below 1 or absurdly large."""
    if repeats is not None and not 1 <= repeats <= MOST_REPEATS:
        raise InputError(
            f"--repeats {repeats} is outside 1..{MOST_REPEATS}", "leave it out: 3 to 50 times, about a second each"
        )


def check_count(shapes: Sized) -> None:
    """Raise InputError for absurdly many shapes."""
    if len(shapes) > MOST_SHAPES:
        raise InputError(f"--shapes names {len(shapes)} shapes, the limit is {MOST_SHAPES}", "give fewer")


def check_memory(shapes: Iterable[Shape], dtype: torch.dtype, free: int) -> None:
    """Raise InputError where the inputs of a shape alone do not fit in `free` bytes."""
    for shape in shapes:
        needed = input_bytes(shape, dtype)
        if needed > free:
            raise InputError(
                f"shape {shape.name!r}: its inputs alone take {needed / 2**30:,.1f} GiB, {free / 2**30:,.1f} are free",
                "give fewer tokens, fewer items or a smaller dim, or a smaller --scale",
            )


def check_time(matches: Iterable[tuple[Shape, Contestant]], ceilings: Ceilings, repeats: int | None) -> None:
    """Raise InputError where contestants on their shapes need longer than the limit at the device's best."""
    hours = sum(least_seconds(shape, each, ceilings, repeats) for shape, each in matches) / 3600
    if hours > LONGEST_HOURS:
        raise InputError(
            f"that takes at least {hours:,.1f} hours at the rates just measured, the limit is {LONGEST_HOURS:g}",
            "give smaller or fewer --shapes, a smaller --scale, fewer --losses or --only some, or fewer --repeats",
        )


def least_seconds(shape: Shape, contestant: Contestant, ceilings: Ceilings, repeats: int | None) -> float:
    """Return a lower bound of what a contestant takes on a shape; 0 where it does not run."""
    if contestant.run is None:
        return 0.0
    floor = 1e-3 * floor_ms(shape, contestant.loss, contestant.tokens_per_set, ceilings)
    calls = UNTIMED_CALLS + (repeats or 1)
    timed = calls * ((1 + FORWARD_SHARE) * floor + 2 * CALL_SECONDS)
    return timed + CHUNK_SECONDS * _chunks(shape, contestant)


def _chunks(shape: Shape, contestant: Contestant) -> int:
    if not contestant.chunked:
        return 0
    if not contestant.loss.sampled:
        return -(-shape.tokens // softmax_chunk_tokens(shape.tokens, shape.catalog))
    group = contestant.tokens_per_set
    return -(-set_count(shape.tokens, group) // sampled_chunk_sets(shape.tokens, shape.negatives, shape.dim, group))
