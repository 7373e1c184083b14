"""`srsplan bench --sweep`: real kernels, in Triton's interpreter, are noted and started by each of their launches."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, replace
from inspect import getclosurevars
from pathlib import Path

import pytest
import torch
import triton_interpreter  # noqa: F401 - first, so that triton interprets
from torch import Tensor

from srsplan.kernels.full_softmax import api as full_softmax
from srsplan.kernels.launches import call as launching
from srsplan.kernels.launches.autotune import candidates, launch_on
from srsplan.kernels.launches.table import ASSUMED_CAPABILITY, Launch, launch_for, sampled_table
from srsplan.kernels.losses import CE, CE_NEG
from srsplan.kernels.sampled_softmax import api as sampled_softmax
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.profiler.bench import sweep
from srsplan.profiler.bench.bout import Bout, run_all
from srsplan.profiler.bench.contestants import Contestant
from srsplan.profiler.bench.inputs import Inputs, make_inputs
from srsplan.profiler.bench.lines import line_of
from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.measuring import Call, Measurement
from srsplan.profiler.bench.results import COLUMNS, ResultsFile, document_of
from srsplan.profiler.bench.results import line_of as csv_line_of
from srsplan.profiler.bench.shapes import Shape
from srsplan.profiler.bench.sweep import LaunchTime, Started, launch_times, noted, swept

CPU = torch.device("cpu")
TINY = Shape(name="tiny", tokens=20, catalog=70, negatives=5, dim=16)
FOUND = Measurement(shape=TINY, logits=Logits(), contestant="Triton cce-", loss=CE_NEG, tokens_per_set=32, status="ok")
DEFAULTS = sampled_table("sampled_forward", ASSUMED_CAPABILITY, 32, fp32=True)
LAUNCHES = tuple(Launch(32, items, warps, 2) for items, warps in ((32, 4), (16, 4), (64, 4), (64, 8)))


def in_time() -> str:
    return ""


def full(inputs: Inputs, _: Shape) -> Tensor:
    return full_softmax.cce_triton(inputs.hidden, inputs.table, inputs.targets)


def sampled(inputs: Inputs, shape: Shape) -> Tensor:
    independent = Sampling(blocks=False)
    return sampled_softmax.cce_neg_triton(
        inputs.hidden, inputs.table, inputs.targets, shape.negatives, sampling=independent
    )


def started(run: Callable[[Inputs, Shape], Tensor]) -> tuple[list[Started], Inputs]:
    inputs = make_inputs(TINY, Logits(), torch.float32, CPU)
    with noted() as kernels:
        run(inputs, TINY).backward()
    return kernels, inputs


def test_every_kernel_of_a_contestant_is_noted_with_its_candidates() -> None:
    kernels, _ = started(full)
    assert [each.kernel for each in kernels] == ["softmax_forward", "softmax_backward_table"]
    kernels, _ = started(sampled)
    assert [each.kernel for each in kernels] == ["sampled_forward", "sampled_backward"]
    default = launch_for(DEFAULTS, TINY.dim)
    assert kernels[0].launches == tuple(candidates(default, (16, 32, 64)))
    assert kernels[0].launches[0] == default
    assert vars(launching)["launch_on"] is launch_on  # as it was before


def test_a_kernel_that_is_started_twice_is_swept_once() -> None:
    inputs = make_inputs(TINY, Logits(), torch.float32, CPU)
    with noted() as kernels:
        sampled(inputs, TINY)
        sampled(inputs, TINY)
    assert [each.kernel for each in kernels] == ["sampled_forward"]


def test_a_noted_kernel_runs_by_the_launch_that_it_is_given() -> None:
    """Whatever the items of a tile, the table's gradient is the same, and it is added once more each time."""
    kernels, inputs = started(sampled)
    backward = kernels[1]
    gradient = getclosurevars(backward.run).nonlocals["grad_table"]
    once = gradient.clone()
    assert torch.equal(once, inputs.table.grad)  # type: ignore[arg-type]
    for times, launch in enumerate({each.block_n: each for each in backward.launches}.values(), start=2):
        backward.run(launch)
        assert torch.allclose(gradient, times * once, atol=1e-6)
    assert float(once.abs().sum()) > 0


def test_a_row_a_launch_and_the_fastest_once_more() -> None:
    ran: list[Launch] = []

    def run(launch: Launch) -> None:
        ran.append(launch)
        if launch.num_warps == 8:
            raise RuntimeError("out of resource: shared memory\nRequired: 999999")

    def timer(call: Callable[[], object]) -> float:
        before = len(ran)
        call()
        assert ran[before:] == [ran[-1]]
        return {32: 3.0, 16: 1.5, 64: 2.0}[ran[-1].block_n]

    *rows, best = swept(FOUND, Started("sampled_forward", LAUNCHES, run), in_time, timer, CPU)
    assert [row.launch for row in rows] == list(LAUNCHES)
    assert [row.kernel_ms for row in rows] == [3.0, 1.5, 2.0, None]
    assert [row.of_table for row in rows] == [True, False, False, False]
    assert (rows[3].status, rows[3].reason) == ("failed", "RuntimeError: out of resource: shared memory")
    assert not any(row.best for row in rows)
    assert best == replace(rows[1], best=True)
    assert ran[:2] == [LAUNCHES[0]] * 2  # compiled before the clock starts
    assert line_of(best) == "  best: sampled_forward 32 x 16, 4 warps, 2 stages: 1.50 ms"
    assert line_of(rows[0]) == "  sampled_forward 32 x 32, 4 warps, 2 stages: 3.00 ms, the launch of the table"
    assert line_of(rows[3]).endswith("8 warps, 2 stages: failed, RuntimeError: out of resource: shared memory")


def test_where_every_launch_is_refused_none_is_the_best() -> None:
    def refuse(launch: Launch) -> None:
        raise RuntimeError("no")

    rows = list(swept(FOUND, Started("k", LAUNCHES, refuse), in_time, lambda run: 1.0, CPU))
    assert [row.status for row in rows] == ["failed"] * 4
    assert not any(row.best for row in rows)


def test_a_sweep_ends_with_the_minutes_of_its_shape() -> None:
    reasons = iter(["", "", "over", "over"])
    each = Started("k", LAUNCHES, lambda launch: None)
    rows = list(swept(FOUND, each, lambda: next(reasons), lambda run: 1.0, CPU))
    assert [(row.status, row.best) for row in rows] == [("ok", False), ("ok", False), ("late", False), ("ok", True)]
    assert rows[2].reason == "over"


def test_a_contestant_that_does_not_run_any_more_is_a_row() -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("an illegal memory access")

    inputs = make_inputs(TINY, Logits(), torch.float32, CPU)
    (row,) = launch_times(FOUND, Call(broken, inputs, TINY), in_time)
    assert (row.launch, row.status, row.reason) == (None, "failed", "RuntimeError: an illegal memory access")
    assert line_of(row) == "  launches: failed, RuntimeError: an illegal memory access"


def test_launches_follow_their_contestant_in_the_file_and_in_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweep, "times", lambda run, device: [9.0, 1.0, 2.0])
    entrants = [
        Contestant(name="plain", loss=CE, run=lambda i, _: i.hidden.sum(), ours=False),
        Contestant(name="Triton cce-", loss=CE_NEG, tokens_per_set=32, run=sampled, on_triton=True, ours=False),
    ]
    bout = Bout(
        shapes=[TINY], logits=[Logits()], entrants=entrants, dtype=torch.float32, device=CPU, repeats=1, sweep=True
    )
    plain, triton, *launches = run_all(bout, lambda: 1 << 40, lambda _: None)
    assert isinstance(plain, Measurement)
    assert isinstance(triton, Measurement)
    assert (plain.status, triton.status) == ("ok", "ok")
    assert all(isinstance(each, LaunchTime) and each.of == triton for each in launches)
    found = [each for each in launches if isinstance(each, LaunchTime)]
    assert {each.kernel for each in found if each.best} == {"sampled_forward", "sampled_backward"}
    assert {each.kernel_ms for each in found} == {2.0}
    with ResultsFile(tmp_path / "x.csv") as file:
        for each in found:
            file.add(csv_line_of(each))
    with (tmp_path / "x.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["row", *COLUMNS]
    assert {row["row"] for row in rows} == {"launch"}
    assert [row["best"] for row in rows] == [str(each.best) for each in found]
    document = document_of(found)
    assert (document["results"], document["kernels"]) == ([], [])
    first = document["launches"][0]
    assert first | asdict(launch_for(DEFAULTS, TINY.dim)) == first
    assert (first["contestant"], first["kernel"], first["of_table"]) == ("Triton cce-", "sampled_forward", True)
