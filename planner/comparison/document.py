"""The file of `srsplan compare`: YAML that says which configurations are trained on which data with which seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, JsonValue, StrictInt, ValidationError

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

Seed = Annotated[StrictInt, Field(ge=0, le=LARGEST_SEED)]
Text = Annotated[str, Field(min_length=1, max_length=4_096)]
Options = dict[str, JsonValue]
"""Options of `srsplan train` by name, with `-` or `_`; a list stands for each of its values."""


class CompareFile(Document):
    """What a comparison file may say."""

    data: Text | list[Text]
    """Interactions: one file, or several; relative to the comparison file."""
    output: Text | None = None
    """Folder of the runs and tables, relative to the comparison file; else a folder with the file's name."""
    seeds: Annotated[StrictInt, Field(ge=1, le=MOST_SEEDS)] | list[Seed] = 3
    """How many seeds, from 42 on; or the seeds themselves."""
    metric: str = METRICS[0]
    """The metric that decides which configuration is the best."""
    defaults: Options = Field(default_factory=dict)
    """Options of every run that does not say otherwise."""
    runs: Annotated[list[Options], Field(min_length=1)]
    """Configurations: options of `srsplan train`, and an optional `name`."""

    def seed_list(self) -> tuple[int, ...]:
        """Return the seeds; InputError where there is none, or one stands twice."""
        if isinstance(self.seeds, int):
            return tuple(range(FIRST_SEED, FIRST_SEED + self.seeds))
        repeated = next((seed for at, seed in enumerate(self.seeds) if seed in self.seeds[:at]), None)
        if repeated is not None:
            raise InputError(f"the seed {repeated} stands twice in seeds", "name each seed once")
        if not 1 <= len(self.seeds) <= MOST_SEEDS:
            raise InputError(f"seeds is a list of {len(self.seeds):,}", f"give 1 to {MOST_SEEDS:,} seeds")
        return tuple(self.seeds)

    def data_by_name(self, folder: Path) -> dict[str, Path]:
        """Return the files of interactions by their names without endings; InputError where two have one name.

        `folder` is that of the comparison file, which relative paths start from.
        """
        given = [self.data] if isinstance(self.data, str) else self.data
        if not given:
            raise InputError("data is an empty list", "name at least one file of interactions")
        found: dict[str, Path] = {}
        for text in given:
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
