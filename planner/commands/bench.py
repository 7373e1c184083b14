"""`srsplan bench`: the loss kernels side by side, with the device's own limits, in one run."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from srsplan.models.errors import InputError
from srsplan.planner import console
from srsplan.planner.commands import options
from srsplan.planner.units import format_gib, format_ms, parse_count

if TYPE_CHECKING:
    import torch

    from srsplan.profiler.bench import Contestant, Measurement, Shape
    from srsplan.profiler.bench_ceilings import Ceilings

CPU_SHAPES = "2048x20Kx64x128,1024x5Kx256x512"
LOGITS = ("random", "trained")
DTYPES = ("fp16", "bf16", "fp32")
KEPT_FREE = 0.9


@dataclass(frozen=True, kw_only=True)
class Bout:
    """What is compared, where."""

    shapes: Sequence[Shape]
    logits: Sequence[str]
    entrants: Sequence[Contestant]
    dtype: str
    device: torch.device
    ceilings: Ceilings


def bench_command(
    shapes: Annotated[
        str | None, typer.Option("--shapes", help="ml20m, beauty, gowalla, zvuk, 30music, megamarket, or MxVxDxNS.")
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Share of the shapes' tokens and items.")] = 1.0,
    losses: Annotated[str, typer.Option("--losses", help="ce (full softmax), ce- (sampled), or both.")] = "ce,ce-",
    logits: Annotated[str, typer.Option("--logits", help="random, trained, or both.")] = "random,trained",
    peers: Annotated[bool, typer.Option("--peers", help="Also what others publish, where it is installed.")] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="fp16, bf16 or fp32; on a CPU fp32.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="CSV file that every result goes to.")] = None,
    json: options.Json = False,
) -> None:
    """Time and memory of every form of the losses, beside eager PyTorch, others' kernels and the device's limits."""
    names = _chosen("--logits", logits, LOGITS), _chosen("--losses", losses, ("ce", "ce-"))
    if not 0 < scale <= 1:
        raise InputError(f"--scale {scale:g} is outside (0, 1]", "0.1 takes a tenth of the tokens and of the items")
    if dtype is not None:
        _chosen("--dtype", dtype, DTYPES)
    bout = _bout(shapes, scale, names, peers, dtype, device)
    document = _head(bout)
    if not json:
        console.out.print(_head_lines(document), markup=False)
    found = _fight(bout, output, document)
    rows = [_row(measurement, bout.ceilings) for measurement in found]
    if json:
        console.print_json({**document, "results": rows})
        return
    for table in _tables(rows):
        console.out.print()
        console.out.print(table)


def _chosen(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise InputError(f"unknown {option} {name!r}", f"known are {', '.join(known)}")
    return names


def _bout(
    shapes: str | None, scale: float, names: tuple[tuple[str, ...], ...], peers: bool, dtype: str | None, device: str
) -> Bout:
    import torch

    from srsplan.models.step import DTYPES as TORCH_TYPES
    from srsplan.planner.commands.train import find_device
    from srsplan.profiler import bench
    from srsplan.profiler.bench_ceilings import measure_ceilings
    from srsplan.profiler.bench_peers import peers as all_peers

    place = find_device(device)
    kind = dtype or ("fp32" if place.type == "cpu" else "fp16")
    text = shapes or (CPU_SHAPES if place.type == "cpu" else ",".join(bench.SHAPES))
    entrants = [*bench.contestants(place), *(all_peers(place) if peers else ())]
    logits, losses = names
    torch.manual_seed(0)
    return Bout(
        shapes=[parse_shape(each).scaled(scale) for each in text.split(",")],
        logits=logits,
        entrants=[each for each in entrants if each.loss in losses],
        dtype=kind,
        device=place,
        ceilings=measure_ceilings(TORCH_TYPES[kind], place),
    )


def parse_shape(text: str) -> Shape:
    """A named shape or MxVxDxNS, counts such as 20K allowed; InputError otherwise."""
    from srsplan.profiler.bench import SHAPES, Shape

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


def _head(bout: Bout) -> dict[str, Any]:
    """Hardware, versions and date: no figure without them."""
    import torch

    from srsplan.profiler.probe import installed

    card = (
        torch.cuda.get_device_name(bout.device)
        if bout.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return {
        "device": card,
        "torch": torch.__version__,
        "triton": installed("triton"),
        "srsplan": installed("srsplan"),
        "date": date.today().isoformat(),
        "dtype": bout.dtype,
        "ceilings": asdict(bout.ceilings),
    }


def _head_lines(head: dict[str, Any]) -> str:
    ceilings = head["ceilings"]
    return (
        f"{head['device']}, torch {head['torch']}, triton {head['triton']}, {head['date']}, {head['dtype']}\n"
        f"measured limits: products {ceilings['product_flops_s'] / 1e12:.3g} TFLOP/s, copy "
        f"{ceilings['copy_bytes_s'] / 1e12:.3g} TB/s, rows of 256 gathered {ceilings['gather_rows_s'] / 1e9:.3g} /ns, "
        f"added {ceilings['add_rows_s'] / 1e9:.3g} /ns"
    )


def _fight(bout: Bout, output: Path | None, head: dict[str, Any]) -> list[Measurement]:
    """Every contestant on every shape; each result is in the file before the next begins."""
    from srsplan.models.step import DTYPES as TORCH_TYPES
    from srsplan.profiler.bench import run_all

    columns = (
        TextColumn("contestants"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    found = []
    with _table_file(output) as rows, Progress(*columns, console=console.err) as progress:
        task = progress.add_task("", total=len(bout.shapes) * len(bout.logits) * len(bout.entrants))
        for each in run_all(
            bout.shapes, bout.logits, bout.entrants, TORCH_TYPES[bout.dtype], bout.device, lambda: _free(bout.device)
        ):
            found.append(each)
            rows.add(
                {
                    **_row(each, bout.ceilings),
                    **{key: head[key] for key in ("device", "torch", "triton", "date", "dtype")},
                }
            )
            progress.update(task, advance=1, description=f"{each.shape.name}: {each.contestant}")
    return found


class _table_file:
    """A CSV that grows by a line a result, on disk at once; nothing where no file is wanted."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None

    def __enter__(self) -> _table_file:
        if self._path is not None:
            try:
                self._file = self._path.open("x", newline="")
            except FileExistsError:
                raise InputError(f"{self._path} exists already", "give another file with -o") from None
            except OSError as error:
                raise InputError(f"cannot write {self._path}: {error.strerror}", "give another file with -o") from error
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
    """Bytes that may be used: what the card has left, or the machine's memory."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(KEPT_FREE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def _row(found: Measurement, ceilings: Ceilings) -> dict[str, Any]:
    from srsplan.profiler.bench_ceilings import times_the_floor

    row = asdict(replace(found))
    shape = row.pop("shape")
    return {**{f"shape_{key}" if key == "name" else key: value for key, value in shape.items()}, **row,
            "times_the_floor": times_the_floor(found, ceilings)}  # fmt: skip


def _tables(rows: Iterable[dict[str, Any]]) -> Iterable[Group]:
    """One a shape, kind of logits and function: forms of one function stand side by side."""

    def key(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["shape_name"], row["logits"], row["loss"]

    for (name, logits, loss), group in groupby(sorted(rows, key=key), key):
        kind = "full softmax" if loss == "ce" else "sampled softmax"
        yield _table(f"{name}, {logits} logits, {kind}", [*group])


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Group:
    """Ratios are to the first that ran: eager PyTorch, unless it does not fit. What did not run follows."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for name in ("", "forward", "+ backward", "x first", "x floor", "memory"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    first = next((row["total_ms"] for row in rows if row["total_ms"]), None)
    for row in rows:
        if row["status"] == "ok":
            table.add_row(
                _name(row), format_ms(row["forward_ms"]), format_ms(row["total_ms"]),
                f"{first / row['total_ms']:.2f}", f"{row['times_the_floor']:.1f}", _memory(row),
            )  # fmt: skip
    left = [Text(f"{_name(row)}: {row['status']}, {row['reason']}{_would_take(row)}", style="dim")
            for row in rows if row["status"] != "ok"]  # fmt: skip
    return Group(Text(title, style="bold"), table, *left)


def _name(row: dict[str, Any]) -> str:
    return f"{row['contestant']}, {row['tokens_per_set']} a set" if row["loss"] == "ce-" else str(row["contestant"])


def _memory(row: dict[str, Any]) -> str:
    """Measured above the inputs, or by the ledger."""
    if row["peak_bytes"] is not None:
        return format_gib(row["peak_bytes"])
    return "-" if row["ledger_bytes"] is None else f"{format_gib(row['ledger_bytes'])} (ledger)"


def _would_take(row: dict[str, Any]) -> str:
    return "" if row["ledger_bytes"] is None else f"; {format_gib(row['ledger_bytes'])} by the ledger"
