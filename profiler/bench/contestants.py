"""srsplan's own implementations of the losses, and eager PyTorch, as contestants.

Shape letters: g tokens that share a set of negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels import eager
from srsplan.kernels.full_softmax import api as full_softmax
from srsplan.kernels.launches.sizes import refused_size
from srsplan.kernels.losses import CE, CE_NEG, Loss
from srsplan.kernels.sampled_softmax import api as sampled_softmax
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.profiler.bench.inputs import Inputs
from srsplan.profiler.bench.shapes import Shape

COMPARED = (CE, CE_NEG)
"""The functions that contestants compute: every other form equals one of them."""

Run = Callable[[Inputs, Shape], Tensor]
"""The mean loss of the inputs."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An implementation of a loss."""

    name: str
    loss: Loss
    """The function it computes, one of COMPARED."""
    tokens_per_set: int = 1
    run: Run | None = None
    """The function that runs it; None where it cannot run on this machine."""
    absent: str = ""
    """The reason why it cannot run, and the way out."""
    ours: bool = True
    """True where the ledger can say what memory it takes."""
    chunked: bool = False
    """True where it runs a chunk of tokens or sets at a time."""
    on_triton: bool = False
    """True for srsplan's Triton kernels, which do not take every size and type."""

    def absence(self, shape: Shape, dtype: torch.dtype) -> str:
        """Return the reason why it does not run on a shape in a type; "" where it does."""
        return self.absent or (refused_size(shape.dim, dtype == torch.float32) if self.on_triton else "")


def contestants(device: torch.device) -> list[Contestant]:
    """Return eager PyTorch and srsplan's own forms, those with the same function behind each other."""
    return [
        Contestant(name="eager ce", loss=CE, run=lambda i, s: eager.ce(i.hidden, i.table, i.targets)),
        Contestant(
            name="chunked cce", loss=CE, chunked=True, run=lambda i, s: full_softmax.cce(i.hidden, i.table, i.targets)
        ),
        _triton("Triton cce", CE, 1, device, lambda i, s: full_softmax.cce_triton(i.hidden, i.table, i.targets)),
        Contestant(name="eager ce-", loss=CE_NEG, run=lambda i, s: eager.ce_neg(*_sampled(i, s))),
        *(
            Contestant(name="chunked cce-", loss=CE_NEG, tokens_per_set=group, chunked=True, run=_chunked(group))
            for group in (1, 32)
        ),
        *(_triton("Triton cce-", CE_NEG, group, device, _sampled_triton(group)) for group in (1, 32, 64)),
        _triton("Triton cce-, repeatable", CE_NEG, 32, device, _sampled_triton(32, deterministic=True)),
        _triton("Triton cce-, no copy of the table", CE_NEG, 32, device, _sampled_triton(32, copy_table=False)),
    ]


def _triton(name: str, loss: Loss, group: int, device: torch.device, run: Run) -> Contestant:
    here = device.type in ("cuda", "meta")
    return Contestant(
        name=name, loss=loss, tokens_per_set=group, run=run if here else None, on_triton=True,
        absent="" if here else "runs on CUDA",
    )  # fmt: skip


def _sampled(inputs: Inputs, shape: Shape) -> tuple[Tensor, Tensor, Tensor, int]:
    return inputs.hidden, inputs.table, inputs.targets, shape.negatives


def _chunked(group: int) -> Run:
    sampling = Sampling(tokens_per_set=group)
    return lambda inputs, shape: sampled_softmax.cce_neg(*_sampled(inputs, shape), sampling=sampling)


def _sampled_triton(group: int, deterministic: bool = False, copy_table: bool = True) -> Run:
    sampling = Sampling(tokens_per_set=group)

    def run(inputs: Inputs, shape: Shape) -> Tensor:
        tensors = _sampled(inputs, shape)
        return sampled_softmax.cce_neg_triton(
            *tensors, sampling=sampling, deterministic=deterministic, copy_table=copy_table
        )

    return run
