"""What `srsplan compare` says while it runs: what is to be done, a bar with an estimate, one line for each run."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from srsplan.models.units import format_duration, format_gib
from srsplan.planner.cli import console
from srsplan.planner.cli.compare_orders import Comparison
from srsplan.planner.comparison.eta import remaining_seconds
from srsplan.planner.comparison.output import PlannedRun, left_aside
from srsplan.planner.comparison.scheduling import Room

SHOWN_FOLDERS = 3


def introduce(comparison: Comparison, waiting: Sequence[PlannedRun], room: Room, threads: int) -> None:
    """Say what will be run, and how, before it begins."""
    parts = [
        _counted(len(comparison.configurations), "configuration"),
        _counted(len(comparison.data), "data file"),
        _counted(len(comparison.seeds), "seed"),
    ]
    total = len(comparison.runs)
    there = f"; {total - len(waiting):,} have ended already" if len(waiting) < total else ""
    console.err.print(f"{' x '.join(parts)} = {_counted(total, 'run')}{there}", soft_wrap=True)
    aside = left_aside(comparison.output, comparison.runs)
    if aside:
        some = ", ".join(str(folder) for folder in aside[:SHOWN_FOLDERS]) + (", ..." if aside[SHOWN_FOLDERS:] else "")
        told = f"{_counted(len(aside), 'run')} in {comparison.output} that the file does not name: left aside ({some})"
        console.err.print(console.plain(told), style="yellow", markup=False, soft_wrap=True)
    for note in comparison.notes:
        console.err.print(note, style="yellow", markup=False, soft_wrap=True)
    if waiting:
        console.err.print(_how(waiting, room, threads), soft_wrap=True)


def _how(waiting: Sequence[PlannedRun], room: Room, threads: int) -> str:
    at_once = min(room.jobs, len(waiting))
    told = f"{at_once} at once, {_counted(threads, 'thread')} each"
    if room.memory_bytes is None:
        return told
    largest = format_gib(max(run.need_bytes for run in waiting))
    return f"{told}; at most {largest} each, as predicted, of {format_gib(room.memory_bytes)}"


class Told:
    """A bar over all runs on stderr, and a line for each run that ends; hears a comparison as its Watcher."""

    def __init__(self, total: int, done: int, waiting: Sequence[PlannedRun]) -> None:
        columns = (
            TextColumn("runs"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            _Live(self._note),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console.err)
        self._task = self._progress.add_task("runs", total=total, completed=done)
        self._waiting = list(waiting)
        self._running: dict[PlannedRun, float] = {}
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._total, self._done = total, done

    def __enter__(self) -> Told:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def on_start(self, run: PlannedRun) -> None:
        """Count the run as running."""
        self._waiting.remove(run)
        self._running[run] = time.monotonic()

    def on_end(self, run: PlannedRun, seconds: float, failure: str | None) -> None:
        """Print a line, and estimate anew."""
        del self._running[run]
        which = f"{run.configuration}; {run.block}"
        if failure is None:
            self._done += 1
            self._seconds[run.configuration].append(seconds)
            self._progress.console.print(
                console.plain(f"ended   {which}: {format_duration(seconds)}"), markup=False, soft_wrap=True
            )
        else:
            told = console.plain(f"failed  {which}: {failure}; see {run.log}")
            self._progress.console.print(told, style="red", markup=False, soft_wrap=True)
        self._progress.advance(self._task)

    def say_stopped(self, output: Path) -> None:
        """Say what is kept after Ctrl-C, and that the same command goes on."""
        console.err.print(
            f"stopped; {self._done} of {_counted(self._total, 'run')} have ended, and of the others every whole epoch "
            f"is kept in {console.markup(output)}. The same command goes on:",
            soft_wrap=True,
        )
        console.err.print(console.command(["srsplan", *sys.argv[1:]]), markup=False, soft_wrap=True)

    def _note(self) -> str:
        """Say how long it still takes, and what runs."""
        now, running = time.monotonic(), dict(self._running)  # copies: this is asked by the thread of the bar
        going = [(run.configuration, now - began) for run, began in running.items()]
        waiting = [run.configuration for run in list(self._waiting)]
        left = remaining_seconds(dict(self._seconds), waiting, going, len(going))
        names = ", ".join(dict.fromkeys(name for name, _ in going))[:60]
        eta = "eta after the first run" if left is None else f"eta {format_duration(left)}"
        return console.plain(f"{eta}; {names}" if names else "")


class _Live(ProgressColumn):
    """A text that is asked for once a second."""

    max_refresh = 1.0

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        """Return the present text."""
        return Text(self._text())


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
