"""A step in parts, with recomputed blocks, with another optimizer: the same step, at another price in memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from srsplan.kernels import Sampling, cce_neg, ce_neg
from srsplan.kernels.dispatch import LossCall
from srsplan.kernels.losses import LOSSES, SAMPLERS, Sampler
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.kernels.samplers.in_batch import in_batch
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.batches import Batch, cut
from srsplan.models.errors import InputError
from srsplan.models.training.inputs import step_inputs
from srsplan.models.training.step import StepSettings, TrainingStep
from srsplan.profiler.memory.simulate import simulate_step

CPU = torch.device("cpu")
SIZES = Architecture(dim=32, blocks=2, heads=2, dropout=0.0)
FULL = Configuration(loss="cce", catalog=97, batch_size=10, seq_len=7, architecture=SIZES, precision="fp32")


def some_batch(configuration: Configuration, seed: int = 3) -> Batch:
    """Rows of different lengths, items 1 to V."""
    draw = np.random.default_rng(seed)
    shape = configuration.batch_size, configuration.seq_len
    lengths = draw.integers(1, configuration.seq_len + 1, shape[0])[:, None]
    inputs, targets = (
        np.where(np.arange(shape[1]) < lengths, draw.integers(1, configuration.catalog + 1, shape), 0) for _ in "ab"
    )
    return Batch(inputs, targets)


def gradients(configuration: Configuration, batch: Batch, parts: int) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    step = TrainingStep(configuration, CPU, StepSettings(learning_rate=0.0))
    pieces = (step_inputs(part, configuration.catalog, CPU) for part in cut(batch, parts))
    loss = step.run_parts(pieces, int(np.count_nonzero(batch.targets)))
    return float(loss), {
        name: each.grad.clone() for name, each in step.model.named_parameters() if each.grad is not None
    }


@pytest.mark.parametrize(("loss", "parts"), [*product(["ce", "cce"], [2, 3, 7, 10])])
def test_parts_add_up_to_the_whole_batch(loss: str, parts: int) -> None:
    configuration = replace(FULL, loss=loss)
    batch = some_batch(configuration)
    whole_loss, whole = gradients(configuration, batch, 1)
    cut_loss, in_parts = gradients(replace(configuration, micro_batches=parts), batch, parts)
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    for name, gradient in whole.items():
        assert torch.allclose(in_parts[name], gradient, rtol=1e-4, atol=1e-6), name


def test_parts_and_steps_draw_different_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, call = [], LossCall.__call__

    def listening(self: LossCall, *tensors: torch.Tensor) -> torch.Tensor:
        drawn.append(self.options.sampling.step)
        return call(self, *tensors)

    monkeypatch.setattr(LossCall, "__call__", listening)
    configuration = replace(FULL, loss="ce-", negatives=5)
    step, batch = TrainingStep(configuration, CPU), some_batch(configuration)
    for _ in range(2):
        step.run_parts((step_inputs(part, configuration.catalog, CPU) for part in cut(batch, 3)), 30)
    assert len(drawn) == len(set(drawn)) == 6


@pytest.mark.parametrize("loss", ["ce-", "cce-"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_draws_by_its_sampler(loss: str, sampler: Sampler) -> None:
    """Its loss is that of the eager form with the same negatives."""
    configuration = replace(FULL, loss=loss, negatives=40, sampler=sampler)
    counts = np.arange(1, configuration.catalog + 1) ** 2
    torch.manual_seed(5)
    step = TrainingStep(configuration, CPU, StepSettings(popularity_exponent=0.5, seed=8), item_counts=counts)
    batch = step_inputs(some_batch(configuration), configuration.catalog, CPU)
    drawn_by = {
        "uniform": None,
        "popularity": popularity(counts, 0.5),
        "in-batch": in_batch(batch.targets, configuration.catalog),
    }[sampler]
    with torch.no_grad():
        hidden = step.model(batch.inputs).view(-1, SIZES.dim)[batch.positions]
        sampling = Sampling(tokens_per_set=1, seed=8)
        form = ce_neg if loss == "ce-" else cce_neg
        expected = form(hidden, step.model.item_table, batch.targets, 40, sampling=sampling, distribution=drawn_by)
    assert float(step.loss(batch).detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_bits(dropout: float) -> None:
    configuration = replace(FULL, architecture=replace(SIZES, dropout=dropout))
    batch = some_batch(configuration)
    loss, plain = gradients(configuration, batch, 1)
    again_loss, again = gradients(replace(configuration, recompute=True), batch, 1)
    assert again_loss == loss
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_recomputing_takes_less_memory(loss: str) -> None:
    """Of three blocks only their inputs are kept, and one block at a time: 40 bytes fewer per token and dimension."""
    negatives = LOSSES[loss].fixed_negatives or (64 if LOSSES[loss].sampled else None)
    configuration = Configuration(
        loss=loss, catalog=5_000, batch_size=64, seq_len=256, negatives=negatives, architecture=Architecture(blocks=3)
    )
    plain = simulate_step(configuration).trace.peak()
    again = simulate_step(replace(configuration, recompute=True)).trace.peak()
    assert plain.allocated_bytes - again.allocated_bytes > 40 * configuration.tokens * configuration.architecture.dim


def test_adamw_decays() -> None:
    batch = some_batch(FULL)
    inputs = step_inputs(batch, FULL.catalog, CPU)
    norms = {}
    for name in ("adam", "adamw"):
        torch.manual_seed(1)
        decay = 0.0 if name == "adam" else 0.9
        settings = StepSettings(optimizer=name, learning_rate=0.1, weight_decay=decay)  # type: ignore[arg-type]
        step = TrainingStep(FULL, CPU, settings)
        for _ in range(3):
            step.run(inputs)
        norms[name] = float(step.model.item_table.detach().norm())
    assert norms["adamw"] < 0.99 * norms["adam"]


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"micro_batches": 0}, "micro_batches 0"),
        ({"micro_batches": 11}, "micro_batches 11 are more than"),
        ({"recompute": 1}, "recompute 1"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], phrase: str) -> None:
    with pytest.raises(InputError, match=phrase):
        replace(FULL, **changes)
