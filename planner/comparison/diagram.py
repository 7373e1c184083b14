"""critical_difference.svg: mean ranks on a line, bars over configurations that Nemenyi's test does not tell apart.

The diagram is Demsar's (https://jmlr.org/papers/v7/demsar06a.html), drawn by scikit-posthocs in one ink: lines and
places tell configurations apart, not colours.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from srsplan.planner.analysis.plots import encode, style
from srsplan.planner.comparison.findings import Findings
from srsplan.planner.comparison.statistics import Ranks

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CONFIGURATIONS = 40
"""Configurations above which the lines could not be told apart."""
INK = "#222222"
WIDE, STEP, TITLE, MARGIN = 6.0, 0.36, 0.7, 0.2
"""Inches: the line of the ranks, the height between two names, the title, and the space around everything."""
WRAPPED = 44
"""Letters of a name after which a new line begins."""
CD_LEVEL, TOP = 1.5, 2.4
"""Heights of the bar that shows the critical difference and of the upper end, in steps above the line."""


def draw(findings: Findings) -> bytes | None:
    """Return the picture as SVG; None where there are no ranks, or too many to draw."""
    found = findings.ranks
    if found is None or len(findings.ranked) > MOST_CONFIGURATIONS:
        return None
    from matplotlib.figure import Figure

    with style():
        figure = Figure()
        panel = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        labels = _ranks(panel, found, _wrapped(findings.ranked))
        _critical_difference(panel, found)
        _fit(figure, panel, labels)
        figure.suptitle(
            f"Mean ranks by {findings.metric} over {found.blocks} blocks; 1 is the best.\n"
            "A thick bar joins what is not told apart at the 5% level (Nemenyi).",
            x=MARGIN / figure.get_figwidth(), y=1 - MARGIN / figure.get_figheight(), ha="left", va="top", fontsize=10,
        )  # fmt: skip
        return encode(figure, "svg")


def _ranks(panel: Axes, found: Ranks, names: list[str]) -> list[Artist]:
    """Draw markers, lines, names and bars; return the names."""
    import pandas as pd
    import scikit_posthocs
    from matplotlib.ticker import MaxNLocator

    drawn = scikit_posthocs.critical_difference_diagram(
        pd.Series(found.mean, index=names), pd.DataFrame(found.nemenyi, index=names, columns=names), ax=panel,
        label_fmt_left="{label} ({rank:.2f})", label_fmt_right="({rank:.2f}) {label}", text_h_margin=0.02,
        color_palette=dict.fromkeys(names, INK), label_props={"fontsize": 9}, elbow_props={"linewidth": 0.9},
        marker_props={"s": 18}, crossbar_props={"color": INK, "linewidth": 3},
    )  # fmt: skip
    panel.spines["top"].set_visible(True)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlim(1, max(float(len(names)), 1 + found.critical_difference))
    panel.set_ylim(min(float(line.get_ydata().min()) for line in drawn["elbows"]) - 0.5, TOP)
    labels: list[Artist] = drawn["labels"]
    return labels


def _critical_difference(panel: Axes, found: Ranks) -> None:
    """Draw the critical difference to scale, above the numbers of the axis."""
    ends = (1.0, 1.0 + found.critical_difference)
    panel.plot(ends, (CD_LEVEL, CD_LEVEL), color=INK, linewidth=1.2, marker="|")
    label = f"critical difference {found.critical_difference:.2f}"
    panel.text(ends[0], CD_LEVEL + 0.2, label, ha="left", va="bottom", fontsize=9, color=INK)


def _fit(figure: Figure, panel: Axes, labels: list[Artist]) -> None:
    """Give the figure the size that every name needs in full."""
    low, high = panel.get_ylim()
    height = STEP * (high - low)
    figure.set_size_inches(WIDE, height)
    panel.set_position((0, 0, 1, 1))
    boxes = [label.get_window_extent() for label in labels]
    left = max(0.0, *(-box.x0 for box in boxes)) / figure.dpi + MARGIN
    right = max(0.0, *(box.x1 / figure.dpi - WIDE for box in boxes)) + MARGIN
    wide, high = left + WIDE + right, height + TITLE + MARGIN
    figure.set_size_inches(wide, high)
    panel.set_position((left / wide, MARGIN / high, WIDE / wide, height / high))


def _wrapped(names: tuple[str, ...]) -> list[str]:
    """Return names in lines of bounded length, each name once and in full."""
    printable = ("".join(letter if letter.isprintable() else "?" for letter in name) for name in names)
    return ["\n".join(textwrap.wrap(name, WRAPPED)) or name for name in printable]
