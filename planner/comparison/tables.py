"""The files of a comparison: summary.csv, summary.md, tests.csv and the document that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING

from srsplan.planner.comparison.findings import Findings, Moments, Row

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
ALL_DATA = "all"
Cell = str | int | float | None


def summary(findings: Findings) -> pd.DataFrame:
    """Return a row for each configuration, and one more for each data file where there are several.

    Columns METRIC_mean, METRIC_sd and METRIC_n for every metric; the difference to the best is in the metric that
    decides, over all data.
    """
    import pandas as pd

    rows: list[dict[str, Cell]] = []
    for row in findings.rows:
        rows.append({"configuration": row.name, "data": ALL_DATA, **_difference_cells(row), **_cells(row.metrics)})
        if len(row.by_data) > 1:
            rows += [{"configuration": row.name, "data": data, **_cells(one)} for data, one in row.by_data.items()]
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _difference_cells(row: Row) -> dict[str, Cell]:
    found = row.difference
    return {
        "difference_to_best": None if found is None else found.mean,
        "low_95": None if found is None else found.low,
        "high_95": None if found is None else found.high,
        "p_holm": row.p_holm,
        "mean_rank": row.mean_rank,
        "epoch_seconds": row.epoch_seconds,
    }


def _cells(metrics: Mapping[str, Moments]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for name, moments in metrics.items():
        cells |= {f"{name}_mean": moments.mean, f"{name}_sd": moments.sd, f"{name}_n": moments.n}
    return cells


def tests(findings: Findings) -> pd.DataFrame:
    """Return a row for each test: paired t against the best, Friedman over all, Nemenyi for every pair."""
    import pandas as pd

    columns = (
        "test", "metric", "configuration", "other", "blocks", "difference", "low_95", "high_95", "statistic",
        "p", "p_adjusted",
    )  # fmt: skip
    table: pd.DataFrame = pd.DataFrame([*_paired(findings), *_ranked(findings)], columns=list(columns))
    return table


def _paired(findings: Findings) -> Iterator[dict[str, Cell]]:
    for row in findings.rows:
        found = row.difference
        if found is not None:
            yield {
                "test": "paired t, Holm", "metric": findings.metric, "configuration": row.name, "other": findings.best,
                "blocks": found.blocks, "difference": found.mean, "low_95": found.low, "high_95": found.high,
                "statistic": found.t, "p": found.p, "p_adjusted": row.p_holm,
            }  # fmt: skip


def _ranked(findings: Findings) -> Iterator[dict[str, Cell]]:
    found = findings.ranks
    if found is None:
        return
    common: dict[str, Cell] = {"metric": findings.metric, "blocks": found.blocks}
    yield {"test": "Friedman", **common, "statistic": found.chi2, "p": found.p}
    for (at, name), (other_at, other) in combinations(enumerate(findings.ranked), 2):
        apart = float(found.mean[at] - found.mean[other_at])
        p = float(found.nemenyi[at, other_at])
        yield {
            "test": "Nemenyi, mean ranks", **common, "configuration": name, "other": other, "difference": apart,
            "p_adjusted": p,
        }  # fmt: skip


def document(
    findings: Findings, failed: Mapping[str, str], options: Mapping[str, Mapping[str, Cell]]
) -> dict[str, object]:
    """Return what `--json` prints and comparison.json holds; `failed` are messages by the folder of the run."""
    found = findings.ranks
    return {
        "comparison": VERSION,
        "metric": findings.metric,
        "best": findings.best,
        "blocks": findings.blocks,
        "runs": findings.runs,
        "failed": dict(failed),
        "configurations": [{**asdict(row), "options": dict(options.get(row.name, {}))} for row in findings.rows],
        "friedman": None if found is None else {"chi2": found.chi2, "p": found.p, "blocks": found.blocks},
        "nemenyi": None if found is None else {
            "configurations": list(findings.ranked),
            "mean_ranks": found.mean.tolist(),
            "p": found.nemenyi.tolist(),
            "critical_difference": found.critical_difference,
        },
        "notes": list(findings.notes),
    }  # fmt: skip


HEADINGS = ("configuration", "n", "mean", "sd", "to best", "95%", "p Holm", "rank", "s/epoch")


def screen_cells(findings: Findings) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table for people, under HEADINGS."""
    for row in findings.rows:
        moments = row.metrics.get(findings.metric, Moments(n=0, mean=None, sd=None))
        found = row.difference
        best = row.name == findings.best
        half = None if found is None or found.low is None or found.high is None else (found.high - found.low) / 2
        yield (
            row.name, str(moments.n), _plain(moments.mean), _plain(moments.sd),
            "best" if best else "-" if found is None else _signed(found.mean),
            "" if half is None else f"±{half:.4f}",
            p_text(row.p_holm), "" if row.mean_rank is None else f"{row.mean_rank:.2f}",
            "-" if row.epoch_seconds is None else f"{row.epoch_seconds:.3g}",
        )  # fmt: skip


def rank_sentence(findings: Findings) -> str | None:
    """Say what Friedman's test and Nemenyi's critical difference found; None where no ranks were made."""
    found = findings.ranks
    if found is None:
        return None
    return (
        f"Friedman over {found.blocks} blocks: chi-squared {found.chi2:.3g}, p {p_text(found.p)}. Mean ranks that "
        f"differ by less than {found.critical_difference:.2f} (Nemenyi, 5%) are not told apart."
    )


def summary_text(findings: Findings) -> str:
    """Return summary.md: the table of the screen, every other metric, and the sentences beneath them."""
    lines = [f"# Comparison by {findings.metric}", "", *_markdown(HEADINGS, screen_cells(findings)), ""]
    said = rank_sentence(findings)
    lines += [said, ""] if said else []
    lines += [f"- {note}" for note in findings.notes]
    lines += ["", "## Every metric, mean ± standard deviation", "", *_every_metric(findings)]
    return "\n".join(lines) + "\n"


def _every_metric(findings: Findings) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in findings.rows for name in row.metrics))
    cells = ((name, *(_spread(row.metrics.get(name)) for row in findings.rows)) for name in names)
    yield from _markdown(("metric", *(row.name for row in findings.rows)), cells)


def _spread(moments: Moments | None) -> str:
    if moments is None or moments.mean is None:
        return "-"
    return _plain(moments.mean) if moments.sd is None else f"{moments.mean:.4f} ± {moments.sd:.4f}"


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; a bar in a name would end its cell."""
    yield _line(headings)
    yield "|" + "---|" * len(headings)
    yield from (_line(row) for row in rows)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"


def p_text(p: float | None) -> str:
    """Return a p-value as it is printed: three decimals, never 0."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"
