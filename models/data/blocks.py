"""Work on long arrays in blocks: temporary arrays stay a few megabytes, whatever the number of interactions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 18
"""Rows of a block: large enough that numpy's own overhead vanishes, small enough for a processor's cache."""
MOST_THREADS = 4
"""Every thread holds a block of its own, so memory grows with them."""

Task = TypeVar("Task")
Result = TypeVar("Result")


def blocks(rows: int) -> Iterator[slice]:
    """Yield slices that cover so many rows, in order."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def counts(codes: NDArray[np.integer[Any]], size: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return how often each of 0 to `size` - 1 occurs, int64 [size], among the rows where `where` is true."""
    found = np.zeros(size, dtype=np.int64)
    step = max(BLOCK_ROWS, size)  # np.bincount turns its input into int64, and returns an array as long as `size`
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        found += np.bincount(codes[rows] if where is None else codes[rows][where[rows]], minlength=size)
    return found


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where sequences of these lengths [n] begin and end, one after another: int64 [n + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def in_threads(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Yield the results in the order of the tasks; numpy and pyarrow let threads run side by side."""
    threads = min(MOST_THREADS, len(tasks), _processors())
    if threads <= 1:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(work, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
