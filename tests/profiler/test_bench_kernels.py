"""`srsplan bench --kernels`: the profiler's events become rows, and where there is no card a row says so."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Ended
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from srsplan.kernels.losses import CE
from srsplan.profiler.bench import kernel_times as profiled
from srsplan.profiler.bench.kernel_times import UNAVAILABLE, kernel_times, summed
from srsplan.profiler.bench.lines import line_of
from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.measuring import Measurement
from srsplan.profiler.bench.results import COLUMNS, row_of
from srsplan.profiler.bench.results import line_of as csv_line_of
from srsplan.profiler.bench.shapes import Shape

Run = Callable[..., Ended]
TINY = Shape(name="tiny", tokens=96, catalog=700, negatives=20, dim=32)
FOUND = Measurement(shape=TINY, logits=Logits(), contestant="Triton cce", loss=CE, tokens_per_set=1, status="ok")


def event(name: str, microseconds: float, on_card: bool = True, annotation: bool = False) -> Any:
    return SimpleNamespace(
        name=name, device_type=DeviceType.CUDA if on_card else DeviceType.CPU, is_user_annotation=annotation,
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
    )  # fmt: skip


def test_kernels_are_summed_over_the_calls_that_were_profiled() -> None:
    """Two calls: a forward kernel once in each, a smaller one twice; the host's time and annotations are no kernels."""
    events = [
        event("small", 50), event("forward", 400), event("small", 50), event("aten::mm", 9e9, on_card=False),
        event("small", 50), event("forward", 600), event("small", 50), event("step", 9e9, annotation=True),
    ]  # fmt: skip
    forward, small = summed(FOUND, events, calls=2)
    assert (forward.kernel, small.kernel) == ("forward", "small")
    assert [forward.calls, forward.kernel_ms, forward.share] == pytest.approx([1, 0.5, 1000 / 1200])
    assert [small.calls, small.kernel_ms, small.share] == pytest.approx([2, 0.1, 200 / 1200])
    assert line_of(forward) == "  0.50 ms,  83%, 1 x forward"


def test_the_profiler_says_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real events, of the host because there is no card: as if it were one, each becomes a row."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(100).add_(1)
    assert list(summed(FOUND, profiler.events(), calls=1)) == []
    monkeypatch.setattr(profiled, "DeviceType", SimpleNamespace(CUDA=DeviceType.CPU))
    rows = {row.kernel: row for row in summed(FOUND, profiler.events(), calls=1)}
    added = rows["aten::add_"]
    assert added.calls == 1
    assert 0 < (added.kernel_ms or 0) < 1000


def test_a_kernel_is_a_row_beside_its_contestant() -> None:
    (row,) = summed(FOUND, [event("k" * 5000, 400)], calls=1)
    flat = row_of(row)
    assert (flat["shape_name"], flat["contestant"], flat["deviation"]) == ("tiny", "Triton cce", 1.0)
    assert flat["kernel"] == "k" * 200
    line = csv_line_of(row)
    assert list(line) == ["row", *COLUMNS]
    assert (line["row"], line["kernel_ms"], line["total_ms"]) == ("kernel", 0.4, None)


def a_call(device: str = "cuda") -> Any:
    return SimpleNamespace(both=lambda: None, device=torch.device(device))


def test_a_profiler_that_fails_or_sees_nothing_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiled, "_profiled", lambda run, device: [event("aten::mm", 5, on_card=False)])
    (row,) = kernel_times(FOUND, a_call())
    assert (row.status, row.reason) == ("failed", "the profiler saw no kernel")

    def refuse(run: object, device: object) -> list[Any]:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(profiled, "_profiled", refuse)
    (row,) = kernel_times(FOUND, a_call())
    assert (row.status, row.reason) == ("failed", "RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")
    assert line_of(row) == "  kernels: failed, RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"


def test_every_profiled_call_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def profile(run: Callable[[], object], device: object) -> list[Any]:
        for _ in range(profiled.PROFILED_CALLS):
            run()
        return events

    events: list[Any] = []
    call = SimpleNamespace(both=lambda: events.append(event("k", 100)), device=torch.device("cuda"))
    monkeypatch.setattr(profiled, "_profiled", profile)
    (row,) = kernel_times(FOUND, call)  # type: ignore[arg-type]
    assert [row.calls, row.kernel_ms] == pytest.approx([1, 0.1])


def test_on_a_cpu_a_row_and_the_screen_say_that_there_are_none(run: Run) -> None:
    options = ("--shapes", "96x700x32x20", "--only", "eager ce", "--logits", "trained", "--repeats", 1, "--kernels")
    (row,) = run("bench", *options, "--json").json["kernels"]
    assert (row["contestant"], row["status"], row["reason"]) == ("eager ce", "absent", UNAVAILABLE)
    assert UNAVAILABLE in " ".join(run("bench", *options).out.split())
