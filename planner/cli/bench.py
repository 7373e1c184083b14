"""`srsplan bench`: the loss kernels side by side, with the device's own limits, in one run."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from srsplan.models.config import require_positive
from srsplan.models.errors import InputError
from srsplan.planner.cli import console, options
from srsplan.planner.units import format_gib, format_ms, parse_count

if TYPE_CHECKING:
    import torch

    from srsplan.profiler.bench.ceilings import Ceilings
    from srsplan.profiler.bench.losses import Bout, Measurement, Shape

CPU_SHAPES = "2048x20Kx64x128,1024x5Kx256x512"
LOSSES = ("ce", "ce-")
LOGITS = ("random", "trained")
DTYPES = ("fp16", "bf16", "fp32")
CPU_SCALE = 0.01
"""Of the named shapes, whose whole would take a CPU minutes to hours."""

KEPT_FREE = 0.9
UNSTEADY = 2
"""Slowest by fastest repeat, above which a median says little; where most do, the user is told."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options of a run, checked as far as they can be without a device."""

    shapes: str | None
    scale: float | None
    losses: Sequence[str]
    logits: Sequence[str]
    peers: bool
    dtype: str | None
    device: str
    repeats: int | None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale <= 1:
            raise InputError(
                f"--scale {self.scale:g} is outside (0, 1]", "0.1 takes a tenth of the tokens and of the items"
            )
        if self.dtype is not None:
            _chosen("--dtype", self.dtype, DTYPES)
        if self.repeats is not None:
            require_positive(repeats=self.repeats)


def bench_command(
    shapes: Annotated[
        str | None, typer.Option("--shapes", help="ml20m, beauty, gowalla, zvuk, 30music, megamarket, or MxVxDxNS.")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Share of the shapes' tokens and items; on a CPU 0.01 of the named ones."),
    ] = None,
    losses: Annotated[str, typer.Option("--losses", help="ce (full softmax), ce- (sampled), or ce,ce-.")] = "ce,ce-",
    logits: Annotated[str, typer.Option("--logits", help="random, trained, or both.")] = "both",
    peers: Annotated[bool, typer.Option("--peers", help="Also what others publish, where it is installed.")] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="fp16, bf16 or fp32; on a CPU fp32.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Times each is timed [default: 3 to 50, about a second].")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="CSV file that every result goes to.")] = None,
    json: options.Json = False,
) -> None:
    """Time and memory of every form of the losses, beside eager PyTorch, others' kernels and the device's limits."""
    wishes = Wishes(
        shapes=shapes,
        scale=scale,
        losses=_chosen("--losses", losses, LOSSES),
        logits=_chosen("--logits", ",".join(LOGITS) if logits.strip() == "both" else logits, LOGITS),
        peers=peers,
        dtype=dtype,
        device=device,
        repeats=repeats,
    )
    bout = _bout(wishes)
    with _CsvFile(output) as file:
        document, ceilings = _head(bout)
        if not json:
            console.out.print(_head_lines(document), markup=False, soft_wrap=True)
        rows = _fight(bout, ceilings, document, file)
    if json:
        console.print_json({**document, "results": rows})
        return
    for table in _tables(rows):
        console.out.print()
        console.out.print(table)
    if unsteady := _unsteady(rows):
        console.err.print(unsteady, soft_wrap=True)


def _chosen(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise InputError(f"unknown {option} {name!r}", f"known are {', '.join(known)}")
    return names


def _bout(wishes: Wishes) -> Bout:
    from srsplan.models.training.device import find_device
    from srsplan.models.training.step import DTYPES as TORCH_TYPES
    from srsplan.profiler.bench import losses as bench
    from srsplan.profiler.bench.peers import peers as all_peers

    place = find_device(wishes.device)
    entrants = [*bench.contestants(place), *(all_peers(place) if wishes.peers else ())]
    return bench.Bout(
        shapes=_shapes(wishes, on_cpu=place.type == "cpu"),
        logits=wishes.logits,
        entrants=[each for each in entrants if each.loss in wishes.losses],
        dtype=TORCH_TYPES[wishes.dtype or ("fp32" if place.type == "cpu" else "fp16")],
        device=place,
        repeats=wishes.repeats,
    )


def _shapes(wishes: Wishes, on_cpu: bool) -> list[Shape]:
    """What was asked for; on a CPU a hundredth of the named ones, and said."""
    from srsplan.profiler.bench.losses import SHAPES

    text = wishes.shapes or (CPU_SHAPES if on_cpu else ",".join(SHAPES))
    shapes = [parse_shape(each) for each in text.split(",")]
    if wishes.scale is not None:
        return [shape.scaled(wishes.scale) for shape in shapes]
    named = [shape.name for shape in shapes if shape.name in SHAPES]
    if not (on_cpu and named):
        return shapes
    console.err.print(
        f"on a CPU {', '.join(named)}: {CPU_SCALE:g} of the tokens and items; --scale 1 takes all", soft_wrap=True
    )
    return [shape.scaled(CPU_SCALE) if shape.name in named else shape for shape in shapes]


def parse_shape(text: str) -> Shape:
    """A named shape or MxVxDxNS, counts such as 20K allowed; InputError otherwise."""
    from srsplan.profiler.bench.losses import SHAPES, Shape

    if text.strip() in SHAPES:
        return SHAPES[text.strip()]
    parts = text.strip().split("x")
    if len(parts) != 4:
        raise InputError(
            f"unknown shape {text!r}",
            f"named ones are {', '.join(SHAPES)}; or tokens x items x dim x negatives: {CPU_SHAPES}",
        )
    tokens, catalog, dim, negatives = (parse_count(part, "--shapes") for part in parts)
    if negatives >= catalog:
        raise InputError(f"shape {text!r}: {negatives} negatives of {catalog} items", "give fewer negatives than items")
    if dim % 8:
        raise InputError(f"shape {text!r}: dim {dim} is no multiple of 8", f"use {dim // 8 * 8 + 8}")
    return Shape(name=text.strip(), tokens=tokens, catalog=catalog, negatives=negatives, dim=dim)


def _head(bout: Bout) -> tuple[dict[str, Any], Ceilings]:
    """Hardware, versions, date and the measured limits: no figure without them."""
    import torch

    from srsplan.models.training.step import DTYPES as TORCH_TYPES
    from srsplan.profiler.bench.ceilings import measure_ceilings
    from srsplan.profiler.probes.probe import installed

    torch.manual_seed(0)
    ceilings = measure_ceilings(bout.dtype, bout.device)
    on_card = bout.device.type == "cuda"
    card = torch.cuda.get_device_name(bout.device) if on_card else f"{_cpu()}, {torch.get_num_threads()} threads"
    head = {
        "device": card,
        "torch": torch.__version__,
        "triton": installed("triton"),
        "srsplan": installed("srsplan"),
        "date": date.today().isoformat(),
        "dtype": next(name for name, dtype in TORCH_TYPES.items() if dtype == bout.dtype),
    }
    return {**head, "ceilings": asdict(ceilings)}, ceilings


def _cpu() -> str:
    """ "CPU" and its model, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU {model or platform.machine()}"


def _head_lines(head: dict[str, Any]) -> str:
    ceilings = head["ceilings"]
    return (
        f"{head['device']}, torch {head['torch']}, triton {head['triton']}, {head['date']}, {head['dtype']}\n"
        f"measured limits: products {ceilings['product_flops_s'] / 1e12:.3g} TFLOP/s, copy "
        f"{ceilings['copy_bytes_s'] / 1e12:.3g} TB/s, rows of 256 gathered {ceilings['gather_rows_s'] / 1e9:.3g} /ns, "
        f"added {ceilings['add_rows_s'] / 1e9:.3g} /ns"
    )


def _fight(bout: Bout, ceilings: Ceilings, head: dict[str, Any], file: _CsvFile) -> list[dict[str, Any]]:
    """Every contestant on every shape; each result is in the file before the next begins."""
    from srsplan.profiler.bench.losses import run_all

    columns = (
        TextColumn("contestants"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    origin = {key: head[key] for key in ("device", "torch", "triton", "date", "dtype")}
    rows = []
    with Progress(*columns, console=console.err) as progress:
        task = progress.add_task("", total=len(bout.shapes) * len(bout.logits) * len(bout.entrants))

        def announce(what: str) -> None:
            progress.update(task, description=what)

        for found in run_all(bout, lambda: _free(bout.device), announce):
            rows.append(_row(found, ceilings))
            file.add({**rows[-1], **origin})
            progress.advance(task)
    return rows


class _CsvFile:
    """A CSV that grows by a line a result, on disk at once; nothing where no file is wanted. Never an older one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None

    def __enter__(self) -> _CsvFile:
        if self._path is None:
            return self
        try:
            self._file = self._path.open("a", newline="")
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}", "give another file with -o") from error
        if self._file.tell():
            self._file.close()
            raise InputError(f"{self._path} exists already", "give another file with -o")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """One line."""
        if self._file is None:
            return
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row))
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()
        os.fsync(self._file.fileno())


def _free(device: torch.device) -> int:
    """Bytes that may be used: what the card and PyTorch's cache have left, or the machine's memory."""
    import torch

    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(KEPT_FREE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def _row(found: Measurement, ceilings: Ceilings) -> dict[str, Any]:
    from srsplan.profiler.bench.ceilings import times_the_floor

    row = asdict(found)
    shape = row.pop("shape")
    return {**{f"shape_{key}" if key == "name" else key: value for key, value in shape.items()}, **row,
            "times_the_floor": times_the_floor(found, ceilings)}  # fmt: skip


def _tables(rows: Iterable[dict[str, Any]]) -> Iterator[Group]:
    """One a shape, kind of logits and function, in the order asked for: forms of one function stand side by side."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["shape_name"], row["logits"], row["loss"]), []).append(row)
    for (name, logits, loss), group in grouped.items():
        kind = "full softmax" if loss == "ce" else "sampled softmax"
        yield _table(f"{name}, {logits} logits, {kind}", group)


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Group:
    """Ratios are to the first that ran: eager PyTorch, unless it does not fit. What did not run follows."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False, collapse_padding=True)
    checked = any(row["loss_error"] is not None for row in rows)
    measured = any(row["peak_bytes"] is not None for row in rows)
    table.add_column("")  # long names wrap, figures never
    memory = "memory" if measured else "by ledger"
    for name in ("forward", "+ backward", "x first", "x floor", memory, *(("loss off",) if checked else ())):
        table.add_column(name, justify="right", no_wrap=True)
    first = next((row["total_ms"] for row in rows if row["total_ms"]), None)
    for row in rows:
        if row["status"] == "ok":
            table.add_row(
                _name(row), format_ms(row["forward_ms"]), format_ms(row["total_ms"]),
                f"{first / row['total_ms']:.2f}", f"{row['times_the_floor']:.1f}",
                _gib(row["peak_bytes" if measured else "ledger_bytes"]),
                *((f"{row['loss_error']:.0e}",) if checked else ()),
            )  # fmt: skip
    left = [Text(f"{_name(row)}: {row['status']}, {row['reason']}{_would_take(row)}", style="dim")
            for row in rows if row["status"] != "ok"]  # fmt: skip
    return Group(Text(title, style="bold"), table, *left)


def _unsteady(rows: Sequence[dict[str, Any]]) -> str:
    """A warning where repeats disagree, "" where they do not."""
    timed = [row for row in rows if row["status"] == "ok"]
    count = sum(row["slowest_ms"] > UNSTEADY * row["fastest_ms"] for row in timed)
    if 2 * count <= len(timed):
        return ""
    return f"repeats of {count} of {len(timed)} times differ more than {UNSTEADY}-fold: something else runs here"


def _name(row: dict[str, Any]) -> str:
    return f"{row['contestant']}, {row['tokens_per_set']} a set" if row["loss"] == "ce-" else str(row["contestant"])


def _gib(size: int | None) -> str:
    return "-" if size is None else format_gib(size)


def _would_take(row: dict[str, Any]) -> str:
    return "" if row["ledger_bytes"] is None else f"; {format_gib(row['ledger_bytes'])} by the ledger"
