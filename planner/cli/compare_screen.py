"""The screen of `srsplan compare`: one table, the tests in a sentence, and what stays open."""

from __future__ import annotations

from rich import box
from rich.table import Table

from srsplan.planner.cli import console
from srsplan.planner.cli.compare_runs import Done
from srsplan.planner.comparison.findings import Findings
from srsplan.planner.comparison.tables import HEADINGS, rank_sentence, screen_cells


def show(done: Done) -> None:
    """Print the findings for people."""
    found = done.findings
    console.out.print(table(found))
    for sentence in (rank_sentence(found), legend(found), *found.notes):
        if sentence:
            console.out.print(console.plain(sentence), markup=False)
    names = ", ".join(path.name for path in done.files)
    console.out.print(console.plain(f"in {done.output}: {names}"), markup=False, soft_wrap=True)


def table(found: Findings) -> Table:
    """Return the table of the configurations, the best first."""
    shown = Table(
        title=f"{found.metric} on the test; runs: {found.runs:,}, blocks (data x seeds): {found.blocks:,}",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    rows = list(screen_cells(found))
    columns = [at for at, heading in enumerate(HEADINGS) if at == 0 or any(cells[at] for cells in rows)]
    for at in columns:
        shown.add_column(HEADINGS[at], justify="right" if at else "left", overflow="fold", no_wrap=at > 0)
    for cells in rows:
        texts = (console.markup(cells[at]) for at in columns)
        shown.add_row(*texts, style="bold" if cells[0] == found.best else None)
    return shown


def legend(found: Findings) -> str | None:
    """Say what the columns mean, as far as there are tests."""
    if found.best is None:
        return None
    return (
        "mean, sd: over runs. to best: mean difference within blocks, ± its 95% interval; p of a paired t-test, "
        "adjusted for all of them (Holm). s/epoch: training alone."
    )
