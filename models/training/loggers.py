"""Loggers: a run's figures for TensorBoard, Weights & Biases or MLflow, one point an epoch.

    train/loss, train/learning_rate, train/seconds      of the epoch
    train/gradient_norm                                 where gradients are clipped
    validation/NDCG_10 and so on                        where the epoch was evaluated

They listen as every callback does. A logger of one's own is an object with the methods of `Callbacks`, beside the
others in `Together`; one for another service is a `Writer` and a line of `SERVICES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from srsplan.models.errors import InputError, MissingExtra, SrsplanError
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.epochs_log import EpochRecord


class Writer(Protocol):
    """Where figures go."""

    def write(self, figures: Mapping[str, float], epoch: int) -> None:
        """Write figures by name for an epoch, counted from 1; what was written before a kill stays."""
        ...

    def close(self) -> None:
        """End the run at the service."""
        ...


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What a writer is told of the run that it writes for."""

    folder: Path
    """The run's folder, whose name is the run's."""
    first_epoch: int
    """The first epoch that will be trained: points of later ones, from before a kill, are written again."""
    options: Mapping[str, object]
    """The options of the run by name."""


class EpochLogger(NoCallbacks):
    """Writes every epoch's figures to one writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Write the epoch's point."""
        self._writer.write(figures(record), record.epoch)


def figures(record: EpochRecord) -> dict[str, float]:
    """Return the figures of an epoch by the names that loggers give them."""
    found = {"train/loss": record.loss, "train/learning_rate": record.learning_rate, "train/seconds": record.seconds}
    if record.gradient_norm is not None:
        found["train/gradient_norm"] = record.gradient_norm
    return found | {f"validation/{name}": value for name, value in record.metrics.items()}


class TensorBoard:
    """Event files in the run's folder, under tensorboard/: `tensorboard --logdir runs` shows all runs there."""

    def __init__(self, logged: Logged) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra

        self._events = SummaryWriter(str(logged.folder / "tensorboard"), purge_step=logged.first_epoch)

    def write(self, figures: Mapping[str, float], epoch: int) -> None:
        """Write the figures, and put them on the disk."""
        for name, value in figures.items():
            self._events.add_scalar(name, value, epoch)
        self._events.flush()

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases; project and entity are those of its environment variables."""

    def __init__(self, logged: Logged) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(name=logged.folder.name, dir=str(logged.folder), config=dict(logged.options))

    def write(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log the figures at the step of that number."""
        self._run.log(dict(figures), step=epoch)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow; server and experiment are those of its environment variables."""

    def __init__(self, logged: Logged) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.start_run(run_name=logged.folder.name)
        self._mlflow.log_params(dict(logged.options))

    def write(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log the figures at the step of that number."""
        self._mlflow.log_metrics(dict(figures), step=epoch)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


SERVICES: Mapping[str, Callable[[Logged], Writer]] = MappingProxyType(
    {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
)
"""Writers by the names that `--log` takes, which are those of their packages."""


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names in "tensorboard" or "tensorboard,wandb", each once.

    InputError for an unknown one, and where its package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in SERVICES:
            raise InputError(f"unknown --log {name[:80]!r}", f"loggers are {', '.join(SERVICES)}")
        _check_installed(name)
    return names


@contextmanager
def opened(names: Sequence[str], logged: Logged) -> Iterator[tuple[EpochLogger, ...]]:
    """Open a logger for each name, and close them in the end. SrsplanError where a service refuses."""
    with ExitStack() as stack:
        yield tuple(EpochLogger(stack.enter_context(closing(_writer(name, logged)))) for name in names)


def _writer(name: str, logged: Logged) -> Writer:
    try:
        return SERVICES[name](logged)
    except Exception as error:  # whatever a service's client raises: no server, nobody logged in
        said = str(error).strip().partition("\n")[0][:200]
        raise SrsplanError(
            f"--log {name}: {type(error).__name__}: {said}", f"set {name} up, or go on without --log: add --resume"
        ) from error


def _check_installed(name: str) -> None:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if name == "tensorboard":
            raise MissingExtra(name, "log", f"--log {name}") from error
        raise InputError(
            f"--log {name} needs the package {error.name or name}, which is not installed here", f"pip install {name}"
        ) from error
