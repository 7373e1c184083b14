"""One training step: what `train` runs, what a probe measures and what the ledger replays, in one place.

Shape letters: M tokens of a pass, T targets of it, N of its batch, V items, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.dispatch import LossCall, LossOptions, choose
from srsplan.kernels.losses import ADAPTIVE, CALIBRATION, IN_BATCH_SHARE, LOSSES, MIXED
from srsplan.kernels.samplers.alias_table import Distribution, popularity
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.models.config import Configuration
from srsplan.models.registry import build_model
from srsplan.models.sequence_model import Context, PackedItems, SequenceModel
from srsplan.models.training.averaging import WeightAverage

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""Fused: one kernel over all parameters, and no temporaries of their size as foreach has."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Options of a training step, beside its configuration."""

    optimizer: Literal["adam", "adamw"] = "adam"
    """Name of the optimizer; the paper's is Adam."""
    learning_rate: float = 1e-3
    """The optimizer's learning rate."""
    weight_decay: float = 0.0
    """Weight decay: decoupled from the gradient in AdamW, added to the gradient in Adam."""
    clip_norm: float | None = None
    """The largest global norm of a step's gradients: larger ones are scaled down to it. None clips nothing."""
    popularity_exponent: float = 0.75
    """The sampler "popularity" draws items in proportion to their interactions to this power."""
    seed: int = 42
    """Seed of the weights, the order of batches, dropout and negatives."""


@dataclass(frozen=True, eq=False)
class StepInputs:
    """A pass on the device: packed items [M], and the target of each wanted token, int64 [T] 0-based."""

    sequences: PackedItems
    targets: Tensor


def no_phase(name: str) -> None:
    """Do nothing, where nobody listens to phases."""


class TrainingStep:
    """Model, optimizer and loss of a configuration, and the step that joins them."""

    def __init__(
        self,
        configuration: Configuration,
        device: torch.device,
        settings: StepSettings = StepSettings(),
        *,
        autocast: Context | None = None,
        item_counts: NDArray[np.integer] | None = None,
        kernel_reason: str = "",
    ) -> None:
        """Build on `device`; `autocast` overrides torch's, for the ledger's meta tensors.

        `kernel_reason` is why the configuration has its kernel, where somebody found out.

        The sampler "popularity" draws by `item_counts` [V] and is a ValueError without them, except on meta tensors,
        where nothing is drawn.
        """
        self.configuration, self.device = configuration, device
        with device:
            self.model = build_model(configuration)
        parameters = self.model.parameters()
        self.optimizer = OPTIMIZERS[settings.optimizer](
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        dtype = DTYPES[configuration.precision]
        self.autocast = autocast or _autocast(device, dtype)
        self.average = None if configuration.ema is None else WeightAverage(self.model, configuration.ema)
        self.model.recompute = self.autocast if configuration.recompute else None
        scaled = configuration.precision == "fp16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=True) if scaled else None
        self.clip_norm = settings.clip_norm
        self.gradient_norm: Tensor | None = None
        """Global norm of the last step's gradients before they were clipped, fp32 []; None where nothing is clipped."""
        self.steps_done = 0
        options = LossOptions(
            negatives=configuration.drawn_negatives,
            sampling=_sampling(configuration, settings.seed),
            compute_dtype=dtype,
            in_batch=configuration.draws_from_batch,
            in_batch_share=_in_batch_share(configuration),
            calibration=CALIBRATION if configuration.calibration is None else configuration.calibration,
        )
        if configuration.sampler == "popularity":
            options = replace(options, distribution=self._distribution(item_counts, settings.popularity_exponent))
        kernel = configuration.kernel if LOSSES[configuration.loss].chunked else "auto"
        dim = configuration.architecture.dim
        self._loss = choose(configuration.loss, device, kernel, options, dim=dim, reason=kernel_reason)

    @property
    def loss_call(self) -> LossCall:
        """The loss as it runs, with its implementation and the reason for it."""
        return self._loss

    @property
    def evaluated(self) -> SequenceModel:
        """The model that is ranked and kept as best: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.model

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the steps from here on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def break_off(self) -> None:
        """Forget a step that ended with an error: its gradients, and that fp16's loss scale has left them already."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.scale(torch.zeros((), device=self.device))  # makes the scale where no step came so far
            self.scaler.update(self.scaler.get_scale())

    def _distribution(self, counts: NDArray[np.integer] | None, exponent: float) -> Distribution:
        catalog = self.configuration.catalog
        if self.device.type == "meta":
            kinds = (torch.float32, torch.int32, torch.float32)
            return Distribution(*(torch.empty(catalog, dtype=kind, device=self.device) for kind in kinds))
        if counts is None:
            raise ValueError("the sampler popularity needs item_counts")
        return popularity(counts, exponent).to(self.device)

    def loss(self, batch: StepInputs, phase: Callable[[str], None] = no_phase, draw: int | None = None) -> Tensor:
        """Return the mean loss over the targets of a batch in one pass. `draw` numbers the draw of negatives."""
        step = self.steps_done if draw is None else draw
        return self._mean_loss(batch, self._loss.at(step), None, phase)

    def _mean_loss(
        self, each: StepInputs, call: LossCall, drawn_from: InBatch | None, phase: Callable[[str], None]
    ) -> Tensor:
        phase("forward")
        with self.autocast():
            hidden = self.model(each.sequences)
            phase("loss")
            return call(hidden, self.model.item_table, each.targets, drawn_from)

    def run(self, batch: StepInputs, phase: Callable[[str], None] = no_phase) -> Tensor:
        """Make one optimizer step of a batch in one pass; returns the detached loss, which nobody has waited for."""
        return self.run_passes([batch], len(batch.targets), phase=phase)

    def run_passes(
        self,
        passes: Iterable[StepInputs],
        targets: int,
        batch_targets: Tensor | None = None,
        phase: Callable[[str], None] = no_phase,
        *,
        draw: int | None = None,
    ) -> Tensor:
        """Make one optimizer step of a batch of so many targets N, in passes.

        Their gradients accumulate: the step is that of the whole batch, however it is cut. Passes are taken one at a
        time, so that a generator need not hold them all on the device. `batch_targets`, int64 [N], are what the sampler
        draws from where that is the batch. `draw` numbers the draw of negatives, in the place of the step. Returns the
        detached mean loss over all targets; ValueError where there is no pass.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        drawn_from = None if batch_targets is None else self._loss.source(batch_targets, self.configuration.catalog)
        total: Tensor | None = None
        first, number = 0, self.steps_done if draw is None else draw
        for each in passes:
            share = len(each.targets) / targets
            call = self._loss.at(number, first, targets, backward_scale=self._incoming(share))
            loss = self._mean_loss(each, call, drawn_from, phase) * share
            phase("backward")
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total = loss.detach() if total is None else total + loss.detach()
            first += len(each.targets)
        if total is None:
            raise ValueError("a batch without passes")
        self._update(phase)
        return total

    def _incoming(self, share: float) -> float | Tensor:
        """Return the gradient that backward will hand to the loss of a pass with this share of the targets."""
        if self.scaler is None:
            return share
        scaled: Tensor = self.scaler.scale(torch.full((), share, device=self.device))
        return scaled

    def _update(self, phase: Callable[[str], None]) -> None:
        phase("optimizer")
        if self.clip_norm is not None:
            self.gradient_norm = self._clip(self.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.steps_done += 1
        if self.average is not None:
            self.average.update(self.steps_done)
        phase("idle")

    def _clip(self, largest: float) -> Tensor:
        """Scale the gradients down to a global norm of at most `largest`; return the norm that they had.

        fp16's gradients are divided by the loss scale first; where one overflowed, the scaler leaves the step out.
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest)


def _sampling(configuration: Configuration, seed: int) -> Sampling:
    """Return the settings that the configuration's negatives are drawn with."""
    hardest = configuration.negatives if configuration.sampler in ADAPTIVE else None
    return Sampling(tokens_per_set=configuration.tokens_per_set, seed=seed, hardest=hardest)


def _in_batch_share(configuration: Configuration) -> float | None:
    """Return the share of negatives that a mixture takes from the batch; None where nothing is mixed."""
    if configuration.sampler not in MIXED:
        return None
    return IN_BATCH_SHARE if configuration.in_batch_share is None else configuration.in_batch_share


def _autocast(device: torch.device, dtype: torch.dtype) -> Context:
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)
