"""`srsplan train`: on real interactions, resumed to the bit, killed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Ended
from paths import SHARED
from safetensors.torch import load_file
from small_runs import contents, resume

from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Split, split
from srsplan.models.errors import SrsplanError
from srsplan.models.training import checkpoint
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.loop import Trainer
from srsplan.models.training.settings import Settings
from srsplan.models.training.step import TrainingStep
from srsplan.planner.analysis.run_tables import load_runs

Run = Callable[..., Ended]
CPU = torch.device("cpu")
ML_100K = SHARED / "data" / "ml-100k.inter"
TINY = ("--loss", "cce", "--batch-size", 64, "--seq-len", 20, "--dim", 16, "--heads", 2, "--blocks", 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """120 users walk through 60 items in order, each from a start of their own: predictable, but not by popularity."""
    draw = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(120):
        start, begin = draw.integers(60), draw.integers(1000)
        lines += [f"u{user},i{(start + step) % 60},{begin + 10 * step}" for step in range(12)]
    path = tmp_path / "walks.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.evidence
def test_the_way_through_on_real_data(run: Run, tmp_path: Path) -> None:
    """recommend --data, then train on its plan: above popularity after two epochs of MovieLens-100K."""
    run("recommend", "--data", ML_100K, "--budget", "2GB", "--dim", 64)
    done = run("train", "--data", ML_100K, "--epochs", 3, "--seq-len", 100, "--learning-rate", 0.003, "--json")
    assert done.code == 0, done.err
    document = done.json
    assert document["popularity"]["NDCG_10"] == pytest.approx(0.0367, abs=0.002)
    assert document["test"]["NDCG_10"] > document["popularity"]["NDCG_10"]
    assert set(document["test"]) == {
        f"{name}_{k}" for name in ("NDCG", "HitRate", "MRR", "Coverage", "Surprisal") for k in (1, 5, 10, 20, 100)
    }
    for phrase in ("global-time split", "eager PyTorch", "on a CPU, in fp32", "validation NDCG@10"):
        assert phrase in " ".join(done.err.split())
    table = load_runs(tmp_path / document["folder"] / "runs.csv")
    assert table.frame["batch_size"].tolist() == [40]
    assert table.frame["NDCG_10_test"].tolist() == [pytest.approx(document["test"]["NDCG_10"])]


def test_a_model_learns_what_popularity_cannot(run: Run, data: Path, tmp_path: Path) -> None:
    done = run(
        "train", "--data", data, *TINY, "--epochs", 30, "--learning-rate", 0.01, "--split", "leave-one-out", "-o", "out"
    )
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test"]["HitRate_1"] > 0.9
    assert metrics["popularity"]["HitRate_1"] < 0.2
    assert "leaks the future" in " ".join(done.err.split())
    assert "Test: 120 users" in done.out


def files(folder: Path) -> dict[str, Any]:
    """What two equal runs must agree on."""
    epochs = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    return {
        "epochs": [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in epochs],
        "test": json.loads((folder / "metrics.json").read_text())["test"],
    }


def test_a_resumed_run_is_the_uninterrupted_one(run: Run, data: Path, tmp_path: Path) -> None:
    sampled = ("--loss", "cce-", "--negatives", 20, "--tokens-per-set", 8, "--dropout", 0.2)
    common = ("train", "--data", data, *TINY[2:], *sampled, "--patience", 50)
    run(*common, "--epochs", 5, "-o", "whole")
    run(*common, "--epochs", 2, "-o", "parts")
    done = run(*common, "--epochs", 5, "-o", "parts", "--resume")
    assert "resumed after epoch 2" in done.err
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    whole, parts = (load_file(next((tmp_path / name).glob("weights-*"))) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_killed_training_loses_at_most_an_epoch(data: Path, tmp_path: Path) -> None:
    code = "from srsplan.planner.cli.app import main; main()"
    arguments = ("train", "--data", data, *TINY, "--epochs", 200, "--patience", 200, "-o", "out")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "out" / "epochs.jsonl"
    for _ in range(2400):
        if log.exists() and log.read_text().count("\n") >= 4:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    logged = log.read_text().count("\n")
    state = checkpoint.read_state(tmp_path / "out")
    assert state is not None
    saved = state.progress.epoch
    assert logged - 1 <= saved <= logged
    # now four more epochs than were saved, from there
    command[command.index("200")] = str(saved + 4)
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"resumed after epoch {saved}" in done.stderr
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(1, saved + 5))


def trained(folder: Path, data: Path, epochs: int = 1) -> tuple[Trainer, Split]:
    """A trainer in `folder`, not run yet."""
    folder.mkdir(exist_ok=True)
    parts = split(read_interactions(data), "leave-one-out")
    configuration = Configuration(
        loss="cce", catalog=parts.catalog, batch_size=32, seq_len=10, precision="fp32",
        architecture=Architecture(dim=16, blocks=1),
    )  # fmt: skip
    return Trainer(TrainingStep(configuration, CPU), parts, Settings(epochs=epochs), folder), parts


def test_a_full_disk_leaves_the_last_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    trained(folder, data)[0].run(NoCallbacks())
    before = contents(folder)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    trainer, _ = trained(folder, data, epochs=3)
    resume(trainer)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SrsplanError, match="No space left on device; what was saved before is whole"):
        trainer.run(NoCallbacks())
    monkeypatch.undo()
    assert contents(folder) == before
    trainer, _ = trained(folder, data, epochs=3)
    resume(trainer)
    assert trainer.run(NoCallbacks()).epoch == 3


SAMPLED = [*TINY, "--loss", "cce-", "--negatives", 20]
BAD: list[tuple[list[object], str]] = [
    ([], "neither a plan"),
    (["--plan", "none.yaml"], "no plan at none.yaml"),
    ([*TINY, "--data", "none.csv"], "none.csv"),
    ([*TINY, "--seq-len", 0], "seq_len 0"),
    ([*TINY, "--batch-size", -4], "batch_size -4"),
    ([*TINY, "--negatives", 4], "negatives 4 mean nothing"),
    ([*TINY, "--device", "tpu"], "unknown --device 'tpu'"),
    ([*TINY, "--device", "cuda"], "torch sees no GPU"),
    ([*TINY, "--learning-rate", 0], "--learning-rate 0.0 is not a number above zero"),
    ([*TINY, "--epochs", 0], "--epochs"),
    ([*TINY, "--split", "random"], "unknown split 'random'"),
    ([*TINY, "--item-column", "sku"], "sku"),
    ([*TINY, "--resume"], "no checkpoint"),
    ([*TINY, "--sampler", "popularity"], "'cce' does not draw negatives by 'popularity'"),
    ([*SAMPLED, "--sampler", "zipf"], "unknown sampler 'zipf'"),
    ([*SAMPLED, "--sampler", "popularity", "--popularity-exponent", -1], "--popularity-exponent -1.0 is outside 0..4"),
    ([*TINY, "--loss", "cce-", "--negatives", 60], "negatives 60 are not fewer than the catalog's 60"),
]


@pytest.mark.parametrize(("arguments", "phrase"), BAD, ids=lambda value: " ".join(map(str, value))[-40:])
def test_bad_input(run: Run, data: Path, arguments: list[object], phrase: str) -> None:
    done = run("train", "--data", data, *arguments)
    assert done.code == 2
    assert phrase in done.message


def test_a_plan_for_fewer_items_is_refused(run: Run, data: Path) -> None:
    run("recommend", "--catalog", "50", "--budget", "2GB", "--dim", 16)
    done = run("train", "--data", data)
    assert done.code == 2
    assert "the plan is for 50 items, the data have 60" in done.message


def test_a_loss_that_diverges_is_told(run: Run, data: Path) -> None:
    done = run("train", "--data", data, *TINY, "--epochs", 20, "--learning-rate", 1e18)
    assert done.code == 1
    assert "training diverged" in done.message


@pytest.mark.parametrize("verb", ["train", "profile"])
def test_ctrl_c_ends_with_what_is_kept_and_how_to_go_on(data: Path, tmp_path: Path, verb: str) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "train": ("train", "--data", data, *TINY, "--epochs", 500, "--patience", 500, "-o", "out"),
        "profile": ("profile", "--gpu", "a100-40gb", "--probes", 60, "-o", "probes.jsonl"),
    }
    progress = {"train": tmp_path / "out" / "epochs.jsonl", "profile": tmp_path / "probes.jsonl"}[verb]
    # started in the background of a shell, a process ignores Ctrl-C, and so would its children
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listening}; from srsplan.planner.cli.app import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments[verb])]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(2400):
        if progress.exists() and progress.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped; " in said
    assert "goes on" in " ".join(said.split())
    assert "Traceback" not in said
