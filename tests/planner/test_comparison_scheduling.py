"""Runs side by side: never more than there is room for, none forgotten, and how long the rest takes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsplan.planner.comparison.eta import remaining_seconds
from srsplan.planner.comparison.scheduling import Room, jobs_on_cpu, next_to_start, threads_of_a_run

sizes = st.lists(st.integers(0, 100), max_size=12)


@given(sizes, st.integers(1, 5), st.one_of(st.none(), st.integers(1, 150)), st.randoms())
def test_every_run_starts_once_within_the_room(needs: list[int], jobs: int, memory: int | None, draw: Random) -> None:
    """Played to the end, with runs ending in any order: the card is never overbooked by runs that share it."""
    room, waiting = Room(jobs=jobs, memory_bytes=memory), list(enumerate(needs))
    running, started = list[tuple[int, int]](), list[tuple[int, int]]()
    while waiting or running:
        at = next_to_start([need for _, need in waiting], [need for _, need in running], room)
        if at is None:
            assert running, "nothing runs, and nothing may start"
            assert len(running) == jobs or not waiting or memory is not None
            running.pop(draw.randrange(len(running)))
            continue
        running.append(waiting.pop(at))
        started.append(running[-1])
        assert len(running) <= jobs
        assert memory is None or len(running) == 1 or sum(need for _, need in running) <= memory
    assert sorted(started) == list(enumerate(needs))


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 150))
def test_nothing_that_fits_is_kept_waiting(waiting: list[int], running: list[int], jobs: int, memory: int) -> None:
    at = next_to_start(waiting, running, Room(jobs=jobs, memory_bytes=memory))
    fits = [place for place, need in enumerate(waiting) if sum(running) + need <= memory or not running]
    assert at == (fits[0] if fits and len(running) < jobs else None)


def test_a_large_run_lets_small_ones_pass() -> None:
    assert next_to_start([80, 30], [50], Room(jobs=4, memory_bytes=100)) == 1
    assert next_to_start([80, 30], [], Room(jobs=4, memory_bytes=60)) == 0  # larger than the card: alone
    assert next_to_start([1], [80], Room(jobs=4, memory_bytes=60)) is None


def test_jobs_of_a_cpu() -> None:
    assert jobs_on_cpu(2, 9, 1, None) == 2
    assert jobs_on_cpu(16, 3, 1, None) == 3
    assert jobs_on_cpu(16, 9, 30, 70) == 2
    assert jobs_on_cpu(16, 9, 80, 70) == 1
    assert [threads_of_a_run(16, jobs) for jobs in (1, 3, 16, 64)] == [16, 5, 1, 1]


def test_the_time_that_is_left() -> None:
    assert remaining_seconds({}, ["a"], [("a", 5.0)], 1) is None
    assert remaining_seconds({"a": [10.0, 20.0]}, ["a", "a"], [], 1) == 30.0
    assert remaining_seconds({"a": [10.0], "b": [30.0]}, ["c"], [("b", 10.0)], 2) == 20.0  # c as the mean, 20 s
    assert remaining_seconds({"a": [10.0]}, [], [("a", 2.0), ("a", 12.0)], 4) == pytest.approx(8.0)
