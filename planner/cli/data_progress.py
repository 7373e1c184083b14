"""The progress of reading interactions, on stderr: nothing where it takes a second, or where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from srsplan.models.data import progress
from srsplan.planner.cli import console

SHOWN_AFTER_SECONDS = 1.0


@contextmanager
def shown() -> Iterator[None]:
    """Show the progress of what is read within the block, on a terminal, from the second second on."""
    if not console.err.is_terminal:
        yield
        return
    bar = _Bar()
    try:
        with progress.heard_by(bar):
            yield
    finally:
        bar.stop()


class _Bar:
    """One bar over all phases; it vanishes when the data are there."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __call__(self, doing: str, share: float) -> None:
        if self._bar is None and time.monotonic() - self._began >= SHOWN_AFTER_SECONDS:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("eta"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=console.err, transient=True)
            self._task = self._bar.add_task(doing, total=1.0)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, description=doing, completed=share)

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
