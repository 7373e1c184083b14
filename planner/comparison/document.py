"""The file of `srsplan compare`: YAML that says which configurations are trained on which data with which seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, JsonValue, ValidationError
from pydantic_core import PydanticCustomError

from srsplan.models.errors import InputError
from srsplan.models.files import read_limited
from srsplan.models.plain_yaml import parsed
from srsplan.models.schema import Document, explained, shown

LARGEST_BYTES = 1 << 20
MOST_SEEDS = 1_000
FIRST_SEED = 42
"""Seed of the first run where a file says how many seeds there are: the default of `srsplan train`."""
LARGEST_SEED = 2**31 - 1

MetricName = Literal["NDCG", "HitRate", "MRR", "Coverage", "Surprisal"]
METRICS = tuple(f"{name}_{rank}" for rank in (10, 1, 5, 20, 100) for name in get_args(MetricName))
"""Metrics of the test that every run reports (models/training/metrics.py)."""

WRITE_ONE = "write one: data, seeds and runs; docs/compare.md has an example"
MEND = "mend the file; docs/compare.md says what each key holds"

LONGEST_PATH = 4_096
Options = dict[str, JsonValue]
"""Options of `srsplan train` by name, with `-` or `_`; a list stands for each of its values."""


def _paths(given: object) -> tuple[str, ...]:
    """Return one path or a list of them as a tuple."""
    paths = given if isinstance(given, list) else [given]
    if not paths or not all(isinstance(each, str) and 0 < len(each) <= LONGEST_PATH for each in paths):
        raise PydanticCustomError("paths", "give a file of interactions, or a list of files")
    return tuple(paths)


def _seeds(given: object) -> tuple[int, ...]:
    """Return the seeds that a number of them, or a list, stands for."""
    if type(given) is int and 1 <= given <= MOST_SEEDS:
        return tuple(range(FIRST_SEED, FIRST_SEED + given))
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_SEEDS:
        raise PydanticCustomError("seeds", f"give how many seeds, 1 to {MOST_SEEDS:,}, or a list of seeds")
    wrong = next((seed for seed in given if type(seed) is not int or not 0 <= seed <= LARGEST_SEED), None)
    if wrong is not None:
        raise PydanticCustomError("seeds", f"{shown(wrong)} is no seed: give whole numbers from 0 to {LARGEST_SEED}")
    repeated = next((seed for at, seed in enumerate(given) if seed in given[:at]), None)
    if repeated is not None:
        raise PydanticCustomError("seeds", f"the seed {repeated} stands twice: name each seed once")
    return tuple(given)


class CompareFile(Document):
    """What a comparison file may say."""

    data: Annotated[tuple[str, ...], BeforeValidator(_paths)]
    """Interactions: one file, or several; relative to the comparison file."""
    output: Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)] | None = None
    """Folder of the runs and tables, relative to the comparison file; else a folder with the file's name."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = (42, 43, 44)
    """How many seeds, from 42 on; or the seeds themselves."""
    metric: str = METRICS[0]
    """The metric that decides which configuration is the best."""
    defaults: Options = Field(default_factory=dict)
    """Options of every run that does not say otherwise."""
    runs: Annotated[list[Options], Field(min_length=1)]
    """Configurations: options of `srsplan train`, and an optional `name`."""

    def data_by_name(self, folder: Path) -> dict[str, Path]:
        """Return the files of interactions by their names without endings; InputError where two have one name.

        `folder` is that of the comparison file, which relative paths start from.
        """
        found: dict[str, Path] = {}
        for text in self.data:
            path = beside(folder, text)
            stem = path.name.split(".")[0] or path.name
            if stem in found:
                raise InputError(f"two data files are named {stem!r}: {found[stem]} and {path}", "rename one of them")
            found[stem] = path
        return found


def read_compare_file(path: Path) -> CompareFile:
    """Read and check a comparison file; InputError names the file, the key and what to change."""
    document = parsed(read_limited(path, "comparison file", WRITE_ONE, LARGEST_BYTES), path, "comparison file", MEND)
    if not isinstance(document, dict):
        raise InputError(f"{path} is no comparison file: it holds {shown(document)}", WRITE_ONE)
    try:
        found = CompareFile.model_validate(document)
    except ValidationError as error:
        raise explained(error, str(path), CompareFile.model_fields, MEND) from None
    if found.metric not in METRICS:
        raise InputError(f"{path}: runs have no metric {shown(found.metric)}", f"metrics are {', '.join(METRICS)}")
    return found


def beside(folder: Path, text: str) -> Path:
    """Return a path as a comparison file means it: relative to the file's own folder, without needless `..`."""
    path = Path(os.path.abspath(folder / text))
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
