"""`srsplan profile`: probes of a card, measured where it is present, simulated where it is not."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration, Precision, find_loss, require_positive
from srsplan.models.errors import InputError
from srsplan.planner.cli import console, options
from srsplan.planner.cli import screens as report
from srsplan.planner.units import format_count, format_gib, format_ms, parse_bytes, parse_count
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.cuda_probe import CudaProbe
from srsplan.profiler.probes.gpus import Gpu, detect_gpu, resolve_gpu
from srsplan.profiler.probes.grid import Wanted, choose_probes, replace_failed
from srsplan.profiler.probes.probe import Probe, SimulatedProbe
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import Store

ROUNDS = 3
"""How often probes that failed are replaced by others."""
DEFAULT_PATH = Path("srsplan.profile.jsonl")
INTERRUPTED = 130


Replace = Callable[[Sequence[Configuration], Sequence[Configuration]], list[Configuration]]
"""From what was tried and what of it failed to what is tried instead."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What probes run on, and how that is said to the user."""

    probe: Probe
    gpu: Gpu
    sentence: str


def profile_command(
    gpu: options.Gpu,
    losses: Annotated[str, typer.Option("--losses", help="Comma-separated.")] = ",".join(LOSSES),
    catalog: Annotated[str, typer.Option("--catalog", help="Catalog sizes, comma-separated.")] = "30K,300K",
    dim: options.Dim = 256,
    blocks: options.Blocks = 2,
    heads: options.Heads = 2,
    precision: options.PrecisionOption = "fp16",
    probes: Annotated[int, typer.Option("--probes", help="Probes of each loss.")] = 12,
    budget: Annotated[str | None, typer.Option("--budget", help="Stay below this: 24GB [default: the card].")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds after which a probe is ended.")] = 300.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the file holds instead of resuming.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="File of JSON lines.")] = DEFAULT_PATH,
    json: options.Json = False,
) -> None:
    """Try a few configurations, spread up to nearly the whole card; every finished probe is kept."""
    require_positive(probes=probes)
    if not timeout > 0:
        raise InputError(f"--timeout {timeout:g} is not above zero", "300 seconds are usual")
    card = resolve_gpu(gpu)
    wanted = Wanted(
        losses=tuple(find_loss(name.strip()).name for name in losses.split(",")),
        catalogs=tuple(parse_count(text, "--catalog") for text in catalog.split(",")),
        architecture=Architecture(dim=dim, blocks=blocks, heads=heads),
        precision=cast(Precision, precision),
        budget_bytes=card.capacity_bytes if budget is None else parse_bytes(budget, "--budget"),
        count=probes,
    )
    model = MemoryModel()

    def predict(steps: Sequence[Configuration]) -> list[int]:
        return [int(size) for size in model.allocated(steps)]

    chosen = choose_probes(wanted, predict)
    if not chosen:
        raise InputError(
            f"no probe fits {format_gib(wanted.budget_bytes)}: with --catalog {catalog} the smallest is larger",
            "give smaller catalogs or a larger budget",
        )
    bench = find_bench(card, timeout)
    console.err.print(bench.sentence, soft_wrap=True)
    if fresh:
        output.unlink(missing_ok=True)
    try:
        with Store(output) as store:
            records = _run_all(bench, chosen, store, lambda *found: replace_failed(wanted, predict, *found))
    except KeyboardInterrupt:
        console.err.print(f"stopped; what was probed is in {output}, the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    _tell(records, output, card, json)


def _run_all(bench: Bench, chosen: Sequence[Configuration], store: Store, replaced: Replace) -> list[ProbeRecord]:
    """Probes, and others in the places of those that failed."""
    records = _run(bench, chosen, store)
    for _ in range(ROUNDS):
        failed = [record.configuration for record in records if record.status != "ok"]
        others = replaced([record.configuration for record in records], failed)
        if not others:
            break
        console.err.print(f"{len(failed)} probes failed; {len(others)} smaller ones are tried in their places")
        records += _run(bench, others, store)
    return records


def find_bench(card: Gpu, timeout_s: float) -> Bench:
    """The card itself, a larger one under a hard cap, or the ledger: whichever is here, and said."""
    try:
        present = detect_gpu()
    except InputError:
        present = None
    if present is None or present.capacity_bytes < card.capacity_bytes or not _cuda_works():
        here = "no GPU here" if present is None else f"{present.name} is here, not {card.name}"
        sentence = f"{here}: memory from the ledger (simulated), step times are not measured"
        return Bench(probe=SimulatedProbe(card.name, card.capacity_bytes), gpu=card, sentence=sentence)
    capped = present.name != card.name
    cap = card.capacity_bytes if capped else None
    probe = CudaProbe(gpu=present.name, device=present.title, cap_bytes=cap, timeout_s=timeout_s)
    sentence = f"measuring on {present.title}"
    if capped:
        sentence += (
            f" under a hard cap of {format_gib(card.capacity_bytes)}, what {card.name} has; times are {present.name}'s"
        )
    return Bench(probe=probe, gpu=present, sentence=sentence)


def _cuda_works() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _run(bench: Bench, chosen: Sequence[Configuration], store: Store) -> list[ProbeRecord]:
    """Probe what is not stored yet; every record is on disk before the next probe begins."""
    from srsplan.planner.calibration import scaled_time

    known = store.keys()
    wanted = [each for each in chosen if bench.probe.blank(each).key not in known]
    if store.cut_off:
        console.err.print("the last line was cut short by a kill and is dropped; that probe is run again")
    if len(wanted) < len(chosen):
        console.err.print(f"{len(chosen) - len(wanted)} of {len(chosen)} probes are stored already")
    columns = (
        TextColumn("probes"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("eta"),
        TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console.err) as progress:
        task = progress.add_task("", total=len(wanted))
        for configuration in wanted:
            progress.update(task, description=report.knobs_of(configuration))
            record = bench.probe.run(configuration)
            if record.step_ms_median is None:
                record = scaled_time(record, store.records, bench.gpu)
            store.append(record)
            progress.advance(task)
            if record.status != "ok":
                progress.console.print(f"{report.knobs_of(configuration)}: {record.status} {record.error_tail}")
    keys = {bench.probe.blank(each).key for each in chosen}
    return [record for record in store.records if record.key in keys]


def _tell(records: Sequence[ProbeRecord], output: Path, card: Gpu, json: bool) -> None:
    if json:
        console.print_json([json_module.loads(record.to_line()) for record in records])
        return
    table = Table(box=None, pad_edge=False)
    for name in ("configuration", "allocated", "reserved", "step", "found"):
        table.add_column(name, justify="left" if name in ("configuration", "found") else "right", no_wrap=True)
    for record in records:
        sizes = (_size(size) for size in (record.allocated_bytes, record.reserved_bytes))
        step = "-" if record.step_ms_median is None else format_ms(record.step_ms_median)
        name = f"{report.knobs_of(record.configuration)} of {format_count(record.configuration.catalog)}"
        table.add_row(name, *sizes, step, f"{record.status}, {record.basis}")
    console.out.print(table)
    command = shlex.join(
        ["srsplan", "recommend", "--catalog", str(records[-1].configuration.catalog), "--gpu", card.name]
    )
    console.out.print(
        f"{len(records)} probes in {output}; next:\n  [bold]{command} --profile {output}[/]", soft_wrap=True
    )


def _size(size: int | None) -> str:
    return "-" if size is None else format_gib(size)
