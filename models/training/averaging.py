"""An exponential moving average of a model's weights: what is evaluated and kept as best, where it is on.

    average <- d average + (1 - d) weights        after every step, d = min(decay, (1 + n) / (10 + n)) at the n-th

The decay grows so that an average does not remember the first weights for long: TensorFlow's ExponentialMovingAverage
with `num_updates` does the same. It is a function of the step's number, so that a checkpoint needs the average alone.

Memory: one more fp32 copy of every weight, made with the model and kept; an update takes no temporaries. It is in every
plan: a configuration's `ema` decides it.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from srsplan.models.sequence_model import SequenceModel


class WeightAverage:
    """The average of a model's weights, as a model of its own."""

    def __init__(self, model: SequenceModel, decay: float) -> None:
        """Begin with the model's present weights. `decay`, in (0, 1), is the share of the old average that is kept."""
        self.decay, self.model = decay, deepcopy(model).requires_grad_(False)
        self._averaged, self._weights = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1. Nothing is allocated, and no GPU waited for."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # torch's AveragedModel asks the device how many updates there were, and so would wait for a GPU in every step
        get_ema_multi_avg_fn(decay)(self._averaged, self._weights, step)
