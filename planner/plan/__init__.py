"""The plan: what `recommend` decides, as a file that people edit and `train` reads.

    document.py     the plan's parts, strictly checked
    making.py       from a recommendation to a plan
    file.py         reading and writing, so that nothing of the user's is lost

Importing this package alone loads none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srsplan.planner.plan.document import Plan

DEFAULT_PATH = Path("srsplan.plan.yaml")


def read_plan(path: Path) -> Plan:
    """Read and check the plan at `path`; InputError names the file, the key and what to change."""
    from srsplan.planner.plan import file

    return file.read_plan(path)
