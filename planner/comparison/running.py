"""All runs of a comparison, each in a process of its own, until nothing is left to start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from srsplan.planner.comparison.output import PlannedRun
from srsplan.planner.comparison.processes import Process, start, stop
from srsplan.planner.comparison.scheduling import Room, next_to_start

POLL_SECONDS = 0.1


class Watcher(Protocol):
    """Who is told how a comparison goes on."""

    def on_start(self, run: PlannedRun) -> None:
        """Hear that a run has started."""

    def on_end(self, run: PlannedRun, seconds: float, failure: str | None) -> None:
        """Hear that a run has ended after so many seconds; `failure` says why it has no result."""


@dataclass(kw_only=True)
class Outcome:
    """What became of the runs that were started."""

    finished: list[PlannedRun] = field(default_factory=list)
    failed: dict[PlannedRun, str] = field(default_factory=dict)
    """Why each failed, in one line."""


def run_all(
    waiting: Sequence[PlannedRun],
    room: Room,
    threads: int,
    watcher: Watcher,
    starter: Callable[[PlannedRun, int], Process] = start,
) -> Outcome:
    """Run all, in this order as far as memory allows; a run that fails does not keep the others from running.

    KeyboardInterrupt, and anything else, ends the runs that go on before it is passed on.
    """
    left, running, outcome = list(waiting), list[Process](), Outcome()
    try:
        while left or running:
            at = next_to_start([run.need_bytes for run in left], [each.run.need_bytes for each in running], room)
            if at is not None:
                run = left.pop(at)
                running.append(starter(run, threads))
                watcher.on_start(run)
                continue
            ended = [each for each in running if each.code is not None]
            for each in ended:
                running.remove(each)
                _note(each, outcome, watcher)
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        stop(running)
    return outcome


def _note(process: Process, outcome: Outcome, watcher: Watcher) -> None:
    failure = process.failure()
    if failure is None:
        outcome.finished.append(process.run)
    else:
        outcome.failed[process.run] = failure
    watcher.on_end(process.run, process.seconds, failure)
