"""Which run starts next: as many at once as there are jobs, within the memory that they share. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_JOBS = 64


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the runs of a comparison share."""

    jobs: int
    """Runs at once, at most."""
    memory_bytes: int | None = None
    """Memory of the card, or of the machine where they run on a CPU; None where nobody knows."""


def next_to_start(waiting: Sequence[int], running: Sequence[int], room: Room) -> int | None:
    """Return the place in `waiting` of the run that may start now; None where one has to end first.

    `waiting` and `running` are the bytes that each run takes at its peak, the waiting ones in the order of the file.
    The first that fits beside the running ones is taken, so that a large run does not keep small ones waiting. A run
    that is larger than the whole memory starts alone: `train` cuts its passes, or says what is wrong.
    """
    if not waiting or len(running) >= room.jobs:
        return None
    if not running:
        return 0
    if room.memory_bytes is None:
        return 0
    free = room.memory_bytes - sum(running)
    return next((at for at, needed in enumerate(waiting) if needed <= free), None)


def jobs_on_cpu(cores: int, runs: int, largest_bytes: int, memory_bytes: int | None) -> int:
    """Return how many runs a CPU takes at once: one a core, as many as there are, and as fit into the memory at worst.

    Two runs with a thread each finish earlier than one after another with two threads (docs/compare.md). `runs` are
    those of the whole comparison, so that the last ones have as many threads as the first.
    """
    jobs = max(1, min(cores, runs, MOST_JOBS))
    if memory_bytes is not None:
        jobs = min(jobs, max(1, memory_bytes // max(1, largest_bytes)))
    return jobs


def threads_of_a_run(cores: int, jobs: int) -> int:
    """Return the threads of each run where so many run at once."""
    return max(1, cores // jobs)
