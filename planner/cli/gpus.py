"""`srsplan gpus`: the catalogue as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from srsplan.planner.cli import console

if TYPE_CHECKING:
    from rich.table import Table

    from srsplan.profiler.probes.catalogue import Gpu

WIDTH_WITH_TITLES = 104


def gpus_command(
    text: Annotated[
        str | None,
        typer.Argument(metavar="FILTER", help="Part of a name or an architecture: a100, 'rtx 40', ampere."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every field as JSON.")] = False,
) -> None:
    """List the GPUs that --gpu knows: memory that CUDA can hand out, bandwidth, peak throughput."""
    from dataclasses import asdict

    chosen = _matching(text)
    if as_json:
        console.print_json([asdict(gpu) for gpu in chosen])
        return
    console.out.print(_table(chosen))
    console.out.print("memory  what CUDA can hand out; ~ nvidia-smi's total less what the driver keeps", soft_wrap=True)
    console.out.print("TFLOPS  datasheet peaks, dense, fp32 accumulation; - no tensor cores for it", soft_wrap=True)


def _matching(text: str | None) -> list[Gpu]:
    """Return the cards with `text` in a name or in the architecture; InputError where there is none."""
    from srsplan.profiler.probes.catalogue import could_name_a_gpu, load_gpus, unknown_gpu

    if text is None:
        return list(load_gpus())
    wanted = _plain(text) if could_name_a_gpu(text) else ""
    chosen = [
        gpu
        for gpu in load_gpus()
        if wanted
        and any(wanted in _plain(label) for label in (gpu.name, gpu.title, gpu.architecture, *gpu.device_names))
    ]
    if not chosen:
        raise unknown_gpu(text)
    return chosen


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _table(gpus: list[Gpu]) -> Table:
    """Return a table of at most 80 columns; where there is room, with the cards' full names."""
    from rich import box
    from rich.table import Table

    from srsplan.models.units import format_gib

    titled = console.out.width >= WIDTH_WITH_TITLES
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, title="GPUs, peaks in TFLOPS", title_justify="left")
    for heading in ("name", "card", "architecture") if titled else ("name", "architecture"):
        table.add_column(heading, no_wrap=True)
    for heading in ("memory", "GB/s", "fp32", "tf32", "fp16", "bf16"):
        table.add_column(heading, justify="right", no_wrap=True)
    for gpu, following in zip(gpus, [*gpus[1:], None], strict=True):
        table.add_row(
            *((gpu.name, gpu.title) if titled else (gpu.name,)),
            f"{gpu.architecture} {gpu.capability[0]}.{gpu.capability[1]}",
            ("" if gpu.capacity_basis == "driver" else "~") + format_gib(gpu.capacity_bytes),
            f"{gpu.bandwidth_bytes_s / 1e9:.0f}",
            *(_peak(value) for value in (gpu.fp32_tflops, gpu.tf32_tflops, gpu.fp16_tflops, gpu.bf16_tflops)),
            end_section=following is not None and following.architecture != gpu.architecture,
        )
    return table


def _peak(tflops: float | None) -> str:
    return "-" if tflops is None else f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.1f}"
