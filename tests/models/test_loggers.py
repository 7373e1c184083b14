"""Loggers: an event file is read back, services are called as their packages want, and what is missing is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from command import Ended
from small_runs import trainer, walks

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.training import loggers
from srsplan.models.training.callbacks import NoCallbacks, Together
from srsplan.models.training.epochs_log import EpochRecord
from srsplan.models.training.settings import Settings

Run = Callable[..., Ended]
TINY = ("--loss", "cce", "--batch-size", 16, "--seq-len", 8, "--dim", 16, "--blocks", 1, "--split", "leave-one-out")
RECORD = EpochRecord(epoch=3, loss=1.5, seconds=2.0, learning_rate=0.01, gradient_norm=0.7, metrics={"NDCG_10": 0.25})
FIGURES = {
    "train/loss": 1.5, "train/seconds": 2.0, "train/learning_rate": 0.01, "train/gradient_norm": 0.7,
    "validation/NDCG_10": 0.25,
}  # fmt: skip


def test_the_event_file_holds_what_the_log_of_epochs_does(run: Run, tmp_path: Path) -> None:
    """Of a run that was resumed and one that was replaced, read back by TensorBoard itself: one point an epoch."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    common = ("train", "--data", walks(tmp_path / "walks.csv"), *TINY, "--clip-norm", 1, "-o", "out")
    assert run(*common, "--log", "tensorboard", "--epochs", 4).code == 0
    assert run(*common, "--log", "tensorboard", "--epochs", 2, "--overwrite", "--seed", 7).code == 0
    assert run(*common, "--log", "tensorboard", "--epochs", 3, "--resume", "--seed", 7).code == 0
    read = events.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    read.Reload()
    lines = [json.loads(line) for line in (tmp_path / "out" / "epochs.jsonl").read_text().splitlines()]
    for tag, name in (
        ("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("train/gradient_norm", "gradient_norm"),
        ("train/seconds", "seconds"), ("validation/NDCG_10", "NDCG_10"),
    ):  # fmt: skip
        points = read.Scalars(tag)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([line[name] for line in lines])


def logged(folder: Path) -> loggers.Logged:
    return loggers.Logged(folder=folder, first_epoch=1, options={"loss": "cce", "dim": 16})


class Service(ModuleType):
    """A package that notes how it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any, Any]] = []

    def noted(self, name: str, result: object = None) -> Callable[..., object]:
        def call(*values: Any, **options: Any) -> object:
            self.calls.append((name, values, options))
            return result

        return call


def test_weights_and_biases_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = Service("wandb")
    run = SimpleNamespace(log=wandb.noted("log"), finish=wandb.noted("finish"))
    monkeypatch.setattr(wandb, "init", wandb.noted("init", run), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with loggers.opened(loggers.parse_names("wandb"), logged(tmp_path / "first")) as (one,):
        one.on_epoch_end(RECORD)
    options = {"name": "first", "dir": str(tmp_path / "first"), "config": {"loss": "cce", "dim": 16}}
    assert wandb.calls == [("init", (), options), ("log", (FIGURES,), {"step": 3}), ("finish", (), {})]


def test_mlflow_is_told_and_closed_after_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = Service("mlflow")
    for name in ("start_run", "log_params", "log_metrics", "end_run"):
        monkeypatch.setattr(mlflow, name, mlflow.noted(name), raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)

    def stopped() -> None:
        with loggers.opened(loggers.parse_names("mlflow"), logged(tmp_path / "first")) as (one,):
            one.on_epoch_end(RECORD)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert mlflow.calls == [
        ("start_run", (), {"run_name": "first"}),
        ("log_params", ({"loss": "cce", "dim": 16},), {}),
        ("log_metrics", (FIGURES,), {"step": 3}),
        ("end_run", (), {}),
    ]


def test_a_service_that_refuses_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuses(**options: object) -> None:
        raise RuntimeError("nobody is logged in\nTraceback: long")

    wandb = Service("wandb")
    monkeypatch.setattr(wandb, "init", refuses, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with (
        pytest.raises(SrsplanError, match=r"--log wandb: RuntimeError: nobody is logged in$"),
        loggers.opened(["wandb"], logged(tmp_path)),
    ):
        pass


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    done = run("train", "--data", walks(tmp_path / "walks.csv"), *TINY, "--log", name, "-o", "out")
    assert done.code == 2
    assert f"--log {name} needs" in done.message
    assert "is not installed here" in done.message
    assert not (tmp_path / "out").exists()


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(InputError, match="unknown --log 'tensorbored'") as caught:
        loggers.parse_names("tensorbored")
    assert "tensorboard, wandb, mlflow" in caught.value.hint
    assert loggers.parse_names("") == ()


class Own(NoCallbacks):
    """A logger as a user would write it."""

    def __init__(self) -> None:
        self.told: list[EpochRecord] = []

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.told.append(record)


def test_loggers_of_ones_own_stand_beside_each_other(tmp_path: Path) -> None:
    one, other = Own(), Own()
    trainer(tmp_path / "out", settings=Settings(epochs=2)).run(Together(one, other))
    assert one.told == other.told
    assert [record.epoch for record in one.told] == [1, 2]
    assert all(record.gradient_norm is None and record.learning_rate == 0.001 for record in one.told)
    assert "train/gradient_norm" not in loggers.figures(one.told[0])
