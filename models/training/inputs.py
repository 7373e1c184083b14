"""Batches of interactions as the tensors that the model takes.

Shape letters: M tokens, T targets. Interactions number items from 1, tensors from 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srsplan.kernels.attention import pack
from srsplan.models.data.batches import Batch, Packed
from srsplan.models.sequence_model import PackedItems
from srsplan.models.training.step import StepInputs


def packed_items(sequences: Packed, device: torch.device, places: NDArray[np.int64] | None = None) -> PackedItems:
    """Put packed sequences on the device; hidden states are wanted of the tokens `places`, of all without."""
    items, positions = (_on(device, array) for array in (sequences.items - 1, sequences.positions))
    wanted = None if places is None else _on(device, places)
    return PackedItems(items, positions, pack(sequences.offsets, device), wanted)


def step_inputs(batch: Batch, device: torch.device) -> StepInputs:
    """Put a pass of a training batch on the device, which is never waited for."""
    return StepInputs(packed_items(batch, device, batch.places), targets_of(batch, device))


def targets_of(batch: Batch, device: torch.device) -> Tensor:
    """Put the targets of a batch on the device, int64 [T], 0-based."""
    return _on(device, batch.targets - 1)


def _on(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
