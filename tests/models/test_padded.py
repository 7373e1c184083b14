"""Packed sequences against the same model on a padded rectangle: states, loss and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from padded_sasrec import padded_sasrec
from sequences import some_batch
from torch import Tensor

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.batches import Batch
from srsplan.models.sasrec import SASRec
from srsplan.models.training.inputs import step_inputs
from srsplan.models.training.step import TrainingStep

CPU = torch.device("cpu")
SIZES = Architecture(dim=32, blocks=2, heads=2, dropout=0.0)
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)
FILLER = 7
"""The item that stands at padding: any would do."""


def some_step(loss: str, recompute: bool = False) -> TrainingStep:
    """Weights that matter: those of the beginning are so small that a missing part would hardly be seen."""
    kind = LOSSES[loss]
    negatives = (kind.usual_negatives or 20) if kind.sampled else None
    configuration = Configuration(
        loss=loss, catalog=50, batch_size=9, seq_len=12, negatives=negatives, architecture=SIZES, precision="fp32",
        tokens_per_set=4 if kind.shares_negatives else 1,
    )  # fmt: skip
    step = TrainingStep(replace(configuration, recompute=recompute), CPU)
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in step.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return step


def rectangle(batch: Batch) -> tuple[Tensor, Tensor]:
    """Items [B, L], 0-based, and lengths [B]."""
    lengths = torch.from_numpy(batch.offsets).diff()
    rows = torch.full((len(batch), batch.longest), FILLER)
    rows[torch.arange(batch.longest) < lengths[:, None]] = torch.from_numpy(batch.items - 1)
    return rows, lengths


def gradients(step: TrainingStep, loss: Tensor) -> dict[str, Tensor]:
    step.model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in step.model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("loss", LOSSES)
@settings(deadline=None, max_examples=10)
@given(lengths=LENGTHS, seed=st.integers(0, 2**16))
def test_packed_is_padded(loss: str, recompute: bool, lengths: list[int], seed: int) -> None:
    step, batch = some_step(loss, recompute), some_batch(lengths, 50, seed)
    model, inputs = step.model.train(), step_inputs(batch, CPU)
    assert isinstance(model, SASRec)
    padded = padded_sasrec(model, *rectangle(batch))
    torch.testing.assert_close(model(inputs.sequences), padded, rtol=1e-5, atol=1e-5)

    found, expected = step.loss(inputs), step.loss_call.at_step(0)(padded, model.item_table, inputs.targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    packed_gradients, padded_gradients = gradients(step, found), gradients(step, expected)
    assert packed_gradients.keys() == padded_gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
