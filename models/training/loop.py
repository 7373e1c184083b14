"""The training loop: epochs of steps, validation by full ranking, early stopping, a checkpoint after every epoch."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from srsplan.models.data.batches import TrainBatches
from srsplan.models.data.masking import Masking
from srsplan.models.data.splits import Holdout, Split
from srsplan.models.errors import SrsplanError
from srsplan.models.training import identity, retries
from srsplan.models.training.callbacks import Callbacks
from srsplan.models.training.checkpoint import Checkpoints, State
from srsplan.models.training.epoch_sums import EpochMeans, EpochSums
from srsplan.models.training.epochs_log import EpochRecord, EpochsLog
from srsplan.models.training.evaluation import Evaluation, Ranking, evaluate, subset
from srsplan.models.training.progress import Progress
from srsplan.models.training.settings import Settings
from srsplan.models.training.step import TrainingStep

VALIDATION_METRIC = "NDCG_10"
VALIDATION_RANKS = (1, 5, 10, 20)


class Trainer:
    """Trains one configuration on one split, in one folder."""

    def __init__(self, step: TrainingStep, split: Split, settings: Settings, folder: Path) -> None:
        self.step, self.split, self.settings, self.folder = step, split, settings, folder
        self.progress = Progress(pass_tokens=step.configuration.tokens, evaluation_batch=settings.evaluation_batch)
        self.changes: tuple[str, ...] = ()
        """Sentences that say which options a resumed run has changed."""
        configuration = step.configuration
        self.batches = TrainBatches(
            split.train, configuration.batch_size, configuration.seq_len, settings.seed,
            osf=settings.osf, masking=Masking.of(configuration),
        )  # fmt: skip
        self._rates = settings.learning_rates(len(self.batches))
        self._validation = subset(split.validation, settings.validation_users, settings.seed)
        self._identity = identity.identity(configuration, settings, split)
        self._checkpoints, self._log = Checkpoints(folder), EpochsLog(folder)

    def resume(self, state: State) -> None:
        """Continue after the last whole epoch; InputError where the checkpoint is damaged, or of another run."""
        changes = identity.changes(state.run, self._identity, self.folder)
        self._log.check(state.progress.epoch)
        self._checkpoints.load(self.step, state)
        tokens = min(self.progress.pass_tokens, state.progress.pass_tokens)
        self.changes, self.progress = changes, replace(state.progress, pass_tokens=tokens)

    def run(self, callbacks: Callbacks) -> Progress:
        """Train until patience or epochs run out; the best weights are in the model afterwards."""
        with retries.out_of_memory_explained(self.step.configuration):
            while not self._finished():
                self._epoch(callbacks)
            if not self.progress.best_epoch:  # resumed with an end before the first evaluation
                self._validate(callbacks)
                self._save(is_best=True)
            self._checkpoints.load_best(self.step)
        return self.progress

    def ranking(self, ks: tuple[int, ...] | None = None) -> Ranking:
        """Describe how this run ranks: as many users at once as fit, at the ranks `ks` or at all that are reported."""
        ranking = Ranking(
            users=self.progress.evaluation_batch,
            tokens=self.progress.pass_tokens,
            seq_len=self.step.configuration.seq_len,
            masking=Masking.of(self.step.configuration),
            filter_seen=not self.settings.keep_seen,
        )
        return ranking if ks is None else replace(ranking, ks=ks)

    def ranked(self, holdout: Holdout, callbacks: Callbacks, ks: tuple[int, ...] | None = None) -> Evaluation:
        """Return the metrics of the users of a holdout; fewer of them at once where the GPU runs out of memory."""
        return retries.with_fewer_users(
            lambda _: evaluate(self.step, self.split, holdout, self.ranking(ks)), self.progress, callbacks
        )

    def _finished(self) -> bool:
        return self.progress.epoch >= self.settings.epochs or self.progress.stale >= self.settings.patience

    def _epoch(self, callbacks: Callbacks) -> None:
        progress = self.progress
        callbacks.on_epoch_start(progress.epoch + 1, len(self.batches))
        began = time.perf_counter()
        trained = self._train_epoch(callbacks)
        progress.seconds.append(time.perf_counter() - began)
        progress.epoch += 1
        progress.steps += len(self.batches)
        metrics: dict[str, float] = {}
        is_best = False
        if progress.epoch % self.settings.evaluate_every == 0 or progress.epoch == self.settings.epochs:
            metrics, is_best = self._validate(callbacks)
        record = EpochRecord(
            epoch=progress.epoch,
            loss=trained.loss,
            seconds=progress.seconds[-1],
            learning_rate=self._rates.at(self.step.steps_done - 1),
            gradient_norm=trained.gradient_norm,
            metrics=metrics,
        )
        self._log.append(record)
        self._save(is_best=is_best)
        callbacks.on_epoch_end(record)

    def _train_epoch(self, callbacks: Callbacks) -> EpochMeans:
        """Take the steps of one epoch; return the means over its batches. SrsplanError where training diverged."""
        sums = EpochSums()
        for batch in self.batches.epoch(self.progress.epoch):
            self.step.set_learning_rate(self._rates.at(self.step.steps_done))
            sums.add(retries.train_batch(self.step, batch, self.progress, callbacks), self.step.gradient_norm)
            callbacks.on_batch_end()
        means = sums.means(len(self.batches))
        if not means.loss < float("inf"):
            raise SrsplanError(
                f"the loss of epoch {self.progress.epoch + 1} is {means.loss}: training diverged",
                "lower --learning-rate, add --clip-norm 1 or --warmup-steps 100, or use --precision bf16 or fp32; "
                "earlier epochs are saved",
            )
        return means

    def _validate(self, callbacks: Callbacks) -> tuple[dict[str, float], bool]:
        """Return the metrics of the validation users, and whether the epoch is the best so far."""
        self.step.optimizer.zero_grad(set_to_none=True)
        metrics = self.ranked(self._validation, callbacks, VALIDATION_RANKS).all
        return metrics, self.progress.improves(metrics[VALIDATION_METRIC])

    def _save(self, *, is_best: bool) -> None:
        self._checkpoints.save(self.step, self.progress, self._identity, is_best=is_best)
