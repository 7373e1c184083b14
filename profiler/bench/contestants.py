"""srsplan's own implementations of the losses, and eager PyTorch, as contestants: one entry of a list each.

Shape letters: g tokens that share a set of negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels import eager
from srsplan.kernels.full_softmax import api as full_softmax
from srsplan.kernels.launches.sizes import refused_size
from srsplan.kernels.losses import CE, CE_NEG, Loss
from srsplan.kernels.sampled_softmax import api as sampled_softmax
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.models.errors import InputError
from srsplan.profiler.bench.inputs import Inputs
from srsplan.profiler.bench.shapes import Shape

COMPARED = (CE, CE_NEG)
"""The functions that contestants compute: every other form equals one of them."""

PEERS_FILTER = 3e-5
"""The threshold that cut-cross-entropy 25.1.1 is shipped with for fp16: a 32nd of the type's epsilon."""

Run = Callable[[Inputs, Shape], Tensor]
"""The mean loss of the inputs."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An implementation of a loss."""

    name: str
    """Words without commas, so that a list of names can be given. With `tokens_per_set` it is nobody else's."""
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

    @property
    def label(self) -> str:
        """The name that screens show and that a user may give."""
        return label_of(self.name, self.loss, self.tokens_per_set)

    def absence(self, shape: Shape, dtype: torch.dtype) -> str:
        """Return the reason why it does not run on a shape in a type; "" where it does."""
        return self.absent or (refused_size(shape.dim, dtype == torch.float32) if self.on_triton else "")


def label_of(name: str, loss: Loss, tokens_per_set: int) -> str:
    """Return the name of a contestant, with the tokens of a set where it samples."""
    return f"{name} {tokens_per_set} a set" if loss.sampled else name


def contestants(device: torch.device) -> list[Contestant]:
    """Return eager PyTorch and srsplan's own forms, those with the same function behind each other."""
    return [
        Contestant(name="eager ce", loss=CE, run=lambda i, s: eager.ce(i.hidden, i.table, i.targets)),
        Contestant(
            name="chunked cce", loss=CE, chunked=True, run=lambda i, s: full_softmax.cce(i.hidden, i.table, i.targets)
        ),
        _triton("Triton cce", device),
        _triton("Triton cce at 3e-5", device, filter_eps=PEERS_FILTER),
        Contestant(name="eager ce-", loss=CE_NEG, run=lambda i, s: eager.ce_neg(*_sampled(i, s))),
        _chunked_sampled("chunked cce-", Sampling(tokens_per_set=1)),
        _chunked_sampled("chunked cce-", Sampling(tokens_per_set=32)),
        _triton_sampled("Triton cce-", device, Sampling(tokens_per_set=1)),
        _triton_sampled("Triton cce-", device, Sampling(tokens_per_set=32)),
        _triton_sampled("Triton cce-", device, Sampling(tokens_per_set=64)),
        _triton_sampled("Triton cce- no copy of the table", device, Sampling(tokens_per_set=32), copy_table=False),
        _triton_sampled("Triton cce- independent", device, Sampling(tokens_per_set=1, blocks=False)),
        _triton_sampled("Triton cce- independent", device, Sampling(tokens_per_set=32, blocks=False)),
        _triton_sampled(
            "Triton cce- independent repeatable", device, Sampling(tokens_per_set=32, blocks=False), deterministic=True
        ),
    ]


def chosen(pool: Sequence[Contestant], names: Sequence[str]) -> list[Contestant]:
    """Return the contestants that are named, in the order of the pool; all of them where no name is given.

    A whole name takes one contestant; otherwise words take all whose names have every one of them. InputError for a
    name that takes none.
    """
    taken = [each for name in names for each in _named(pool, name)]
    return [each for each in pool if each in taken or not names]


def _named(pool: Sequence[Contestant], name: str) -> list[Contestant]:
    words = name.lower().split()
    found = [each for each in pool if each.label.lower().split() == words]
    found = found or [each for each in pool if words and set(words) <= set(each.label.lower().split())]
    if not found:
        labels = ", ".join(each.label for each in pool)
        raise InputError(f"--only {name!r} names no contestant", f"there are {labels}; others' take part with --peers")
    return found


def _triton(name: str, device: torch.device, filter_eps: float | None = None) -> Contestant:
    """Make a contestant of the full softmax's kernels."""

    def run(inputs: Inputs, _: Shape) -> Tensor:
        return full_softmax.cce_triton(inputs.hidden, inputs.table, inputs.targets, filter_eps=filter_eps)

    return _on_triton(name, CE, 1, device, run)


def _triton_sampled(
    name: str, device: torch.device, sampling: Sampling, deterministic: bool = False, copy_table: bool = True
) -> Contestant:
    """Make a contestant of the sampled softmax's kernels."""

    def run(inputs: Inputs, shape: Shape) -> Tensor:
        return sampled_softmax.cce_neg_triton(
            *_sampled(inputs, shape), sampling=sampling, deterministic=deterministic, copy_table=copy_table
        )

    return _on_triton(name, CE_NEG, sampling.tokens_per_set, device, run)


def _on_triton(name: str, loss: Loss, group: int, device: torch.device, run: Run) -> Contestant:
    here = device.type in ("cuda", "meta")
    return Contestant(
        name=name, loss=loss, tokens_per_set=group, run=run if here else None, on_triton=True,
        absent="" if here else "runs on CUDA",
    )  # fmt: skip


def _chunked_sampled(name: str, sampling: Sampling) -> Contestant:
    """Make a contestant of the sampled softmax in plain PyTorch."""

    def run(inputs: Inputs, shape: Shape) -> Tensor:
        return sampled_softmax.cce_neg(*_sampled(inputs, shape), sampling=sampling)

    return Contestant(name=name, loss=CE_NEG, tokens_per_set=sampling.tokens_per_set, chunked=True, run=run)


def _sampled(inputs: Inputs, shape: Shape) -> tuple[Tensor, Tensor, Tensor, int]:
    return inputs.hidden, inputs.table, inputs.targets, shape.negatives
