"""The training loop: epochs of steps, validation by full ranking, early stopping, a checkpoint after every epoch."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from srsplan.models.config import Configuration
from srsplan.models.data.batches import Batch, TrainBatches, cut
from srsplan.models.data.splits import Holdout, Split
from srsplan.models.errors import DeviceOutOfMemory, InputError, SrsplanError
from srsplan.models.training import checkpoint
from srsplan.models.training.evaluation import Evaluation, Ranking, evaluate, subset
from srsplan.models.training.inputs import step_inputs
from srsplan.models.training.step import StepSettings, TrainingStep

EPOCHS_FILE = "epochs.jsonl"
VALIDATION_METRIC = "NDCG_10"
MAY_CHANGE = ("learning_rate", "precision", "weight_decay")
"""What a resumed run may do otherwise: the ways out of a loss that diverged."""


@dataclass(frozen=True, kw_only=True)
class Settings(StepSettings):
    """How long and how a configuration is trained."""

    epochs: int = 200
    """At most so many."""
    patience: int = 10
    """Evaluations without a better validation NDCG@10 before training ends."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    validation_users: int = 10_000
    """Validation ranks so many users, drawn once; the test ranks all."""
    evaluation_batch: int = 256
    """Users ranked at once."""


@dataclass(kw_only=True)
class Progress:
    """What a checkpoint remembers of the loop."""

    epoch: int = 0
    """Epochs done."""
    best_epoch: int = 0
    best: float = -1.0
    """The best validation NDCG@10 so far."""
    stale: int = 0
    """Evaluations since."""
    seconds: list[float] = field(default_factory=list)
    """Of every epoch's steps, evaluation excluded."""
    steps: int = 0
    micro_batches: int = 1
    """Into how many parts batches are cut: more than asked for where the GPU ran out of memory."""
    evaluation_batch: int = 0
    """Users ranked at once, fewer than asked for where the GPU ran out of memory; 0 before the first evaluation."""


class Observer(Protocol):
    """Who is told how it goes."""

    def epoch_begins(self, epoch: int, batches: int) -> None:
        """Epochs count from 1."""
        ...

    def batch_done(self) -> None:
        """One step."""
        ...

    def smaller(self, sentence: str) -> None:
        """Out of memory: what is cut smaller from here on."""
        ...

    def epoch_done(self, record: dict[str, Any]) -> None:
        """epoch, loss, seconds, and the validation metrics where it was evaluated."""
        ...


class Trainer:
    """Trains one configuration on one split, in one folder."""

    def __init__(self, step: TrainingStep, split: Split, settings: Settings, folder: Path) -> None:
        self.step, self.split, self.settings, self.folder = step, split, settings, folder
        self.progress = Progress(
            micro_batches=step.configuration.micro_batches, evaluation_batch=settings.evaluation_batch
        )
        self.changes: tuple[str, ...] = ()
        """What a resumed run does otherwise than before, in sentences."""
        configuration = step.configuration
        self._batches = TrainBatches(split.train, configuration.batch_size, configuration.seq_len, settings.seed)
        self._validation = subset(split.validation, settings.validation_users, settings.seed)

    def resume(self) -> None:
        """Continue after the last whole epoch; InputError where there is no checkpoint, or it is of another run."""
        self.changes = self._compared(checkpoint.read_state(self.folder))
        state = checkpoint.load_checkpoint(self.folder, self.step)
        asked = self.progress
        self.progress = Progress(**state["progress"])
        self.progress.micro_batches = max(asked.micro_batches, self.progress.micro_batches)

    def run(self, observer: Observer) -> Progress:
        """Train until patience or epochs run out; the best weights are in the model afterwards."""
        with out_of_memory_explained(self.step.configuration):
            while not self._finished():
                self._epoch(observer)
            if not self.progress.best_epoch:  # resumed with an end before the first evaluation
                self._evaluate(observer)
            checkpoint.load_best(self.folder, self.step)
        return self.progress

    def ranking(self, **changes: Any) -> Ranking:
        """How this run ranks."""
        users = self.progress.evaluation_batch or self.settings.evaluation_batch
        return Ranking(users=users, seq_len=self.step.configuration.seq_len, **changes)

    def ranked(self, holdout: Holdout, observer: Observer, **changes: Any) -> Evaluation:
        """Metrics of the users of a holdout; fewer of them at once where the GPU runs out of memory."""
        while True:
            ranking = self.ranking(**changes)
            try:
                return evaluate(self.step, self.split, holdout, ranking)
            except torch.cuda.OutOfMemoryError:
                if ranking.users == 1:
                    raise
            _give_back()
            self.progress.evaluation_batch = ranking.users // 2
            observer.smaller(
                f"the GPU ran out of memory in evaluation: {ranking.users // 2} users at once from here on"
            )

    def _finished(self) -> bool:
        return self.progress.epoch >= self.settings.epochs or self.progress.stale >= self.settings.patience

    def _epoch(self, observer: Observer) -> None:
        progress = self.progress
        observer.epoch_begins(progress.epoch + 1, len(self._batches))
        began = time.perf_counter()
        loss = self._train_epoch(observer)
        progress.seconds.append(time.perf_counter() - began)
        progress.epoch += 1
        progress.steps += len(self._batches)
        record: dict[str, Any] = {"epoch": progress.epoch, "loss": loss, "seconds": progress.seconds[-1]}
        if progress.epoch % self.settings.evaluate_every == 0 or progress.epoch == self.settings.epochs:
            record |= self._evaluate(observer)
        self._record(record)
        state = {"epoch": progress.epoch, "progress": asdict(progress), "run": self._identity()}
        checkpoint.save_checkpoint(self.folder, self.step, state)
        observer.epoch_done(record)

    def _train_epoch(self, observer: Observer) -> float:
        total: Tensor | None = None
        for batch in self._batches.epoch(self.progress.epoch):
            loss = self._step(batch, observer)
            total = loss if total is None else total + loss
            observer.batch_done()
        mean = float("nan") if total is None else float(total) / len(self._batches)
        if not mean < float("inf"):
            raise SrsplanError(
                f"the loss of epoch {self.progress.epoch + 1} is {mean}: training diverged",
                "lower --learning-rate, or use --precision bf16 or fp32; earlier epochs are saved",
            )
        return mean

    def _step(self, batch: Batch, observer: Observer) -> Tensor:
        """One step of the whole batch; in more parts where the GPU runs out of memory."""
        catalog, device, progress = self.step.configuration.catalog, self.step.device, self.progress
        while True:
            parts = (step_inputs(part, catalog, device) for part in cut(batch, progress.micro_batches))
            try:
                return self.step.run_parts(parts, int(np.count_nonzero(batch.targets)))
            except torch.cuda.OutOfMemoryError:
                if progress.micro_batches >= len(batch.inputs):
                    raise
            _give_back(self.step.optimizer)
            progress.micro_batches = min(2 * progress.micro_batches, len(batch.inputs))
            observer.smaller(
                f"the GPU ran out of memory: from here on every batch is cut into {progress.micro_batches} parts whose "
                f"gradients accumulate, at the same batch size {self.step.configuration.batch_size}"
            )

    def _evaluate(self, observer: Observer) -> dict[str, float]:
        self.step.optimizer.zero_grad(set_to_none=True)
        metrics = self.ranked(self._validation, observer, ks=(1, 5, 10, 20)).all
        progress = self.progress
        progress.stale += 1
        if metrics[VALIDATION_METRIC] > progress.best:
            progress.best, progress.best_epoch, progress.stale = metrics[VALIDATION_METRIC], progress.epoch, 0
            checkpoint.save_best(self.folder, self.step)
        return metrics

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        configuration = self.step.configuration.to_dict()
        sizes = configuration.pop("architecture")
        for name in ("valid_tokens", "micro_batches", "recompute"):  # what memory it takes, not what is computed
            del configuration[name]
        names = ["seed", "optimizer", "learning_rate", "weight_decay"]
        names += ["popularity_exponent"] * (configuration["sampler"] == "popularity")
        chosen = {name: getattr(self.settings, name) for name in names}
        return {**configuration, **sizes, **chosen, "data": _checksum(self.split)}

    def _compared(self, state: dict[str, Any]) -> tuple[str, ...]:
        """The allowed differences from the run that was saved; InputError for any other."""
        before, now = state.get("run", {}), self._identity()
        differing = [name for name, value in before.items() if now.get(name) != value]
        if "data" in differing:
            raise InputError(
                f"the run in {self.folder} was trained on other data, or on another split of them",
                "resume with the same --data, columns and --split, or start anew with --overwrite",
            )
        for name in differing:
            if name not in MAY_CHANGE:
                raise InputError(
                    f"the run in {self.folder} has {name} {before[name]}, not {now.get(name)}",
                    "resume with the same options, or start anew with --overwrite",
                )
        return tuple(f"{name} is {now[name]} from here on, it was {before[name]}" for name in differing)

    def _record(self, record: dict[str, Any]) -> None:
        """epochs.jsonl holds one line an epoch; a resumed run drops the lines that its checkpoint does not know."""
        path = self.folder / EPOCHS_FILE
        lines = path.read_text().splitlines()[: self.progress.epoch - 1] if path.exists() else []
        checkpoint.write_whole(path, "\n".join([*lines, json.dumps(record)]).encode() + b"\n")


def _give_back(optimizer: torch.optim.Optimizer | None = None) -> None:
    """What the failed attempt left behind."""
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _checksum(split: Split) -> str:
    """Of the sequences that are trained on and what is tested: equal for the same data split the same way."""
    found = 0
    for part in (split.train.offsets, split.train.items, split.validation.targets, split.test.targets):
        found = zlib.crc32(part.tobytes(), found)
    return f"{found:08x}"


@contextmanager
def out_of_memory_explained(configuration: Configuration) -> Iterator[None]:
    """CUDA's out-of-memory becomes ours in this one place, with the bytes."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        raise DeviceOutOfMemory(
            f"the GPU ran out of memory: {allocated:,} bytes allocated and {reserved:,} reserved at the peak, with "
            f"batch size {configuration.batch_size}, sequence length {configuration.seq_len} and negatives "
            f"{configuration.negatives}",
            "plan again with a smaller --budget, or take a smaller --batch-size, and start anew with --overwrite",
        ) from error
