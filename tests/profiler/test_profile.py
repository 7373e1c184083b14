"""Probes, their store, and `srsplan profile`: killed, resumed, damaged, locked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Ended
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.sasrec import SASRec
from srsplan.models.training.step import StepInputs, TrainingStep
from srsplan.planner.calibration import model_of, scaled_time
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes import cuda_child, device
from srsplan.profiler.probes.catalogue import find_gpu
from srsplan.profiler.probes.cuda_probe import CudaProbe, classify
from srsplan.profiler.probes.device import ProbeDevice
from srsplan.profiler.probes.grid import Wanted, choose_probes
from srsplan.profiler.probes.probe import SimulatedProbe
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import Store, load

Run = Callable[..., Ended]
SMALL = Architecture(dim=32, heads=2, blocks=1)
CONFIGURATION = Configuration(loss="cce", catalog=500, batch_size=4, seq_len=8, architecture=SMALL, precision="fp32")


def record(batch_size: int = 4, **changes: object) -> ProbeRecord:
    configuration = replace(CONFIGURATION, batch_size=batch_size)
    fixed = {"status": "ok", "basis": "simulated", "gpu": "a100-40gb", "device": "meta", "allocated_bytes": 5}
    return ProbeRecord(configuration=configuration, **{**fixed, **changes})  # type: ignore[arg-type]


def stored(path: Path, *records: ProbeRecord) -> Path:
    with Store(path) as store:
        for each in records:
            store.append(each)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 10_000), kept=st.integers(0, 4))
def test_a_file_cut_anywhere_loses_at_most_its_last_line(tmp_path: Path, cut: int, kept: int) -> None:
    path = tmp_path / "probes.jsonl"
    path.unlink(missing_ok=True)
    records = [record(size) for size in range(1, kept + 2)]
    stored(path, *records)
    content = path.read_bytes()
    start = len(content) - len(records[-1].to_line())
    path.write_bytes(content[: start + cut % (len(content) - start)])
    with Store(path) as store:
        assert store.records == records[:-1]
        store.append(records[-1])
    assert load(path).records == tuple(records)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "probes.jsonl", record(1), record(2))
    lines = path.read_text().splitlines()
    for damaged, phrase in (
        ("{]", "line 2 is not JSON"),
        (lines[0].replace('"schema": 1', '"schema": 9'), "line 2: schema = 9: Input should be 1"),
        (lines[0].replace("allocated_bytes", "alocated_bytes"), "line 2: unknown key 'alocated_bytes'"),
        (lines[0].replace('"ok"', '"fine"'), "line 2: status = 'fine'"),
        ("[1]", "line 2: .*object"),
    ):
        path.write_text("\n".join([lines[0], damaged, lines[1]]) + "\n")
        with pytest.raises(InputError, match=phrase):
            load(path)


def test_a_second_profiler_is_told_and_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    with Store(path) as first:
        with pytest.raises(InputError, match="in use"), Store(path):
            pass
        first.append(record())
    assert len(load(path).records) == 1


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written = stored(tmp_path / "probes.jsonl", record(1)), os.write

    def full(file: int, data: bytes) -> int:
        written(file, data[:20])
        raise OSError(28, "No space left on device")

    with Store(path) as store:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(SrsplanError, match="No space left on device; the records before are whole"):
            store.append(record(2))
        monkeypatch.undo()
        store.append(record(3))
    assert load(path).records == (record(1), record(3))


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
    assert child("import torch; raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried')").status == "oom_device"
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


def test_a_card_that_disappears_ends_the_profile_and_keeps_what_was_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second child finds no card any more: one line, and the same command tries that probe again."""
    answers = tmp_path / "answers"
    script = (
        f"import pathlib, sys; path = pathlib.Path({str(answers)!r})\n"
        "count = len(path.read_text()) if path.exists() else 0; path.write_text('x' * (count + 1))\n"
        "if count == 1: sys.exit('RuntimeError: No CUDA GPUs are available')\n"
        'print(\'{"status": "ok", "allocated_bytes": 7, "reserved_bytes": 9}\')'
    )
    probe = CudaProbe(gpu="a100-40gb", device="a card", command=(sys.executable, "-c", script))
    card = find_gpu("a100-40gb")
    monkeypatch.setattr(device, "find_device", lambda *_: ProbeDevice(probe=probe, wanted=card, present=card))
    command = ("profile", "--gpu", "a100-40gb", "--losses", "ce-", "--catalog", "30K", "--probes", 3, "-o", "out.jsonl")
    done = run(*command)
    assert done.code == 1
    assert "the card does not answer: RuntimeError: No CUDA GPUs are available" in done.message
    assert "Traceback" not in done.err
    kept = load(tmp_path / "out.jsonl").records
    assert [each.status for each in kept] == ["ok"]
    again = run(*command)
    assert again.code == 0
    records = load(tmp_path / "out.jsonl").records
    assert records[0] == kept[0]
    assert len({each.key for each in records}) == len(records) == 3


def test_probes_that_failed_are_replaced_by_smaller_ones(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest of a loss run out of memory; a second start finds everything stored."""
    limit = 20 << 30
    script = (
        "import json, sys; task = json.load(sys.stdin)['configuration']\n"
        "from srsplan.models.config import Configuration\n"
        "from srsplan.profiler.memory.model import MemoryModel\n"
        "size = int(MemoryModel().allocated([Configuration.from_dict(task)])[0])\n"
        f"if size > {limit}: sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate')\n"
        "print(json.dumps({'status': 'ok', 'allocated_bytes': size, 'reserved_bytes': size}))"
    )
    probe = CudaProbe(gpu="a100-40gb", device="a card", command=(sys.executable, "-c", script))
    card = find_gpu("a100-40gb")
    monkeypatch.setattr(device, "find_device", lambda *_: ProbeDevice(probe=probe, wanted=card, present=card))
    command = ("profile", "--gpu", "a100-40gb", "--losses", "ce-,cce-", "--catalog", "30K", "--probes", 4)
    done = run(*command, "-o", "out.jsonl", "--json")
    assert done.code == 0, done.err
    records = load(tmp_path / "out.jsonl").records
    failed = [each for each in records if each.status == "oom_device"]
    assert failed
    assert "probes failed; " in done.message
    assert "smaller ones are tried in their places" in done.message
    assert len({each.key for each in records}) == len(records) == len(done.json) == 8 + len(failed)
    model = MemoryModel()
    for new in (each for each in records[8:] if each.status == "ok"):
        lost = [each.configuration for each in failed if each.configuration.loss == new.configuration.loss]
        assert model.allocated([new.configuration])[0] < model.allocated(lost).min()
    again = run(*command, "-o", "out.jsonl")
    assert again.code == 0
    assert load(tmp_path / "out.jsonl").records == records


@pytest.mark.parametrize(
    "content", [b"years of work", b"\x00\xff\x00", b"user,item\n1,2\n3,4", b'{"schema": 9, "a"', b"1\n2"]
)
def test_a_file_that_is_no_profile_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    if content.startswith(b'{"schema"'):  # half a line of ours: a kill may have left it
        with Store(path) as store:
            assert store.cut_off
        return
    with pytest.raises(InputError), Store(path):
        pass
    assert path.read_bytes() == content


def test_a_measured_context_takes_the_place_of_the_assumed_one(run: Run, tmp_path: Path) -> None:
    found = {"basis": "measured", "gpu": "h200", "reserved_bytes": 1 << 30, "step_ms_median": 3.0}
    stored(tmp_path / "probes.jsonl", *(record(size, **found, context_bytes=size << 27) for size in (4, 5, 6)))
    plain, measured = (
        run("recommend", "--catalog", "50K", "--budget", "8GB", "--json", *more).json["budget"]
        for more in ((), ("--profile", "probes.jsonl"))
    )
    assert measured["context_bytes"] == 6 << 27
    assert measured["usable_bytes"] - plain["usable_bytes"] == plain["context_bytes"] - measured["context_bytes"]


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
    probe = CudaProbe(gpu="h200", device="cpu", torch_device="cpu", timeout_s=100)
    found = probe.run(CONFIGURATION)
    assert found.status == "ok", found.error_tail
    assert found.step_ms_median is not None
    assert found.step_ms_p95 is not None
    assert 0 < found.step_ms_median <= found.step_ms_p95
    assert found.allocated_bytes is None
    assert found.time_basis == "measured"
    assert ProbeRecord.from_line(found.to_line(), "a line") == found


def test_probes_under_different_caps_are_different_probes() -> None:
    """A smaller card's out-of-memory is no answer about the larger one."""
    free, capped = (CudaProbe(gpu="h200", device="a card", cap_bytes=cap).blank(CONFIGURATION) for cap in (None, 40))
    assert free.key != capped.key
    assert ProbeRecord.from_line(capped.to_line(), "a line") == capped


def test_a_probe_runs_as_many_steps_as_it_is_told_and_ranks_so_many_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up, what was asked for, and one step after the evaluation."""
    steps, users = [], []
    run_parts, rank = TrainingStep.run_parts, cuda_child.rank

    def counted(step: TrainingStep, parts: list[StepInputs], targets: int) -> Tensor:
        steps.append(len(parts))
        return run_parts(step, parts, targets)

    def ranked(model: SASRec, inputs: Tensor, *rest: Any) -> Tensor:
        users.append(len(inputs))
        return rank(model, inputs, *rest)

    monkeypatch.setattr(TrainingStep, "run_parts", counted)
    monkeypatch.setattr(cuda_child, "rank", ranked)
    configuration = replace(CONFIGURATION, micro_batches=2, valid_tokens=None, precision="fp32")
    cuda_child.measure(configuration, torch.device("cpu"), steps=4, users=5)
    assert steps == [2] * (cuda_child.WARM_UP_STEPS + 4 + 1)
    assert users == [5]


def test_the_simulated_probe_says_so_and_knows_the_card() -> None:
    large = replace(CONFIGURATION, catalog=300_000, batch_size=512, seq_len=200, loss="ce")
    for configuration, status in ((CONFIGURATION, "ok"), (large, "oom_device")):
        found = SimulatedProbe("a100-40gb", 40 << 30).run(configuration)
        assert (found.status, found.basis, found.device) == (status, "simulated", "meta")
        assert found.reserved_bytes is None
        assert found.step_ms_median is None
        assert found.allocated_bytes == pytest.approx(int(MemoryModel().allocated([configuration])[0]), rel=0.002)


def test_probes_are_few_spread_and_reach_the_budget() -> None:
    model = MemoryModel()
    budget = 24 * 10**9
    wanted = Wanted(
        losses=tuple(LOSSES), catalogs=(30_000, 300_000), architecture=Architecture(), precision="fp16",
        budget_bytes=budget, count=12,
    )  # fmt: skip
    chosen = choose_probes(wanted, lambda each: [int(size) for size in model.allocated(each)])
    assert len(set(chosen)) == len(chosen) == 12 * len(LOSSES)
    sizes = [int(model.allocated([each])[0]) for each in chosen]
    assert sizes == sorted(sizes)
    assert max(sizes) <= 0.95 * budget
    for loss in LOSSES:
        mine = [each for each in chosen if each.loss == loss]
        assert {each.catalog for each in mine} == {30_000, 300_000}
        assert len({each.batch_size for each in mine}) >= 3
        assert max(int(model.allocated([each])[0]) for each in mine) > 0.5 * budget or loss == "bce"


def test_measured_probes_replace_the_assumed_ratios(tmp_path: Path) -> None:
    predicted = int(MemoryModel().allocated([CONFIGURATION])[0])
    reserved = lifetime.steady(CONFIGURATION, MemoryModel().program)
    measured = {"basis": "measured", "gpu": "h200", "allocated_bytes": predicted, "step_ms_median": 3.0}
    probes = [record(4, **measured, reserved_bytes=int(reserved * ratio), seconds=ratio) for ratio in (1.1, 1.2, 1.5)]
    fit = model_of(stored(tmp_path / "measured.jsonl", *probes))
    ratios = fit.model.measured
    assert ratios is not None
    assert ratios.upper == pytest.approx(1.5, rel=1e-3)
    assert ratios.reserved == pytest.approx(1.2, rel=1e-3)
    assert fit.rates.launch_us > 0
    assert "times the calculated time, from 3 probes on h200" in fit.sentence
    simulated = model_of(stored(tmp_path / "simulated.jsonl", record(4, allocated_bytes=predicted)))
    assert simulated.model.measured is None
    assert "none measured on a card" in simulated.sentence


def test_times_of_another_card_are_transferred_and_labelled() -> None:
    other = record(4, basis="measured", gpu="h200", step_ms_median=10.0, step_ms_p95=12.0)
    found = scaled_time(record(4, gpu="rtx-3060-12gb"), [other], find_gpu("rtx-3060-12gb"))
    assert found.time_basis == "scaled from h200"
    assert found.step_ms_median is not None
    assert found.step_ms_median >= 10.0
    assert scaled_time(record(5), [other], find_gpu("a100-40gb")).step_ms_median is None


ARGUMENTS = ("profile", "--gpu", "a100-40gb", "--catalog", "3K,30K", "--probes", 4, "-o", "probes.jsonl")


def test_a_killed_profile_loses_at_most_the_probe_in_flight(tmp_path: Path) -> None:
    code = "from srsplan.planner.cli.app import main; main()"
    command = [sys.executable, "-c", code, *map(str, ARGUMENTS)]
    path = tmp_path / "probes.jsonl"
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    before = load(path).records
    assert 3 <= len(before) < 4 * len(LOSSES)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    after = load(path).records
    assert after[: len(before)] == before
    assert len(after) == len({each.key for each in after}) == 4 * len(LOSSES)
    assert "probes are stored already" in " ".join(done.stderr.split())
    assert "(simulated), step times are not measured" in " ".join(done.stderr.split())


def test_a_profile_leads_to_a_recommendation(run: Run) -> None:
    small = ("profile", "--gpu", "a100-40gb", "--catalog", "30K", "--losses", "cce-", "--probes", 3)
    records = run(*small, "--json").json
    assert [each["basis"] for each in records] == ["simulated"] * 3
    done = run("recommend", "--catalog", "30K", "--gpu", "a100-40gb", "--profile", "srsplan.profile.jsonl")
    assert done.code == 0
    assert "of 3 probes; none measured on a card" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["profile", "--gpu", "a100-40gb", "--losses", "cce,foo"], "unknown loss 'foo'"),
        (["profile", "--gpu", "a100-40gb", "--probes", 0], "probes 0"),
        (["profile", "--gpu", "a100-40gb", "--timeout", 0], "--timeout 0"),
        (["profile", "--gpu", "a100-40gb", "--catalog", "90M"], "no probe fits"),
        (["profile", "--gpu", "nope"], "'nope'"),
        (["profile", "--gpu", "a100-40gb", "-o", "no/folder/x.jsonl"], "no/folder"),
        (["recommend", "--catalog", "1M", "--budget", "40GB", "--profile", "none.jsonl"], "no profile at none.jsonl"),
    ],
)
def test_bad_input(run: Run, arguments: list[object], phrase: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert phrase in done.message
