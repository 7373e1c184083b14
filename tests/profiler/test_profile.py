"""`srsplan profile` and what its records change: chosen, run, replaced, killed, resumed, applied."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended
from probe_records import CONFIGURATION, record, stored

from srsplan.kernels.losses import PLANNED
from srsplan.models.config import Architecture
from srsplan.planner.calibration import model_of, scaled_time
from srsplan.planner.step_time import BASIS, step_ms
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
        losses=PLANNED, catalogs=(30_000, 300_000), architecture=Architecture(), precision="fp16",
        budget_bytes=budget, count=12,
    )  # fmt: skip
    chosen = choose_probes(wanted, lambda each: [int(size) for size in model.allocated(each)])
    assert len(set(chosen)) == len(chosen) == 12 * len(PLANNED)
    sizes = [int(model.allocated([each])[0]) for each in chosen]
    assert sizes == sorted(sizes)
    assert max(sizes) <= 0.95 * budget
    for loss in PLANNED:
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
    unknown = other.changed(gpu="l20")  # a card whose speed is not in the catalogue
    assert scaled_time(record(4), [unknown], find_gpu("a100-40gb")).step_ms_median is None


ARGUMENTS = (
    "profile", "--gpu", "a100-40gb", "--losses", "ce-,bce", "--catalog", "3K,30K", "--probes", 4, "-o", "probes.jsonl"
)  # fmt: skip


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
    assert 3 <= len(before) < 8
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    after = load(path).records
    assert after[: len(before)] == before
    assert len(after) == len({each.key for each in after}) == 8
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
        (["profile", "--gpu", "a100-40gb", "--timeout", "nan"], "--timeout nan"),
        (["profile", "--gpu", "a100-40gb", "--timeout", "inf"], "--timeout inf"),
        (["profile", "--gpu", "a100-40gb", "--budget", "1000TB"], "is more than a100-40gb has"),
        (["profile", "--gpu", "a100-40gb", "--blocks", 3000], "blocks 3000"),
        (["profile", "--gpu", "'; ls"], "not in the catalogue"),
        (["profile", "--gpu", "a100-40gb", "-o", ""], "no name that a file can have"),
        (["profile", "--gpu", "a100-40gb", "-o", "."], "no name that a file can have"),
        (["profile", "--gpu", "a100-40gb", "-o", "/"], "no name that a file can have"),
        (["profile", "--gpu", "a100-40gb", "-o", "x" * 300], "no name that a file can have"),
        (["profile", "--gpu", "a100-40gb", "-o", "/dev/null"], "is a device"),
        (["profile", "--gpu", "a100-40gb", "-o", "/dev/full", "--fresh"], "is a device"),
        (["profile", "--gpu", "a100-40gb", "--catalog", "90M"], "no probe fits"),
        (["profile", "--gpu", "nope"], "'nope'"),
        (["profile", "--gpu", "a100-40gb", "-o", "no/folder/x.jsonl"], "no/folder"),
        (["recommend", "--catalog", "1M", "--budget", "40GB", "--profile", "none.jsonl"], "no profile at none.jsonl"),
        (["recommend", "--catalog", "1M", "--budget", "40GB", "--profile", "9" * 300], "File name too long"),
    ],
)
def test_bad_input(run: Run, arguments: list[object], phrase: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert phrase in done.message


SHORT = ("profile", "--gpu", "a100-40gb", "--losses", "bce", "--catalog", "3K", "--probes", 1)


def test_fresh_never_replaces_what_is_no_profile(run: Run, tmp_path: Path) -> None:
    thesis, pipe = tmp_path / "thesis.txt", tmp_path / "pipe"
    thesis.write_text("years of work\n")
    os.mkfifo(pipe)
    for path in (thesis, pipe):
        for options in (("--fresh",), ()):
            done = run(*SHORT, "-o", path, *options)
            assert done.code == 2
            assert str(path) in done.message
    assert thesis.read_text() == "years of work\n"
    assert pipe.is_fifo()
    profile = stored(tmp_path / "old.jsonl", record(1))
    assert run(*SHORT, "--catalog", "1", "-o", profile, "--fresh").code == 2
    assert load(profile).records == (record(1),)
    assert run(*SHORT, "-o", profile, "--fresh").code == 0
    assert [each.configuration.loss for each in load(profile).records] == ["bce"]


def test_the_printed_command_is_one_that_a_shell_understands(run: Run, tmp_path: Path) -> None:
    """Blanks, quotes, semicolons, brackets, control characters: in the name of the file, and of nothing else."""
    name = "p[red];touch 'X' \x1b[31m.jsonl"
    done = run(*SHORT, "-o", name)
    assert done.code == 0
    printed = done.out.splitlines()[-1]
    words = shlex.split(printed)
    assert words[:4] == ["srsplan", "recommend", "--catalog", "3000"]
    assert words[-2:] == ["--profile", "p[red];touch 'X' \\x1b[31m.jsonl"]
    assert "\x1b" not in done.out


@pytest.mark.parametrize("ratio", [1.0, 1.25])
def test_measured_ratios_and_times_reach_the_recommendation(run: Run, tmp_path: Path, ratio: float) -> None:
    """What was measured as so many times the prediction is recommended as so many times the prediction."""
    lines = [f"{user},{item},{item}" for user in range(80) for item in range(user % 7, 40)]
    (tmp_path / "data.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    steady = lifetime.steady(CONFIGURATION, MemoryModel().program)
    found = {
        "basis": "measured", "gpu": "h200", "context_bytes": 640 << 20,
        "reserved_bytes": round(ratio * steady),
    }  # fmt: skip
    gpu = find_gpu("h200")
    times = [3.0 * step_ms(CONFIGURATION, gpu)] * 3
    stored(
        tmp_path / "probes.jsonl",
        *(record(4, **found, step_ms_median=each, seconds=at) for at, each in enumerate(times)),
    )
    command = ("recommend", "--data", "data.csv", "--gpu", "h200", "--json")
    plain, measured = (run(*command, *more).json["choices"] for more in ((), ("--profile", "probes.jsonl")))
    assert len(plain) == len(measured) > 2
    same = [(one, other) for one in plain for other in measured if _knobs(one) == _knobs(other)]
    assert len(same) > 2
    for before, after in same:
        for name in ("reserved_bytes", "upper_bytes"):
            assert after["memory"][name] == pytest.approx(ratio * before["memory"][name], rel=1e-4)
        assert after["step_ms"] == pytest.approx(3.0 * before["step_ms"], rel=1e-2)


def _knobs(choice: dict[str, object]) -> tuple[object, ...]:
    return tuple(choice[name] for name in ("loss", "batch_size", "seq_len", "negatives"))


def test_a_card_outside_the_catalogue_leaves_times_as_calculated(tmp_path: Path) -> None:
    """Its memory counts; how fast it is at best is not known, so that its times cannot be transferred."""
    measured = {"basis": "measured", "gpu": "l20", "reserved_bytes": 1 << 30, "step_ms_median": 3.0}
    fit = model_of(stored(tmp_path / "probes.jsonl", *(record(size, **measured) for size in (4, 5, 6))))
    assert fit.model.measured is not None
    assert fit.step_basis == BASIS
