"""critical_difference.svg: mean ranks on a line, bars over configurations that Nemenyi's test does not tell apart.

The diagram is Demsar's (https://jmlr.org/papers/v7/demsar06a.html), drawn by scikit-posthocs in black: what is told
apart is told by lines and places, not by colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from srsplan.planner.analysis.plots import encode, panels, picture_text, style
from srsplan.planner.comparison.findings import Findings
from srsplan.planner.comparison.statistics import Ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CONFIGURATIONS = 40
"""Configurations above which the lines could not be told apart."""
INK = "#222222"


def draw(findings: Findings) -> bytes | None:
    """Return the picture as SVG; None where there are no ranks, or too many to draw."""
    found = findings.ranks
    if found is None or len(findings.ranked) > MOST_CONFIGURATIONS:
        return None
    with style():
        figure, (panel,) = panels(1, 1, (9.0, 2.4 + 0.28 * len(findings.ranked)))
        _draw(panel, found, _distinct(findings.ranked))
        panel.set_title(
            f"Mean ranks by {findings.metric} over {found.blocks} blocks (1 is the best)\n"
            "a thick bar joins what is not told apart at the 5% level (Nemenyi)",
            pad=16,
        )
        return encode(figure, "svg")


def _draw(panel: Axes, found: Ranks, names: list[str]) -> None:
    import pandas as pd
    import scikit_posthocs

    series = pd.Series(found.mean, index=names)
    p_values = pd.DataFrame(found.nemenyi, index=names, columns=names)
    scikit_posthocs.critical_difference_diagram(
        series, p_values, cd=found.critical_difference, ax=panel,
        label_fmt_left="{label} ({rank:.2f})", label_fmt_right="({rank:.2f}) {label}",
        label_props={"color": INK, "fontsize": 9}, elbow_props={"color": INK, "linewidth": 0.9},
        marker_props={"color": INK, "s": 18}, crossbar_props={"color": INK, "linewidth": 3},
    )  # fmt: skip
    panel.set_xlim(min(1.0, series.min()) - 0.05, max(len(names), series.max()) + 0.05)


def _distinct(names: tuple[str, ...]) -> list[str]:
    """Return names as a picture may have them, each once: what is cut short may have become equal."""
    shown: list[str] = []
    for name in names:
        text = picture_text(name)
        shown.append(text if text not in shown else f"{text} {len(shown) + 1}")
    return shown
