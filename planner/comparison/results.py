"""What finished runs left behind, read back as one table with a row for each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationError

from srsplan.models.errors import InputError
from srsplan.models.files import read_limited
from srsplan.models.training.folder import METRICS
from srsplan.planner.analysis.run_files import RUN_FILE, read_rows
from srsplan.planner.comparison.output import PlannedRun

if TYPE_CHECKING:
    import pandas as pd

CONFIGURATION, BLOCK, DATA, SECONDS = "configuration", "block", "data", "epoch_seconds"
KEPT = (CONFIGURATION, DATA, BLOCK, "seed", "folder", SECONDS, "epochs", "best_epoch")
"""Columns of the table that are no metrics."""

AGAIN = "delete the folder: the run is then trained again"


class _Result(BaseModel):
    """The part of metrics.json that a comparison needs; other keys are other people's."""

    test: dict[str, float] = Field(min_length=1)
    epochs: int
    best_epoch: int
    epoch_seconds: float | None


def read_results(runs: Sequence[PlannedRun], metric: str) -> pd.DataFrame:
    """Return a row for each ended run: configuration, data, block, seed, epochs, and every metric of the test.

    InputError where a metrics.json is damaged, or none has the metric.
    """
    import pandas as pd

    rows = [_row(run) for run in runs if run.ended]
    table: pd.DataFrame = pd.DataFrame(rows, columns=None if rows else [*KEPT, metric])
    if metric not in table:
        names = [name for name in table.columns if name not in KEPT]
        raise InputError(f"the runs have no metric {metric!r}", f"they have {', '.join(names)}")
    return table


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Return the names of the metrics, in the order of the runs."""
    return [str(name) for name in table.columns if name not in KEPT]


def read_run_rows(runs: Sequence[PlannedRun]) -> pd.DataFrame:
    """Return the rows that `srsplan train` wrote for the ended runs, named after their configurations."""
    import pandas as pd

    ended = (run for run in runs if run.ended and (run.folder / RUN_FILE).exists())
    frames = [read_rows(run.folder / RUN_FILE).assign(exp_name=run.configuration) for run in ended]
    table: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return table


def _row(run: PlannedRun) -> dict[str, str | int | float | None]:
    path = run.folder / METRICS
    try:
        found = _Result.model_validate_json(read_limited(path, "result", AGAIN))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise InputError(f"the result {path} is damaged: {first['msg']}", AGAIN) from None
    return {
        CONFIGURATION: run.configuration, DATA: run.data, BLOCK: run.block, "seed": run.seed,
        "folder": str(run.folder), SECONDS: found.epoch_seconds, "epochs": found.epochs,
        "best_epoch": found.best_epoch, **found.test,
    }  # fmt: skip
