"""Sums over the steps of an epoch that stay on the device, so that no step waits for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochMeans:
    """Means over the steps of one epoch."""

    loss: float
    """NaN where there was no step."""
    gradient_norm: float | None
    """Over the steps whose norm is finite: fp16's loss scaling leaves the others out. None where nothing is clipped."""


class EpochSums:
    """The losses and gradient norms of an epoch, added up: three scalars on the device at most."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._norms: Tensor | None = None
        self._finite: Tensor | None = None

    def add(self, loss: Tensor, norm: Tensor | None) -> None:
        """Add a step: its loss, and the norm of its gradients where they are clipped, both of shape []."""
        self._loss = loss if self._loss is None else self._loss + loss
        if norm is not None:
            finite = torch.isfinite(norm)
            norm = torch.where(finite, norm, 0.0)
            self._norms = norm if self._norms is None else self._norms + norm
            self._finite = finite.float() if self._finite is None else self._finite + finite

    def means(self, steps: int) -> EpochMeans:
        """Return the means over so many steps; waits for the device."""
        loss = float("nan") if self._loss is None else float(self._loss) / steps
        if self._norms is None or self._finite is None:
            return EpochMeans(loss, None)
        return EpochMeans(loss, float(self._norms) / max(1.0, float(self._finite)))
