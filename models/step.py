"""One training step: what `train` runs, what a probe measures and what the ledger replays, in one place.

Shape letters: B sequences, L positions, M valid targets, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srsplan.kernels.dispatch import LossCall
from srsplan.kernels.sampling import Sampling
from srsplan.models.config import Configuration
from srsplan.models.sasrec import SASRec

LEARNING_RATE = 1e-3
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepInputs:
    """A batch on the device: inputs int64 [B, L] 0-based, positions int64 [M] into B x L, targets int64 [M] 0-based."""

    inputs: Tensor
    positions: Tensor
    targets: Tensor


def no_phase(name: str) -> None:
    """Nobody listens to phases."""


class TrainingStep:
    """Model, optimizer and loss of a configuration, and the step that joins them."""

    def __init__(
        self,
        configuration: Configuration,
        device: torch.device,
        *,
        autocast: Autocast | None = None,
        learning_rate: float = LEARNING_RATE,
        seed: int = 0,
    ) -> None:
        """Build on `device`; `autocast` overrides torch's, for the ledger's meta tensors."""
        self.configuration, self.device = configuration, device
        with device:
            self.model = SASRec(configuration.catalog, configuration.seq_len, configuration.architecture)
        # fused: one kernel over all parameters and no temporaries of their size
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate, fused=True)
        dtype = DTYPES[configuration.precision]
        self.autocast = autocast or _autocast(device, dtype)
        scaled = configuration.precision == "fp16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=True) if scaled else None
        self.steps_done = 0
        self._loss = LossCall(
            loss=configuration.loss,
            negatives=configuration.negatives,
            sampling=Sampling(tokens_per_set=configuration.tokens_per_set, seed=seed),
            compute_dtype=dtype,
        )

    def loss(self, batch: StepInputs, phase: Callable[[str], None] = no_phase) -> Tensor:
        """Mean loss over the batch's valid targets; padding is never scored."""
        phase("forward")
        with self.autocast():
            hidden = self.model(batch.inputs)
            hidden = hidden.view(-1, hidden.shape[-1]).index_select(0, batch.positions)
            phase("loss")
            call = replace(self._loss, sampling=replace(self._loss.sampling, step=self.steps_done))
            return call(hidden, self.model.item_table, batch.targets)

    def run(self, batch: StepInputs, phase: Callable[[str], None] = no_phase) -> Tensor:
        """One optimizer step; the detached loss, not synchronised."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, phase)
        phase("backward")
        if self.scaler is None:
            loss.backward()
            phase("optimizer")
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            phase("optimizer")
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.steps_done += 1
        phase("idle")
        return loss.detach()


def _autocast(device: torch.device, dtype: torch.dtype) -> Autocast:
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)
