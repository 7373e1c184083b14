"""`srsplan profile`: probes of a card, measured where it is present, simulated where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, cast

import typer

from srsplan.kernels.losses import PLANNED
from srsplan.models.checks import find_loss, find_model, require_positive
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.models.units import format_count, format_gib, format_ms, parse_bytes, parse_count
from srsplan.planner.budget import make_budget
from srsplan.planner.cli import console, options

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from srsplan.profiler.probes.catalogue import Gpu
    from srsplan.profiler.probes.device import ProbeDevice
    from srsplan.profiler.probes.grid import Predict, Wanted
    from srsplan.profiler.probes.records import ProbeRecord

DEFAULT_PATH = Path("srsplan.profile.jsonl")
LONGEST_TIMEOUT_S = 86_400.0
INTERRUPTED = 130


def profile_command(
    gpu: options.Gpu,
    losses: Annotated[str, typer.Option("--losses", help="Comma-separated.")] = ",".join(PLANNED),
    catalog: Annotated[str, typer.Option("--catalog", help="Catalog sizes, comma-separated.")] = "30K,300K",
    model: options.ModelOption = "sasrec",
    dim: options.Dim = 256,
    blocks: options.Blocks = 2,
    heads: options.Heads = 2,
    precision: options.PrecisionOption = "fp16",
    probes: Annotated[int, typer.Option("--probes", help="Probes of each loss.")] = 12,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Stay below this, 24GB for example; without it: the card.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds after which a probe is ended.")] = 300.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace the profile that the file holds instead of resuming it.")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="File of JSON lines.")] = DEFAULT_PATH,
    json: options.Json = False,
) -> None:
    """Try a few configurations, spread up to nearly the whole card; every finished probe is kept."""
    from srsplan.profiler.probes.detect import resolve_gpu
    from srsplan.profiler.probes.grid import Wanted

    require_positive(probes=probes)
    if not 0 < timeout <= LONGEST_TIMEOUT_S:
        raise InputError(f"--timeout {timeout:g} is not above zero and at most a day", "300 seconds are usual")
    card = resolve_gpu(gpu)
    wanted = Wanted(
        losses=tuple(find_loss(name.strip()).name for name in losses.split(",")),
        catalogs=tuple(parse_count(text, "--catalog") for text in catalog.split(",")),
        model=find_model(model).name,
        architecture=Architecture(dim=dim, blocks=blocks, heads=heads),
        precision=cast(Precision, precision),
        budget_bytes=make_budget(None if budget is None else parse_bytes(budget, "--budget"), card).bytes,
        count=probes,
    )
    records = _probe(wanted, card, timeout, fresh, output)
    if json:
        console.print_json([record.to_document() for record in records])
    else:
        _print_table(records, output, card)


def _probe(wanted: Wanted, card: Gpu, timeout_s: float, fresh: bool, output: Path) -> list[ProbeRecord]:
    """Choose the probes, then run what is not stored in `output` yet."""
    from srsplan.planner.calibration import scaled_time
    from srsplan.profiler.memory.model import MemoryModel
    from srsplan.profiler.probes.device import find_device
    from srsplan.profiler.probes.run import ProbeRun
    from srsplan.profiler.probes.store import Store

    predict = MemoryModel().allocated_sizes
    chosen = _chosen(wanted, predict)
    device = find_device(card, timeout_s)
    try:
        with Store(output, fresh) as store, _Screen() as screen:
            screen.say(_basis_of(device))
            if store.cut_off:
                screen.say("the last line was cut short by a kill and is dropped; that probe is run again")
            run = ProbeRun(
                probe=device.probe, store=store, wanted=wanted, predict=predict, observer=screen,
                complete=partial(scaled_time, gpu=device.gpu),
            )  # fmt: skip
            return run.run(chosen)
    except KeyboardInterrupt:
        stopped = f"stopped; what was probed is in {console.markup(output)}, the same command goes on from there"
        console.err.print(stopped, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _chosen(wanted: Wanted, predict: Predict) -> list[Configuration]:
    """Return the probes to run; InputError where none fits."""
    from srsplan.profiler.probes.grid import choose_probes

    chosen = choose_probes(wanted, predict)
    if not chosen:
        catalogs = ", ".join(format_count(size) for size in wanted.catalogs)
        raise InputError(
            f"no probe fits {format_gib(wanted.budget_bytes)}: with --catalog {catalogs} the smallest is larger",
            "give smaller catalogs or a larger budget",
        )
    return chosen


def _basis_of(device: ProbeDevice) -> str:
    """Say where the figures will be from."""
    if not device.measures:
        here = "no GPU here" if device.present is None else f"{device.present.name} is here, not {device.wanted.name}"
        return f"{here}: memory from the ledger (simulated), step times are not measured"
    if device.cap_bytes is None:
        return f"measuring on {device.gpu.title}"
    cap = f"a hard cap of {format_gib(device.cap_bytes)}, what {device.wanted.name} has"
    return f"measuring on {device.gpu.title} under {cap}; times are {device.gpu.name}'s"


@dataclass
class _Screen:
    """Progress on stderr: how many probes, which one, how much longer."""

    _progress: Progress | None = None
    _task: TaskID | None = None

    def __enter__(self) -> _Screen:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )  # fmt: skip

        columns = (
            TextColumn("probes"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console.err)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, sentence: str) -> None:
        console.err.print(console.markup(sentence), soft_wrap=True)

    def on_round_start(self, probes: int, stored: int) -> None:
        if stored:
            self.say(f"{stored} of {stored + probes} probes are stored already")
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task("", total=probes)

    def on_probe_start(self, configuration: Configuration) -> None:
        from srsplan.planner.cli.screens import knobs_of

        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=knobs_of(configuration))

    def on_probe_end(self, record: ProbeRecord) -> None:
        from srsplan.planner.cli.screens import knobs_of

        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)
        if record.status != "ok":
            self.say(f"{knobs_of(record.configuration)}: {record.status} {record.error_tail}")

    def on_replaced(self, failed: int, others: int) -> None:
        self.say(f"{failed} probes failed; {others} smaller ones are tried in their places")


def _print_table(records: Sequence[ProbeRecord], output: Path, card: Gpu) -> None:
    """Print one row for each probe, then the command that uses them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("loss", "items", "bs", "sl", "ns", "allocated", "reserved", "step", "found"):
        table.add_column(name, justify="left" if name in ("loss", "found") else "right", no_wrap=True)
    for record in records:
        each = record.configuration
        negatives = "all" if each.negatives is None else f"{each.negatives:,}"
        sizes = (_size(size) for size in (record.allocated_bytes, record.reserved_bytes))
        step = "-" if record.step_ms_median is None else format_ms(record.step_ms_median)
        knobs = (each.loss, format_count(each.catalog), f"{each.batch_size:,}", f"{each.seq_len:,}", negatives)
        table.add_row(*knobs, *sizes, step, f"{record.status}, {record.basis}")
    console.out.print(table)
    catalog = records[-1].configuration.catalog
    parts = ("srsplan", "recommend", "--catalog", catalog, "--gpu", card.name, "--profile", output)
    console.out.print(f"{len(records)} probes in {console.markup(output)}; next:", soft_wrap=True)
    console.out.print(f"  [bold]{console.markup(console.command(parts))}[/]", soft_wrap=True)


def _size(size: int | None) -> str:
    return "-" if size is None else format_gib(size)
