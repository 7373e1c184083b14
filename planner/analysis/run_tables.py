"""Run tables: what earlier trainings cost and gave, one row per run, under the public column names.

    dataset, batch_size, max_seq_len, loss_sample_count (`inf` = full softmax), NDCG_10_test      required
    model, seed, Coverage_10_test, Surprisal_10_test, max_allocated_memory (GiB), anything else   kept as it is
    NDCG_10_test_head (or mid, tail: of a cohort), NDCG_10_test_low and _high (of an interval)    results, kept as well

Nothing is dropped in silence: every treatment leaves one sentence with its count in `RunTable.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from srsplan.models.errors import InputError
from srsplan.models.schema import shown
from srsplan.planner.analysis.run_files import find_run_files, read_rows

if TYPE_CHECKING:
    import pandas as pd

QUALITY = "NDCG_10_test"
MEMORY = "max_allocated_memory"
KNOBS = ("batch_size", "max_seq_len", "loss_sample_count")
REQUIRED = ("dataset", *KNOBS, QUALITY)
PARTS = r"_test_(head|mid|tail|low|high)$"
"""Endings of a metric of one cohort of items, and of the ends of an interval."""
RESULTS = re.compile(
    rf"^run_|allocated_memory$|_(test|val|valid|validation)$|_(ms|s|bytes|gib)$|{PARTS}", re.IGNORECASE
)
COLLAPSED_SHARE = 0.01

LARGEST_KNOB = 2.0**53
"""Largest knob: beyond it, float64 does not hold every whole number."""

LARGEST_RESULT = 1e100
"""Largest result: the squares of results are summed, and must stay finite."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options for the treatment of rows that distort statistics."""

    keep_duplicates: bool = False
    """Keep every row of a repeated configuration; by default they become one row, their mean."""
    keep_collapsed: bool = False
    """Keep runs whose training collapsed: NDCG@10 under 1% of the best of their dataset."""


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Validated runs. `frame` has the columns of the file; `notes` say what was changed on the way."""

    source: str
    """The file or folder, or how many files there were."""
    frame: pd.DataFrame
    rows_read: int
    """Rows of all files, before duplicates were merged and collapsed runs left out."""
    files: int = 1
    notes: tuple[str, ...]

    @property
    def datasets(self) -> list[str]:
        """Names in order of the alphabet."""
        return sorted(self.frame["dataset"].unique())

    def largest_negatives(self) -> float:
        """Return the largest finite number of negatives; 1 where every run is a full softmax."""
        import numpy as np

        finite = self.frame.loc[np.isfinite(self.frame["loss_sample_count"]), "loss_sample_count"]
        return float(finite.max()) if len(finite) else 1.0

    def knobs(self) -> pd.DataFrame:
        """Return columns bs, sl, ns, full (0 or 1), one row per run, index of `frame`.

        A full softmax has no number of negatives: it gets twice the largest finite one, so that it ranks
        above all of them, and the flag `full` lets a model tell it apart.
        """
        import numpy as np
        import pandas as pd

        negatives = self.frame["loss_sample_count"]
        encoded: pd.DataFrame = pd.DataFrame(
            {
                "bs": self.frame["batch_size"].astype(float),
                "sl": self.frame["max_seq_len"].astype(float),
                "ns": negatives.replace(np.inf, 2 * self.largest_negatives()),
                "full": np.isinf(negatives).astype(float),
            }
        )
        return encoded


def load_runs(paths: Path | str | Sequence[Path], options: RunOptions | None = None) -> RunTable:
    """Read and check run tables: files (.csv, .csv.gz, .parquet), and folders with the `runs.csv` of trained runs.

    Raises InputError when a file is missing, empty or unreadable, lacks a required column, or holds a batch size,
    length, number of negatives or result that is not a number it can be.
    """
    import pandas as pd

    options = options or RunOptions()
    given = [Path(paths)] if isinstance(paths, Path | str) else list(paths)
    files = find_run_files(given)
    frame = pd.concat([_checked(path) for path in files], ignore_index=True)
    rows_read = len(frame)
    frame, merged = (frame, []) if options.keep_duplicates else _merge_duplicates(frame)
    frame, dropped = (frame, []) if options.keep_collapsed else _drop_collapsed(frame)
    frame = frame.reset_index(drop=True)
    notes = [*merged, *dropped, *_remarks(frame)]
    source = str(given[0]) if len(given) == 1 else f"{len(files)} files"
    return RunTable(source=source, files=len(files), frame=frame, rows_read=rows_read, notes=tuple(notes))


def _checked(path: Path) -> pd.DataFrame:
    """Return the rows of one file, every value of which is possible."""
    frame = read_rows(path)
    _check_columns(frame, path)
    if frame.empty:
        raise InputError(f"{path} has a header and no runs", "give a table with one row per training run")
    return _check_values(frame, path)


def _check_columns(frame: pd.DataFrame, path: Path) -> None:
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        found = ", ".join(str(name)[:60] for name in frame.columns[:60]) or "none"
        raise InputError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; found: {found}",
            "use the public names: " + ", ".join(REQUIRED),
        )


def _check_values(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the frame with text names and numeric columns; InputError names the wrong line, column and value."""
    import numpy as np
    import pandas as pd

    frame = frame.copy()
    blank = frame["dataset"].isna() | (frame["dataset"].astype(str).str.strip() == "")
    _refuse(frame["dataset"], blank, path, "every run needs the name of its dataset")
    frame["dataset"] = frame["dataset"].astype(str).str.strip()
    _refuse(frame["dataset"], frame["dataset"] == "average", path, "`average` is the name of the mean: rename it")
    for name in KNOBS:
        number = pd.to_numeric(frame[name], errors="coerce").astype(float)
        whole = (number >= 1) & (np.isinf(number) | ((number % 1 == 0) & (number < LARGEST_KNOB)))
        allowed = whole if name == "loss_sample_count" else whole & np.isfinite(number)
        full = ", or `inf` for the full softmax" if name == "loss_sample_count" else ""
        _refuse(frame[name], ~allowed, path, f"{name} must be a whole number from 1 to 2^53{full}")
        frame[name] = number if name == "loss_sample_count" else number.astype("int64")
    for name in filter(_is_measurement, frame.columns):
        number = pd.to_numeric(frame[name], errors="coerce").astype(float)
        wrong = (number.isna() & frame[name].notna()) | (number.abs() > LARGEST_RESULT)
        if name == MEMORY:
            wrong |= number <= 0
        _refuse(frame[name], wrong, path, f"{name} must be a number, or blank for a run without it")
        frame[name] = number
    return frame


def _is_measurement(name: object) -> bool:
    return name == MEMORY or str(name).endswith("_test") or re.search(PARTS, str(name)) is not None


def _refuse(column: pd.Series, wrong: pd.Series, path: Path, hint: str) -> None:
    """Raise for the first wrong cell; a header and counting from one put row 0 on line 2."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        others = f" (and {int(wrong.sum()) - 1} more)" if wrong.sum() > 1 else ""
        value = "blank" if column.isna().iloc[row] else shown(str(column.iloc[row]))
        raise InputError(f"{path}, line {row + 2}: {column.name} is {value}{others}", hint)


def _merge_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return one row per configuration: every column that is no result must agree, results are averaged."""
    import pandas as pd

    setting = [name for name in frame.columns if not RESULTS.search(str(name))]
    repeated = int(frame.duplicated(setting).sum())
    if not repeated:
        return frame, []
    results = [name for name in frame.columns if name not in setting]
    rules = {name: "mean" if pd.api.types.is_numeric_dtype(frame[name]) else "first" for name in results}
    merged = frame.groupby(setting, sort=False, dropna=False, as_index=False).agg(rules)
    note = (
        f"{_rows(repeated)} of {len(frame)} repeat{'s' if repeated == 1 else ''} a configuration (equal in every "
        f"column that is not a result): merged into the mean, {len(merged)} left; --keep-duplicates keeps them."
    )
    return merged[list(frame.columns)], [note]


def _drop_collapsed(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Drop runs that learned nothing: NDCG@10 under a hundredth of the best of their dataset."""
    best = frame.groupby("dataset")[QUALITY].transform("max")
    collapsed = frame[QUALITY] < COLLAPSED_SHARE * best
    if not collapsed.any():
        return frame, []
    counts = frame.loc[collapsed, "dataset"].value_counts(sort=False)
    places = listed([f"{name} {count}" for name, count in counts.items()])
    note = (
        f"{_rows(int(collapsed.sum()))} collapsed in training ({QUALITY} under {COLLAPSED_SHARE:.0%} of the best of "
        f"the dataset: {places}): left out; --keep-collapsed keeps them."
    )
    return frame[~collapsed], [note]


def _remarks(frame: pd.DataFrame) -> list[str]:
    remarks = []
    blank = int(frame[QUALITY].isna().sum())
    if blank:
        remarks.append(f"{_rows(blank)} without {QUALITY}: not used where it is needed.")
    models = sorted(frame["model"].dropna().astype(str).unique()) if "model" in frame.columns else []
    if len(models) > 1:
        remarks.append(f"Runs of {len(models)} models ({listed(models)}) are pooled within each dataset.")
    return remarks


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names for a sentence: all of them, or the first ones and how many more there are."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more:,} more"


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
