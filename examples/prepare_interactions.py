"""How long does a large file take from the command to the first batch, and in how much memory? A generated file tells.

    python examples/prepare_interactions.py                                     100 million interactions
    python examples/prepare_interactions.py --interactions 1M --users 20K --items 10K --most-seconds 60

Users and items are drawn from Zipf distributions (exponents 0.5 and 1), times at random over two years, in no order.
Every measurement is a process of its own that imports what `srsplan train` imports, torch included: cold (read,
ordered, split, kept), warm (what was kept is opened), and with a cache that is switched off. `--repeats` repeats it and
keeps the median. The file was just written: the system may have it in memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from srsplan.models.units import parse_count

BLOCK_ROWS = 1 << 20
BEGIN, SECONDS = 1_600_000_000, 2 * 365 * 86_400
KINDS = {"cold": "cold: read, ordered, split, kept", "warm": "warm: kept data opened", "off": "without a cache"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process from its start to its first batch."""

    kind: str
    interactions: int
    users: int
    items: int
    parts: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def drawn(count: int, exponent: float, draw: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Ids 0 to count - 1 by a Zipf distribution, a block of rows at a time; which id is frequent is random."""
    shares = np.cumsum(np.arange(1, count + 1) ** -exponent)
    ids = draw.permutation(count)
    while True:
        yield ids[np.searchsorted(shares, draw.random(BLOCK_ROWS) * shares[-1])]


def generate(folder: Path, interactions: int, users: int, items: int, parts: int) -> Path:
    """Write parquet files of unordered interactions into a folder, a block at a time; return what `--data` takes."""
    import pyarrow as pa
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    of_user, of_item = drawn(users, 0.5, draw), drawn(items, 1.0, draw)
    clicks = folder / "clicks"
    clicks.mkdir()
    schema = pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")])
    for part in range(parts):
        rows = interactions * (part + 1) // parts - interactions * part // parts
        with parquet.ParquetWriter(clicks / f"part-{part:05}.parquet", schema) as writer:
            for first in range(0, rows, BLOCK_ROWS):
                times = BEGIN + draw.integers(0, SECONDS, BLOCK_ROWS)
                columns = [column[: rows - first] for column in (next(of_user), next(of_item), times)]
                writer.write_table(pa.table(columns, schema=schema))
    return clicks if parts > 1 else clicks / "part-00000.parquet"


def first_batch(path: Path) -> dict[str, Any]:
    """Do what a training does until it has its first batch; this process is measured."""
    import srsplan.models.training.run  # noqa: F401  what `srsplan train` imports
    from srsplan.models.data.batches import TrainBatches
    from srsplan.models.data.options import DataOptions
    from srsplan.models.data.reading import read_split

    split = read_split(DataOptions(path=path)).split
    next(iter(TrainBatches(split.train, 256, 200, seed=0).epoch(0)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak_bytes = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": peak_bytes}


def measure(path: Path, kind: str, cache: Path, sizes: dict[str, int]) -> Measured:
    """Start a process and wait until it has its first batch."""
    if kind == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"SRSPLAN_CACHE": "off" if kind == "off" else str(cache)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--first-batch", str(path)], stdout=subprocess.PIPE, env=environment, check=True
    )
    return Measured(kind=kind, seconds=time.perf_counter() - began, **sizes, **json.loads(done.stdout))


def medians(runs: list[Measured]) -> Measured:
    """The median of each figure over the repeats of one kind."""
    figures = {name: median(getattr(run, name) for run in runs) for name in ("seconds", "cpu_seconds", "peak_bytes")}
    return Measured(**(asdict(runs[0]) | figures))


def show(results: list[Measured]) -> None:
    """A table of the figures."""
    table = Table("", "seconds", "CPU seconds", "peak GB", title=f"{results[0].interactions:,} interactions")
    for each in results:
        figures = (each.seconds, each.cpu_seconds, each.peak_bytes / 1e9)
        table.add_row(KINDS[each.kind], *(f"{figure:.2f}" for figure in figures))
    Console().print(table)


def write_csv(path: Path, results: list[Measured]) -> None:
    """The figures with the date, the machine's cores and the versions."""
    import pyarrow as pa

    where = {"date": date.today().isoformat(), "cores": os.cpu_count(), "python": platform.python_version()}
    versions = {"numpy": np.__version__, "pyarrow": pa.__version__}
    rows = [asdict(each) | where | versions for each in results]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Generate, measure, print; exit code 1 where it took longer or more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("interactions", "100M"), ("users", "1M"), ("items", "1M"), ("parts", "4"), ("repeats", "1")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--most-seconds", type=float, default=60.0, help="cold, from the start to the first batch")
    parser.add_argument("--most-warm-seconds", type=float, default=3.0)
    parser.add_argument("--most-gib", type=float, default=6.0, help="peak resident memory")
    parser.add_argument("--folder", type=Path, help="where the files go and stay; a temporary folder otherwise")
    parser.add_argument("--output", type=Path, help="a CSV of the figures")
    parser.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.first_batch:
        print(json.dumps(first_batch(given.first_batch)))
        return
    sizes = {name: parse_count(getattr(given, name), name) for name in ("interactions", "users", "items", "parts")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        path = next(iter(folder.glob("clicks")), None) or generate(folder, **sizes)
        runs = {
            kind: [measure(path, kind, folder / "cache", sizes) for _ in range(int(given.repeats))] for kind in KINDS
        }
    results = [medians(each) for each in runs.values()]
    show(results)
    if given.output:
        write_csv(given.output, results)
    most = {"cold": given.most_seconds, "warm": given.most_warm_seconds, "off": given.most_seconds}
    late = [each.kind for each in results if each.seconds > most[each.kind] or each.peak_bytes > given.most_gib * 2**30]
    sys.exit(f"longer or more than allowed: {', '.join(late)}" if late else None)


if __name__ == "__main__":
    main()
