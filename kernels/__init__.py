"""Losses over large item catalogs as functions of tensors. Importing the package does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srsplan.kernels.chunked import cce, cce_neg
    from srsplan.kernels.eager import bce, ce, ce_neg
    from srsplan.kernels.samplers.sampling import Sampling

__all__ = ["Sampling", "bce", "cce", "cce_neg", "ce", "ce_neg"]

_HOME = {
    "bce": "eager",
    "ce": "eager",
    "ce_neg": "eager",
    "cce": "chunked",
    "cce_neg": "chunked",
    "Sampling": "samplers.sampling",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"srsplan.kernels.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
