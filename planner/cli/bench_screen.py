"""The screen of `srsplan bench`: tables of forms side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from srsplan.models.units import format_gib, format_ms
from srsplan.planner.cli import console

if TYPE_CHECKING:
    from srsplan.profiler.bench.measuring import Measurement
    from srsplan.profiler.bench.results import Found, Result

UNSTEADY = 2
"""Slowest by fastest repeat, above which a median says little; where most do, the user is told."""


def print_results(found: Sequence[Found]) -> None:
    """Print every table, what is known of kernels and launches, and a warning where repeats disagree."""
    from srsplan.profiler.bench.lines import lines_of
    from srsplan.profiler.bench.results import Result

    results = [each for each in found if isinstance(each, Result)]
    for table in tables(results):
        console.out.print()
        console.out.print(table)
    for line in lines_of([each for each in found if not isinstance(each, Result)]):
        console.out.print(line, soft_wrap=True, markup=False)
    if warning := unsteady([result.measured for result in results]):
        console.err.print(warning, soft_wrap=True)


def tables(results: Iterable[Result]) -> Iterator[Group]:
    """Yield a table for each shape, kind of logits and function, in the order asked for: forms of one side by side."""
    grouped: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        found = result.measured
        kind = "sampled softmax" if found.loss.sampled else "full softmax"
        grouped.setdefault((found.shape.name, found.logits.title, kind), []).append(result)
    for (name, logits, kind), group in grouped.items():
        yield _table(f"{name}, {logits}, {kind}", group)


def _table(title: str, results: Sequence[Result]) -> Group:
    """Return a table with ratios to the first that ran: eager PyTorch, if it fits. What did not run follows."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False, collapse_padding=True)
    all_found = [result.measured for result in results]
    checked = any(found.loss_error is not None for found in all_found)
    measured = any(found.peak_bytes is not None for found in all_found)
    table.add_column("")  # long names wrap, figures never
    memory = "memory" if measured else "by ledger"
    for name in ("forward", "+ backward", "x first", "x floor", memory, *(("loss off",) if checked else ())):
        table.add_column(name, justify="right", no_wrap=True)
    first = next((found.total_ms for found in all_found if found.total_ms), 0.0)
    for result in results:
        if result.measured.status == "ok":
            table.add_row(*_cells(result, first, measured, checked))
    left = [Text(_not_run(found), style="dim") for found in all_found if found.status != "ok"]
    return Group(Text(title, style="bold"), table, *left)


def _cells(result: Result, first_ms: float, measured: bool, checked: bool) -> Iterator[str]:
    """Yield the cells of a contestant that ran."""
    found = result.measured
    yield found.label
    for figure in (found.forward_ms, found.total_ms):
        yield "-" if figure is None else format_ms(figure)
    yield "-" if found.total_ms is None else f"{first_ms / found.total_ms:.2f}"
    yield "-" if result.times_the_floor is None else f"{result.times_the_floor:.1f}"
    size = found.peak_bytes if measured else found.ledger_bytes
    yield "-" if size is None else format_gib(size)
    if checked:
        yield "-" if found.loss_error is None else f"{found.loss_error:.0e}"


def _not_run(found: Measurement) -> str:
    """Return the line of a contestant that did not run."""
    memory = "" if found.ledger_bytes is None else f"; {format_gib(found.ledger_bytes)} by the ledger"
    return f"{found.label}: {found.status}, {console.plain(found.reason)}{memory}"


def unsteady(measurements: Iterable[Measurement]) -> str:
    """Return a warning where repeats disagree, "" where they do not."""
    spreads = [found.slowest_ms / found.fastest_ms for found in measurements if found.slowest_ms and found.fastest_ms]
    count = sum(spread > UNSTEADY for spread in spreads)
    if 2 * count <= len(spreads):
        return ""
    return f"repeats of {count} of {len(spreads)} times differ more than {UNSTEADY}-fold: something else runs here"
