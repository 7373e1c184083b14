"""The Triton losses inside torch.compile, activation checkpointing and DistributedDataParallel: the same gradients."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from srsplan.kernels import Sampling
from srsplan.kernels.full_softmax.api import cce_triton
from srsplan.kernels.sampled_softmax.api import cce_neg_triton

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SAMPLING = Sampling(tokens_per_set=16, seed=1, step=2)
LOSSES: dict[str, Loss] = {
    "cce": cce_triton,
    "cce-": lambda hidden, table, targets: cce_neg_triton(hidden, table, targets, 9, sampling=SAMPLING),
}


class Tiny(nn.Module):
    """A layer and a table, the loss inside."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.table = nn.Linear(16, 32), nn.Parameter(torch.randn(100, 32))
        self.loss = loss

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.layer(x), self.table, targets)


def gradients(model: nn.Module, run: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    loss = run(torch.randn(37, 16), torch.randint(100, (37,)))
    loss.backward()
    return [loss.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]


def plain(name: str) -> list[Tensor]:
    model = Tiny(LOSSES[name])
    return gradients(model, model)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) == 4 and all(
        torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_in_one_graph(name: str) -> None:
    model = Tiny(LOSSES[name])
    assert same(gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True)), plain(name))


@pytest.mark.parametrize("name", LOSSES)
def test_checkpointed(name: str) -> None:
    """The loss runs twice, and draws the same negatives both times."""
    model = Tiny(LOSSES[name])
    found = gradients(model, lambda x, targets: checkpoint(model, x, targets, use_reentrant=False))
    assert same(found, plain(name))


@pytest.mark.filterwarnings("ignore")  # of the process group
@pytest.mark.parametrize("name", LOSSES)
def test_data_parallel(name: str, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        model = Tiny(LOSSES[name])
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        assert same(gradients(model, wrapped), plain(name))
    finally:
        torch.distributed.destroy_process_group()
