"""Checks of what the Triton kernels index with: they read and add to any row that they are told, also beyond the table.

Tensors of the CPU, as the interpreter has, are always looked at. On a GPU it would be waited for to see what it holds:
there SRSPLAN_DEBUG=1 asks for it, and nothing is checked while a CUDA graph is captured.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

VARIABLE = "SRSPLAN_DEBUG"


def check_targets(targets: Tensor, catalog: int, ignore_index: int) -> None:
    """Raise ValueError for targets [M] that are neither in [0, V) nor `ignore_index`, where they are looked at."""
    if looked_at(targets):
        _check("target", targets[targets != ignore_index], catalog)


def check_items(items: Tensor, catalog: int) -> None:
    """Raise ValueError for negatives that are not in [0, V), where they are looked at."""
    if looked_at(items):
        _check("negative", items, catalog)


def looked_at(tensor: Tensor) -> bool:
    """Tell whether the values of a tensor are looked at."""
    if tensor.device.type != "cuda":
        return tensor.device.type == "cpu"
    return os.environ.get(VARIABLE) == "1" and not torch.cuda.is_current_stream_capturing()


def _check(what: str, items: Tensor, catalog: int) -> None:
    outside = items[(items < 0) | (items >= catalog)]
    if len(outside):
        raise ValueError(f"{what} {int(outside[0])} is outside of the catalog's [0, {catalog})")
