"""Which implementation is faster on a run's own shape: forward and backward of both, as the training step calls them.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from pydantic import ConfigDict
from torch import Tensor

from srsplan.kernels.dispatch import LossCall, LossOptions
from srsplan.kernels.losses import ADAPTIVE, CANDIDATES, CHUNKED, FROM_BATCH, IN_BATCH_SHARE, MIXED, TRITON
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.kernels.verification.cases import training_sampling
from srsplan.kernels.verification.compare import Instruments
from srsplan.kernels.verification.subject import RunShape, Subject

EXPONENT = 0.75
"""Of the popularity of items whose interactions fall off as 1 / rank: any would cost the same time."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of forward and backward; None where a form did not fit the card."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    triton_ms: float | None
    chunked_ms: float | None

    @property
    def triton_wins(self) -> bool:
        """Tell whether the kernels are faster, or the only form that ran."""
        return self.triton_ms is not None and (self.chunked_ms is None or self.triton_ms < self.chunked_ms)


def race(subject: Subject, shape: RunShape, device: torch.device, instruments: Instruments) -> Times:
    """Time both forms on random inputs of the run's shape; raises what they raise, but for memory that runs out."""
    return Times(
        triton_ms=_time(TRITON, subject, shape, device, instruments),
        chunked_ms=_time(CHUNKED, subject, shape, device, instruments),
    )


def _time(
    implementation: str, subject: Subject, shape: RunShape, device: torch.device, instruments: Instruments
) -> float | None:
    try:
        return instruments.timer(_Lap(implementation, subject, shape, device).run)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


class _Lap:
    """Inputs of the run's shape, and the loss over them: hidden states in fp32, as a norm leaves them."""

    def __init__(self, implementation: str, subject: Subject, shape: RunShape, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._hidden = torch.randn(shape.tokens, subject.dim, generator=generator, device=device).requires_grad_()
        table = torch.randn(shape.catalog, subject.dim, generator=generator, device=device) / subject.dim**0.5
        self._table = table.requires_grad_()
        self._targets = torch.randint(shape.catalog, (shape.tokens,), generator=generator, device=device)
        drawn_by = None
        if subject.sampler == "popularity":
            drawn_by = popularity(1e6 / torch.arange(1, shape.catalog + 1).double(), EXPONENT).to(device)
        negatives, sampling = shape.negatives, training_sampling(subject.tokens_per_set)
        if negatives is not None and subject.sampler in ADAPTIVE:
            negatives, sampling = min(CANDIDATES * negatives, shape.catalog), replace(sampling, hardest=negatives)
        options = LossOptions(
            negatives=negatives, sampling=sampling,
            compute_dtype=subject.torch_dtype, distribution=drawn_by, in_batch=subject.sampler in FROM_BATCH,
            in_batch_share=IN_BATCH_SHARE if subject.sampler in MIXED else None,
        )  # fmt: skip
        call = LossCall(loss=subject.kind, implementation=implementation, reason="timed", options=options)
        self._call = call.at(0, 0, shape.tokens, backward_scale=1.0)
        self._autocast = _autocast(subject, device)

    def run(self) -> Tensor:
        """Run forward and backward once; gradients are dropped before."""
        self._hidden.grad = self._table.grad = None
        with self._autocast:
            loss = self._call(self._hidden, self._table, self._targets)
        loss.backward()
        return loss.detach()


def _autocast(subject: Subject, device: torch.device) -> AbstractContextManager[object]:
    if not subject.sixteen_bit:
        return nullcontext()
    return torch.autocast(device.type, dtype=subject.torch_dtype)
