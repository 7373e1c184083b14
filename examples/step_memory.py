"""Does a real step take what was predicted? Every loss, 0.5 GiB to most of the card, both modes of the allocator.

    python examples/step_memory.py -o step_memory.csv

Wants an NVIDIA GPU. The chunked losses are measured in both implementations. Each configuration trains a few steps in a
process of its own (as `srsplan profile` does), once with expandable segments and once without; its allocated and
reserved peaks stand beside those of the closed form and of the allocator's model. Rows are written as they are found: a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.cuda_probe import CudaProbe
from srsplan.profiler.probes.detect import detect_gpu
from srsplan.profiler.probes.device import find_device
from srsplan.profiler.probes.grid import Wanted, choose_probes

CATALOGS = (30_000, 300_000, 1_600_000)
MODES = {"expandable": "expandable_segments:True", "segments": "expandable_segments:False"}
KNOBS = ("loss", "kernel", "catalog", "batch_size", "seq_len", "negatives")


def predicted(model: MemoryModel, configuration: Configuration, mode: str) -> dict[str, int]:
    """Allocated and reserved peaks of steady steps, bytes."""
    reserved = lifetime.steady(configuration, model.program, expandable_segments=mode == "expandable")
    return {"predicted_allocated_bytes": int(model.allocated([configuration])[0]), "predicted_reserved_bytes": reserved}


def measured(probe: CudaProbe, configuration: Configuration, mode: str) -> dict[str, Any]:
    """The same on the card."""
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = MODES[mode]
    found = probe.run(configuration)
    return {
        "status": found.status, "allocated_bytes": found.allocated_bytes, "reserved_bytes": found.reserved_bytes,
        "context_bytes": found.context_bytes, "step_ms": found.step_ms_median, "device": found.device,
        "torch": found.torch, "triton": found.triton, "error": found.error_tail,
    }  # fmt: skip


def summary(rows: pd.DataFrame) -> Table:
    """Worst and median error of each loss, kernel and mode."""
    columns = ("allocated, worst", "reserved, worst", "reserved, median")
    table = Table("loss", "kernel", "allocator", "steps", *columns, box=None)
    for (loss, kernel, mode), part in rows[rows.status == "ok"].groupby(["loss", "kernel", "mode"]):
        errors = [
            (part[f"predicted_{name}_bytes"] / part[f"{name}_bytes"] - 1).abs() for name in ("allocated", "reserved")
        ]
        table.add_row(
            str(loss), str(kernel), str(mode), str(len(part)), f"{errors[0].max():.2%}", f"{errors[1].max():.2%}",
            f"{errors[1].median():.2%}",
        )  # fmt: skip
    return table


def _stored(output: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run that was stopped; none where there was no such run."""
    if not output.exists():
        return []
    return [{str(name): value for name, value in row.items()} for row in pd.read_csv(output).to_dict("records")]


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Table of the rows.")] = Path("step_memory.csv"),
    count: Annotated[int, typer.Option(help="Configurations of each loss.")] = 5,
    fullest: Annotated[float, typer.Option(help="GiB of the largest.")] = 80.0,
) -> None:
    """Measure what is missing, print the errors."""
    try:
        card = detect_gpu()
    except InputError as error:
        raise typer.BadParameter(error.message) from None
    probe = find_device(card, timeout_s=300.0).probe
    if not isinstance(probe, CudaProbe):
        raise typer.BadParameter("torch sees no NVIDIA GPU here")
    model = MemoryModel()
    wanted = Wanted(
        losses=tuple(LOSSES), catalogs=CATALOGS, architecture=Architecture(), precision="fp16",
        budget_bytes=min(int(fullest * 2**30), card.capacity_bytes), count=count,
    )  # fmt: skip
    steps = choose_probes(wanted, lambda each: [int(size) for size in model.allocated(each)])
    steps += [replace(each, kernel="triton") for each in steps if LOSSES[each.loss].chunked]
    rows = _stored(output)
    known = {(row["mode"], *(str(row[name]) for name in KNOBS)) for row in rows}
    pairs = [(configuration, mode) for mode in MODES for configuration in steps]
    for configuration, mode in track(pairs, "steps"):
        knobs = {name: getattr(configuration, name) or 0 for name in KNOBS}
        if (mode, *map(str, knobs.values())) in known:
            continue
        found = measured(probe, configuration, mode) | predicted(model, configuration, mode)
        rows.append({"date": date.today().isoformat(), "mode": mode, **knobs, **found})
        pd.DataFrame(rows).to_csv(output, index=False)
    Console().print(summary(pd.DataFrame(rows)))


if __name__ == "__main__":
    typer.run(main)
