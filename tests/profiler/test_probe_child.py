"""A probe and its child process: how it ends, what it answers, what it measures."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_records import CONFIGURATION
from torch import Tensor

from srsplan.models.sasrec import SASRec
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.ranking import rank
from srsplan.models.training.step import StepInputs, TrainingStep
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes import cuda_child
from srsplan.profiler.probes.cuda_probe import CudaProbe, classify
from srsplan.profiler.probes.probe import SimulatedProbe
from srsplan.profiler.probes.records import ProbeRecord


def child(script: str, timeout: float = 20.0) -> ProbeRecord:
    """A probe whose child is a real process that runs `script`."""
    probe = CudaProbe(gpu="h200", device="a card", timeout_s=timeout, command=(sys.executable, "-c", script))
    return probe.run(CONFIGURATION)


def test_how_a_child_ends_is_told_apart() -> None:
    assert child("import time; time.sleep(60)", timeout=0.5).status == "timeout"
    assert child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").status == "oom_host"
    assert child("raise MemoryError").status == "oom_host"
    assert (
        child("raise RuntimeError('CUDA error: an illegal memory access was encountered')").status == "illegal_access"
    )
    assert child("class OutOfMemoryError(Exception): ...\nraise OutOfMemoryError('CUDA: Tried')").status == "oom_device"
    assert classify(1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB") == "oom_device"
    failed = child("raise KeyError('oops')")
    assert (failed.status, failed.basis) == ("failed", "measured")
    assert "KeyError: 'oops'" in failed.error_tail
    assert child("print('no json')").status == "failed"
    assert classify(1, "CUDA error: device-side assert") == "failed"


@pytest.mark.parametrize(
    "answer",
    [
        "5", "[]", "null", "{}", '{"status": "banana"}', '{"status": "ok", "allocated_bytes": -1}',
        '{"status": "ok", "allocated_bytes": 1.5}', '{"status": "ok", "step_ms_median": NaN}',
        '{"status": "ok", "step_ms_median": true}', '{"status": "ok", "colour": 3}', '{"status": ["ok"]}',
    ],
)  # fmt: skip
def test_a_child_that_answers_nonsense_spoils_its_probe_only(answer: str) -> None:
    found = child(f"print({answer!r})")
    assert found.status == "failed"
    assert "the child answered" in found.error_tail
    assert answer in found.error_tail


def test_a_hanging_child_takes_its_own_children_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    assert child(script, timeout=6).status == "timeout"
    pid = int(pid_file.read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or ") Z " in state.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the grandchild lives on")


def test_the_child_measures_a_real_training_step() -> None:
    """Its times are in milliseconds: within an order of magnitude of the same steps timed here, and of the wall."""
    configuration = replace(CONFIGURATION, catalog=5_000, batch_size=32, seq_len=64)
    probe = CudaProbe(gpu="h200", device="cpu", torch_device="cpu", timeout_s=100, steps=3)
    found = probe.run(configuration)
    assert found.status == "ok", found.error_tail
    assert found.step_ms_median is not None
    assert found.step_ms_p95 is not None
    assert 0 < found.step_ms_median <= found.step_ms_p95
    assert found.allocated_bytes is None
    assert found.time_basis == "measured"
    assert ProbeRecord.from_line(found.to_line(), "a line") == found
    assert 2 * found.step_ms_median < 1000 * found.seconds
    step = TrainingStep(configuration, torch.device("cpu"))
    batch = cuda_child.random_pass(configuration, step.device)
    times = []
    for _ in range(4):
        began = time.monotonic_ns()
        step.run(batch)
        times.append((time.monotonic_ns() - began) / 1e6)
    assert min(times) / 30 < found.step_ms_median < 30 * max(times)


def test_the_first_steps_warm_up_and_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slow steps, as compiling and tuning make them, leave neither median nor percentile slow."""
    run_passes, count = TrainingStep.run_passes, 0

    def slow_at_first(step: TrainingStep, passes: list[StepInputs], *rest: Any) -> Tensor:
        nonlocal count
        count += 1
        time.sleep(2.0 if count == 1 else 0.5 if count <= 3 else 0.0)
        return run_passes(step, passes, *rest)

    monkeypatch.setattr(TrainingStep, "run_passes", slow_at_first)
    found = cuda_child.measure(CONFIGURATION, torch.device("cpu"), steps=5, users=2)
    assert found["step_ms_median"] < found["step_ms_p95"] < 500
    assert count == 3 + 5 + 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, "expandable_segments:True"),
        ("max_split_size_mb:64", "max_split_size_mb:64,expandable_segments:True"),
        ("expandable_segments:False", "expandable_segments:False"),
    ],
)
def test_a_probes_allocator_uses_expandable_segments_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, told: str | None, expected: str
) -> None:
    """What the child really finds in its environment: memory is predicted for that mode."""
    if told is None:
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    else:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", told)
    found = child("import os, sys; sys.exit('told: ' + os.environ['PYTORCH_CUDA_ALLOC_CONF'])")
    assert found.error_tail == f"told: {expected}"


def test_probes_under_different_caps_are_different_probes() -> None:
    """A smaller card's out-of-memory is no answer about the larger one."""
    free, capped = (CudaProbe(gpu="h200", device="a card", cap_bytes=cap).blank(CONFIGURATION) for cap in (None, 40))
    assert free.key != capped.key
    assert ProbeRecord.from_line(capped.to_line(), "a line") == capped


def test_a_probe_runs_as_many_steps_as_it_is_told_and_ranks_so_many_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of warm-up, what was asked for, and one step after the evaluation."""
    steps, users = [], []
    run_passes = TrainingStep.run_passes

    def counted(step: TrainingStep, passes: list[StepInputs], *rest: Any) -> Tensor:
        steps.append(len(passes))
        return run_passes(step, passes, *rest)

    def ranked(model: SASRec, histories: PackedItems, *rest: Any) -> Tensor:
        users.append(len(histories.packing.cu_seqlens) - 1)
        return rank(model, histories, *rest)

    monkeypatch.setattr(TrainingStep, "run_passes", counted)
    monkeypatch.setattr(cuda_child, "rank", ranked)
    configuration = replace(CONFIGURATION, pass_tokens=CONFIGURATION.batch_tokens // 2, precision="fp32")
    cuda_child.measure(configuration, torch.device("cpu"), steps=4, users=5)
    assert steps == [2] * (3 + 4 + 1)
    assert users == [5]


def test_the_simulated_probe_says_so_and_knows_the_card() -> None:
    large = replace(CONFIGURATION, catalog=300_000, batch_size=512, seq_len=200, loss="ce")
    for configuration, status in ((CONFIGURATION, "ok"), (large, "oom_device")):
        found = SimulatedProbe("a100-40gb", 40 << 30).run(configuration)
        assert (found.status, found.basis, found.device) == (status, "simulated", "meta")
        assert found.reserved_bytes is None
        assert found.step_ms_median is None
        assert found.allocated_bytes == pytest.approx(int(MemoryModel().allocated([configuration])[0]), rel=0.002)
