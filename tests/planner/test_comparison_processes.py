"""Runs as processes: none is lost or doubled whoever is killed, and a log says why one failed.

The child is a stand-in that takes a tenth of a second an epoch: the real one needs seconds to import torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srsplan.planner.comparison import processes
from srsplan.planner.comparison.output import PlannedRun
from srsplan.planner.comparison.running import Outcome, run_all
from srsplan.planner.comparison.scheduling import Room

CHILD = """
import json, os, sys, time
from pathlib import Path
from srsplan.planner.comparison.processes import die_with_parent

die_with_parent(int(sys.argv[1]))
assert sys.argv[2] == "train"
folder = Path(next(word for word in sys.argv if word.startswith("--output=")).removeprefix("--output="))
if "--fail" in sys.argv:
    sys.exit("measuring\\nerror: the loss is not finite\\n  try: a smaller --learning-rate")
if "--crash" in sys.argv:
    os.abort()
(folder / "config.json").exists() == ("--resume" in sys.argv) or sys.exit("error: resumed what was not there")
folder.mkdir(parents=True, exist_ok=True)
config = dict.fromkeys(["configuration", "settings", "data", "split"], 0)
(folder / "config.json").write_text(json.dumps(config))
done = sum(1 for _ in (folder / "epochs.jsonl").open()) if (folder / "epochs.jsonl").exists() else 0
for epoch in range(done, 5):
    time.sleep(0.1)
    with (folder / "epochs.jsonl").open("a") as log:
        log.write(f"{epoch} {os.environ['OMP_NUM_THREADS']}\\n")
(folder / "metrics.json").write_text("{}")
with open(folder.parent / "ended", "a") as ended:
    ended.write(folder.name + "\\n")
"""

PARENT = """
import sys
from pathlib import Path
from srsplan.planner.comparison import processes
from test_comparison_processes import Silent, planned, run_all, Room
processes.CHILD = (sys.executable, sys.argv[1])
runs = [run for run in planned(Path(sys.argv[2]), 4) if not run.ended]
run_all(runs, Room(jobs=2), 1, Silent())
"""


class Silent:
    """A watcher that remembers the failures."""

    def __init__(self) -> None:
        self.failures: list[str | None] = []

    def on_start(self, run: PlannedRun) -> None:
        pass

    def on_end(self, run: PlannedRun, seconds: float, failure: str | None) -> None:
        self.failures.append(failure)


def planned(output: Path, count: int, *words: str) -> list[PlannedRun]:
    folders = [output / f"seed-{seed}" for seed in range(count)]
    return [
        PlannedRun(configuration="c", data="d", seed=at, folder=folder, words=(f"--output={folder}", *words))
        for at, folder in enumerate(folders)
    ]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    monkeypatch.setattr(processes, "CHILD", (sys.executable, str(path)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return path


def ended(output: Path) -> list[str]:
    return sorted((output / "ended").read_text().split())


def test_every_run_is_a_process_with_a_log(child: Path, tmp_path: Path) -> None:
    runs = [
        *planned(tmp_path / "good", 2),
        *planned(tmp_path / "bad", 1, "--fail"),
        *planned(tmp_path / "ugly", 1, "--crash"),
    ]
    watcher = Silent()
    outcome = run_all(runs, Room(jobs=4), 3, watcher)
    assert outcome == Outcome(
        finished=outcome.finished,
        failed={runs[2]: "the loss is not finite; try: a smaller --learning-rate", runs[3]: outcome.failed[runs[3]]},
    )
    assert set(outcome.finished) == set(runs[:2])
    assert f"exit code {-signal.SIGABRT}" in outcome.failed[runs[3]]
    assert sorted(map(str, watcher.failures)) == sorted(["None", "None", *outcome.failed.values()])
    assert (tmp_path / "good" / "seed-1" / "epochs.jsonl").read_text().split()[1::2] == ["3"] * 5  # threads
    assert (tmp_path / "bad" / "seed-0.log").read_text().startswith("measuring")


def test_an_older_error_in_the_log_is_not_this_one(child: Path, tmp_path: Path) -> None:
    (run,) = planned(tmp_path / "runs", 1, "--crash")
    run.log.parent.mkdir()
    run.log.write_text("error: of last week\n")
    outcome = run_all([run], Room(jobs=1), 1, Silent())
    assert "last week" not in outcome.failed[run]
    assert "last week" in run.log.read_text()


def test_a_kill_loses_no_run_and_doubles_none(child: Path, tmp_path: Path) -> None:
    """Killed in the second pair of four runs: their trainings die with it, and a second call ends what is missing."""
    output = tmp_path / "runs"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    words = [sys.executable, "-c", PARENT, str(child), str(output)]
    parent = subprocess.Popen(words, env=environment)
    epochs = output / "seed-3" / "epochs.jsonl"
    deadline = time.monotonic() + 30
    while not epochs.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    first = ended(output)
    assert len(first) == 2
    kept = epochs.read_text()
    time.sleep(0.4)
    assert epochs.read_text() == kept, "a training outlived its comparison"
    assert subprocess.run(words, env=environment, timeout=30, check=False).returncode == 0
    assert ended(output) == [f"seed-{seed}" for seed in range(4)]
    for seed in range(4):
        written = (output / f"seed-{seed}" / "epochs.jsonl").read_text().split()[::2]
        assert written == ["0", "1", "2", "3", "4"]


def test_an_interrupt_ends_the_running_ones(child: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[processes.Process] = []

    class Impatient(Silent):
        def on_start(self, run: PlannedRun) -> None:
            if len(started) == 2:
                raise KeyboardInterrupt

    def start(run: PlannedRun, threads: int) -> processes.Process:
        started.append(processes.start(run, threads))
        return started[-1]

    with pytest.raises(KeyboardInterrupt):
        run_all(planned(tmp_path / "runs", 3), Room(jobs=3), 1, Impatient(), start)
    assert [each.code is None for each in started] == [False, False]
    assert not (tmp_path / "runs" / "ended").exists()


def test_the_real_child_is_srsplan_itself() -> None:
    """Its first word is its parent, the others are those of a command line; an orphan does nothing."""
    done = subprocess.run(
        [*processes.CHILD, str(os.getpid()), "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "srsplan")
    orphan = subprocess.run([*processes.CHILD, "1", "--version"], capture_output=True, text=True, check=False)
    assert (orphan.returncode, orphan.stdout) == (processes.PARENT_GONE, "")
