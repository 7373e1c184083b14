"""`srsplan profile` and what its records change: chosen, run, replaced, killed, resumed, applied."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended
from probe_records import CONFIGURATION, record, stored

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture
from srsplan.planner.calibration import model_of, scaled_time
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes import device
from srsplan.profiler.probes.catalogue import find_gpu
from srsplan.profiler.probes.cuda_probe import CudaProbe
from srsplan.profiler.probes.device import ProbeDevice
from srsplan.profiler.probes.grid import Wanted, choose_probes
from srsplan.profiler.probes.store import load

Run = Callable[..., Ended]


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


def test_a_measured_context_takes_the_place_of_the_assumed_one(run: Run, tmp_path: Path) -> None:
    found = {"basis": "measured", "gpu": "h200", "reserved_bytes": 1 << 30, "step_ms_median": 3.0}
    stored(tmp_path / "probes.jsonl", *(record(size, **found, context_bytes=size << 27) for size in (4, 5, 6)))
    plain, measured = (
        run("recommend", "--catalog", "50K", "--budget", "8GB", "--json", *more).json["budget"]
        for more in ((), ("--profile", "probes.jsonl"))
    )
    assert measured["context_bytes"] == 6 << 27
    assert measured["usable_bytes"] - plain["usable_bytes"] == plain["context_bytes"] - measured["context_bytes"]


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
