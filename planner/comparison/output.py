"""The folder of a comparison: where each run lies, and what is replaced in it.

    NAME/DATA/seed-S/           a run of `srsplan train`
    NAME/DATA/seed-S.log        everything that it printed
    comparison.json             what `--json` prints; marks the folder as a comparison's
    runs.csv, summary.csv, summary.md, tests.csv, critical_difference.svg

Nothing else is ever replaced, and nothing at all in a folder that is no comparison.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from srsplan.models.errors import InputError
from srsplan.models.files import check_output, read_limited, write_atomically
from srsplan.models.training.folder import METRICS, RunFolder
from srsplan.planner.analysis.run_files import COMPARISON, RUN_FILE

LOCK = ".srsplan.lock"
SUMMARY, SUMMARY_TEXT, TESTS, DIAGRAM = "summary.csv", "summary.md", "tests.csv", "critical_difference.svg"
TABLES = (RUN_FILE, SUMMARY, SUMMARY_TEXT, TESTS, DIAGRAM)
KEYS = frozenset({"comparison", "metric", "configurations"})
"""Keys that prove that a comparison.json is srsplan's."""
ANOTHER = "give another folder with -o, or as output in the file"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison: a configuration on one data file with one seed."""

    configuration: str
    data: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    """Options of `srsplan train`, as a command line has them."""
    need_bytes: int = 0
    """Memory at its peak, as it is predicted."""
    on_card: bool = False
    """True where it trains on a GPU."""
    replaces: bool = False
    """True where the folder holds a run of another configuration, which is to be trained anew."""

    @property
    def log(self) -> Path:
        """The file with everything that the run prints."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def ended(self) -> bool:
        """Tell whether the run has been trained and tested."""
        return (self.folder / METRICS).is_file()

    @property
    def begun(self) -> bool:
        """Tell whether there is a run in the folder, ended or not."""
        return RunFolder(self.folder).is_run()

    @property
    def block(self) -> str:
        """The data and the seed: what the runs have in common that are compared in pairs."""
        return f"{self.data}, seed {self.seed}"


def run_folder(output: Path, configuration: str, data: str, seed: int) -> Path:
    """Return the folder of one run; `configuration` and `data` as folders are named."""
    return output / configuration / data / f"seed-{seed}"


def check_folder(output: Path) -> None:
    """Raise InputError unless a comparison may be written there: the folder is new, empty, or a comparison's."""
    try:
        names = {entry.name for entry in os.scandir(output)} - {LOCK}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"the output {output} is a file", ANOTHER) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(f"the output {str(output)[:200]} cannot be a folder: {reason}", ANOTHER) from None
    if names and not is_comparison(output / COMPARISON):
        raise InputError(f"the output {output} is not empty, and not the folder of a comparison", ANOTHER)
    for name in TABLES:
        check_output(output / name, "table", hint=ANOTHER)


def is_comparison(path: Path) -> bool:
    """Tell whether a file is the comparison.json that srsplan wrote."""
    try:
        document = TypeAdapter(dict[str, JsonValue]).validate_json(read_limited(path, "file", ""))
    except (InputError, ValidationError):
        return False
    return document.keys() >= KEYS


def begin(output: Path, document: Mapping[str, object]) -> None:
    """Make the folder a comparison's before the first run starts; what an earlier comparison found stays."""
    make_folder(output)
    if not (output / COMPARISON).exists():
        write_document(output, document)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(f"cannot make the folder {folder}: {reason}", ANOTHER) from error


def write_document(output: Path, document: Mapping[str, object]) -> None:
    """Write comparison.json atomically."""
    write_atomically(output / COMPARISON, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")


def left_aside(output: Path, runs: list[PlannedRun]) -> list[Path]:
    """Return the folders of ended runs that the file does not name any more."""
    named = {run.folder for run in runs}
    found = sorted(path.parent for path in output.glob(f"*/*/seed-*/{METRICS}"))
    return [folder for folder in found if folder not in named]
