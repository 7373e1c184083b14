"""A bout in plain lines: who measures on what, and one line for each finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from srsplan.models.units import format_gib, format_ms
from srsplan.profiler.bench.bout import CPU_SCALE
from srsplan.profiler.bench.environment import Environment
from srsplan.profiler.bench.kernel_times import KernelTime
from srsplan.profiler.bench.measuring import Measurement
from srsplan.profiler.bench.results import Found, Result
from srsplan.profiler.bench.sweep import LaunchTime


def head_lines(environment: Environment) -> str:
    """Return hardware, versions, date and the measured limits, in two lines."""
    limits = environment.ceilings
    return (
        f"{environment.device}, torch {environment.torch}, triton {environment.triton}, {environment.date}, "
        f"{environment.dtype}\n"
        f"measured limits: products {limits.product_flops_s / 1e12:.3g} TFLOP/s, copy "
        f"{limits.copy_bytes_s / 1e12:.3g} TB/s, rows of 256 gathered {limits.gather_rows_s / 1e9:.3g} /ns, "
        f"added {limits.add_rows_s / 1e9:.3g} /ns (to 15 MB {limits.add_rows_small_s / 1e9:.3g} /ns)"
    )


def scaled_line(names: Sequence[str]) -> str:
    """Return the line that says which named shapes are scaled down without being asked."""
    return f"on a CPU {', '.join(names)}: {CPU_SCALE:g} of the tokens and items; --scale 1 takes all"


def lines_of(found: Sequence[Found]) -> Iterator[str]:
    """Yield the lines of findings, each contestant's name once before those of its kernels and launches."""
    before = None
    for each in found:
        if not isinstance(each, Result) and each.of is not before:
            before = each.of
            yield f"\n{_heading(each.of)}"
        yield line_of(each)


def line_of(found: Found) -> str:
    """Return the line of a finding."""
    if isinstance(found, KernelTime):
        return _kernel_line(found)
    if isinstance(found, LaunchTime):
        return _launch_line(found)
    measured = found.measured
    figures = ", ".join(_figures(found)) if measured.status == "ok" else f"{measured.status}, {measured.reason}"
    return f"{_heading(measured)}: {figures}"


def _heading(found: Measurement) -> str:
    return f"{found.shape.name}, {found.logits.title}, {found.label}"


def _figures(result: Result) -> Iterator[str]:
    found = result.measured
    yield f"forward {_ms(found.forward_ms)}, + backward {_ms(found.total_ms)}"
    if result.times_the_floor is not None:
        yield f"{result.times_the_floor:.1f} x floor"
    if found.peak_bytes is not None:
        yield f"{format_gib(found.peak_bytes)} measured"
    if found.ledger_bytes is not None:
        yield f"{format_gib(found.ledger_bytes)} by the ledger"
    if found.loss_error is not None:
        yield f"loss off {found.loss_error:.0e}"


def _kernel_line(found: KernelTime) -> str:
    if found.status != "ok":
        return f"  kernels: {found.status}, {found.reason}"
    times = f"{found.calls:g} x" if found.calls is not None else ""
    return f"  {_ms(found.kernel_ms)}, {found.share or 0.0:4.0%}, {times} {found.kernel}"


def _launch_line(found: LaunchTime) -> str:
    if found.launch is None:
        return f"  launches: {found.status}, {found.reason}"
    tiles = f"{found.launch.block_m} x {found.launch.block_n}"
    name = f"{found.kernel} {tiles}, {found.launch.num_warps} warps, {found.launch.num_stages} stages"
    mark = "best: " if found.best else ""
    said = _ms(found.kernel_ms) if found.status == "ok" else f"{found.status}, {found.reason}"
    return f"  {mark}{name}: {said}{', the launch of the table' if found.of_table else ''}"


def _ms(duration: float | None) -> str:
    return "-" if duration is None else format_ms(duration)
