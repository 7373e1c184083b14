"""Run tables: what earlier trainings cost and gave, one row per run, under the public column names.

    dataset, batch_size, max_seq_len, loss_sample_count (`inf` = full softmax), NDCG_10_test      required
    model, seed, Coverage_10_test, Surprisal_10_test, max_allocated_memory (GiB), anything else   kept as it is

Nothing is dropped in silence: every treatment leaves one sentence with its count in `RunTable.notes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from srsplan.models.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

QUALITY = "NDCG_10_test"
MEMORY = "max_allocated_memory"
KNOBS = ("batch_size", "max_seq_len", "loss_sample_count")
REQUIRED = ("dataset", *KNOBS, QUALITY)
RESULTS = re.compile(r"^run_|allocated_memory$|_(test|val|valid|validation)$|_(ms|s|bytes|gib)$", re.IGNORECASE)
COLLAPSED_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How rows that distort statistics are treated."""

    keep_duplicates: bool = False
    """Keep every row of a repeated configuration; by default they become one row, their mean."""
    keep_collapsed: bool = False
    """Keep runs whose training collapsed: NDCG@10 under 1% of the best of their dataset."""


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Validated runs. `frame` has the columns of the file; `notes` say what was changed on the way."""

    path: str
    frame: pd.DataFrame
    rows_read: int
    notes: tuple[str, ...]

    @property
    def datasets(self) -> list[str]:
        """Names in order of the alphabet."""
        return sorted(self.frame["dataset"].unique())

    def largest_negatives(self) -> float:
        """The largest finite number of negatives; 1 where every run is a full softmax."""
        import numpy as np

        finite = self.frame.loc[np.isfinite(self.frame["loss_sample_count"]), "loss_sample_count"]
        return float(finite.max()) if len(finite) else 1.0

    def knobs(self) -> pd.DataFrame:
        """Columns bs, sl, ns, full (0 or 1), one row per run, index of `frame`.

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


def load_runs(path: Path | str, options: RunOptions | None = None) -> RunTable:
    """Read and check a run table (.csv, .csv.gz or .parquet).

    Raises InputError when the file is missing, empty or unreadable, lacks a required column, or holds a batch
    size, length, number of negatives or result that is not a number it can be.
    """
    options = options or RunOptions()
    path = Path(path)
    frame = _read(path)
    _check_columns(frame, path)
    if frame.empty:
        raise InputError(f"{path} has a header and no runs", "give a table with one row per training run")
    frame = _check_values(frame, path)
    rows_read = len(frame)
    frame, merged = (frame, []) if options.keep_duplicates else _merge_duplicates(frame)
    frame, dropped = (frame, []) if options.keep_collapsed else _drop_collapsed(frame)
    frame = frame.reset_index(drop=True)
    notes = [*merged, *dropped, *_remarks(frame)]
    return RunTable(path=str(path), frame=frame, rows_read=rows_read, notes=tuple(notes))


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}", "give the run table: a .csv, .csv.gz or .parquet file")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        frame = pd.read_csv(path, skipinitialspace=True)
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty", "give a table with a header and one row per run") from error
    except (OSError, ValueError) as error:  # parser, decoding and parquet errors are ValueErrors
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"{path} could not be read as a table: {first_line}", "check the file") from error
    # pandas takes surplus cells for an index and shifts every column
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path} has rows with more cells than its header", "give every column a name")
    return frame


def _check_columns(frame: pd.DataFrame, path: Path) -> None:
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns[:60])) or "none"
        raise InputError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; found: {found}",
            "use the public names: " + ", ".join(REQUIRED),
        )


def _check_values(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with text names and numeric columns, or an InputError that names line, column and value."""
    import numpy as np
    import pandas as pd

    frame = frame.copy()
    blank = frame["dataset"].isna() | (frame["dataset"].astype(str).str.strip() == "")
    _refuse(frame["dataset"], blank, path, "every run needs the name of its dataset")
    frame["dataset"] = frame["dataset"].astype(str).str.strip()
    _refuse(frame["dataset"], frame["dataset"] == "average", path, "`average` is the name of the mean: rename it")
    for name in KNOBS:
        number = pd.to_numeric(frame[name], errors="coerce").astype(float)
        whole = (number >= 1) & (np.isinf(number) | (number % 1 == 0))
        allowed = whole if name == "loss_sample_count" else whole & np.isfinite(number)
        full = ", or `inf` for the full softmax" if name == "loss_sample_count" else ""
        _refuse(frame[name], ~allowed, path, f"{name} must be a whole number of at least 1{full}")
        frame[name] = number if name == "loss_sample_count" else number.astype("int64")
    for name in filter(_is_measurement, frame.columns):
        number = pd.to_numeric(frame[name], errors="coerce").astype(float)
        wrong = (number.isna() & frame[name].notna()) | np.isinf(number)
        if name == MEMORY:
            wrong |= number <= 0
        _refuse(frame[name], wrong, path, f"{name} must be a number, or blank for a run without it")
        frame[name] = number
    return frame


def _is_measurement(name: object) -> bool:
    return name == MEMORY or str(name).endswith("_test")


def _refuse(column: pd.Series, wrong: pd.Series, path: Path, hint: str) -> None:
    """Raise for the first wrong cell; a header and counting from one put row 0 on line 2."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        others = f" (and {int(wrong.sum()) - 1} more)" if wrong.sum() > 1 else ""
        value = "blank" if column.isna().iloc[row] else repr(str(column.iloc[row]))
        raise InputError(f"{path}, line {row + 2}: {column.name} is {value}{others}", hint)


def _merge_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per configuration: every column that is no result must agree, results are averaged."""
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
    """Without runs that learned nothing: NDCG@10 under a hundredth of the best of their dataset."""
    best = frame.groupby("dataset")[QUALITY].transform("max")
    collapsed = frame[QUALITY] < COLLAPSED_SHARE * best
    if not collapsed.any():
        return frame, []
    counts = frame.loc[collapsed, "dataset"].value_counts(sort=False)
    places = ", ".join(f"{name} {count}" for name, count in counts.items())
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
        remarks.append(f"Runs of {len(models)} models ({', '.join(models)}) are pooled within each dataset.")
    return remarks


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
