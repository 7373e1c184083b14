"""Losses over large item catalogs as functions of tensors. Importing the package does not import torch.

losses.py          the registry: what each loss is called and what it can do
dispatch.py        which implementation of a loss runs, as a callable that says so
eager.py           the losses in plain PyTorch: the oracle of all others
bucket_softmax.py  `sce`: buckets of tokens and of items
full_softmax/      `cce`: chunked in PyTorch, and on Triton
sampled_softmax/   `cce_neg`: the same pair
samplers/          where negatives come from
launches/          how the Triton kernels are launched
verification/      whether they are right on a card, and faster than the chunked forms
lookup.py          the embedding of a table that the loss uses as well
debug.py           checks of what the Triton kernels index with
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srsplan.kernels.bucket_softmax import sce
    from srsplan.kernels.eager import bce, ce, ce_neg, gbce
    from srsplan.kernels.full_softmax.api import cce
    from srsplan.kernels.sampled_softmax.api import cce_neg
    from srsplan.kernels.samplers.sampling import Sampling

__all__ = ["Sampling", "bce", "cce", "cce_neg", "ce", "ce_neg", "gbce", "sce"]

_HOME = {
    "bce": "eager",
    "ce": "eager",
    "ce_neg": "eager",
    "gbce": "eager",
    "sce": "bucket_softmax",
    "cce": "full_softmax.api",
    "cce_neg": "sampled_softmax.api",
    "Sampling": "samplers.sampling",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"srsplan.kernels.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
