"""Batches of interactions as the tensors that the model takes.

Shape letters: B sequences, L positions, M valid targets. Interactions number items from 1, tensors from 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from srsplan.models.data.batches import Batch
from srsplan.models.training.step import StepInputs


def spread_padding(items: NDArray[np.int64], catalog: int) -> NDArray[np.int64]:
    """Make items 0-based: 1 to V and 0 for padding [B, L] in, 0 to V - 1 out; padding becomes item after item.

    Which item stands at padding changes nothing (models/sasrec.py), but the lookup's gradient adds a row for every
    position: a million additions to one row would wait for each other.
    """
    return np.where(items > 0, items - 1, np.arange(items.size).reshape(items.shape) % catalog)


def step_inputs(batch: Batch, catalog: int, device: torch.device) -> StepInputs:
    """Put a training batch on the device; positions are found here, so that the device is never waited for."""
    positions = np.flatnonzero(batch.targets)
    arrays = (spread_padding(batch.inputs, catalog), positions, batch.targets.reshape(-1)[positions] - 1)
    inputs, places, targets = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    return StepInputs(inputs, places, targets)
