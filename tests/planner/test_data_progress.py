"""The progress of reading: one bar on a terminal, after a second; nothing elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import Ended

from srsplan.models.data import progress
from srsplan.planner.cli import console, data_progress
from srsplan.planner.cli.console import Terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, after_seconds: float) -> str:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Terminal(file=screen, force_terminal=terminal, width=80))
    monkeypatch.setattr(data_progress, "SHOWN_AFTER_SECONDS", after_seconds)
    with data_progress.shown():
        for share in (0.1, 0.5, 1.0):
            progress.tell("reading users", share)
        progress.tell("keeping", 1.0)
    progress.tell("ordering", 1.0)  # nobody listens any longer
    return screen.getvalue()


def test_a_bar_with_an_estimate_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown(monkeypatch, terminal=True, after_seconds=0)
    assert "keeping" in screen
    assert "eta" in screen
    assert "ordering" not in screen


def test_nothing_where_it_is_quick_or_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=True, after_seconds=60) == ""
    assert shown(monkeypatch, terminal=False, after_seconds=0) == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "clicks").mkdir()
    for part in range(3):
        columns = {"user_id": draw.integers(0, 40, 300), "item_id": draw.integers(0, 30, 300)}
        frame = pd.DataFrame(columns | {"timestamp": draw.integers(0, 10**6, 300)})
        frame.to_parquet(tmp_path / "clicks" / f"part-{part}.parquet")
    return tmp_path / "clicks"


def test_a_plan_from_a_folder_of_parts_needs_no_torch(folder: Path) -> None:
    code = "import sys; from srsplan.planner.cli.app import main; sys.modules['torch'] = None; main()"
    words = ["recommend", "--data", str(folder), "--budget", "2GB", "--no-plan", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert "clicks: 3 parts" in done.stdout


def test_a_folder_of_parts_is_trained_on(run: Callable[..., Ended], folder: Path) -> None:
    words = ["--loss", "cce", "--dim", 8, "--blocks", 1, "--heads", 1, "--seq-len", 8, "--batch-size", 16]
    found = run("train", "--data", folder, *words, "--epochs", 1)
    assert found.code == 0, found.err
    assert "clicks: 3 parts" in found.err
    assert Path("runs/clicks-cce/metrics.json").exists()
