"""A step in passes, with recomputed blocks, with another optimizer: the same step, at another price in memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sequences import on_cpu, some_lengths
from sequences import some_batch as random_batch
from torch import Tensor

from srsplan.kernels import Sampling, cce_neg, ce_neg
from srsplan.kernels.dispatch import LossCall
from srsplan.kernels.losses import ADAPTIVE, LOSSES, SAMPLERS, Sampler
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.kernels.samplers.in_batch import in_batch
from srsplan.kernels.samplers.mixed import mixed
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.batches import Batch, passes
from srsplan.models.data.masking import Masking
from srsplan.models.errors import InputError
from srsplan.models.training.inputs import step_inputs, targets_of
from srsplan.models.training.step import StepInputs, StepSettings, TrainingStep
from srsplan.profiler.memory.simulate import simulate_step

CPU = torch.device("cpu")
SIZES = Architecture(dim=32, blocks=2, heads=2, dropout=0.0)
FULL = Configuration(loss="cce", catalog=97, batch_size=10, seq_len=7, architecture=SIZES, precision="fp32")


COUNTS = np.arange(1, FULL.catalog + 1) ** 2

FORMS: list[Any] = [
    pytest.param({"loss": "ce"}, id="ce"),
    pytest.param({"loss": "cce"}, id="cce"),
    *(
        pytest.param(
            {"loss": loss, "sampler": sampler, "negatives": negatives, "tokens_per_set": group},
            id=f"{loss} {sampler} {group}",
        )
        for loss, negatives, group in (("ce-", 20, 1), ("cce-", 20, 1), ("cce-", 20, 4), ("bce", 1, 1))
        for sampler in LOSSES[loss].samplers
    ),
    pytest.param({"loss": "cce", "model": "esasrec"}, id="esasrec"),
    pytest.param({"loss": "cce", "model": "bert4rec", "mask_share": 0.4}, id="bert4rec"),
    pytest.param(
        {"loss": "cce-", "model": "bert4rec", "negatives": 20, "tokens_per_set": 4, "sampler": "in-batch"},
        id="bert4rec in-batch",
    ),
]  # fmt: skip
"""Every loss, with every sampler that it has, and every model."""


def some_batch(lengths: list[int], configuration: Configuration, seed: int) -> Batch:
    """Random items, and the targets that the model is trained on."""
    found, masking = random_batch(lengths, configuration.catalog, seed), Masking.of(configuration)
    return found if masking is None else masking.batch(found, np.random.default_rng(seed))


def batch_of(configuration: Configuration, seed: int = 3) -> Batch:
    """Sequences of different lengths."""
    lengths = some_lengths(configuration.batch_size, configuration.seq_len, seed)
    return some_batch(lengths, configuration, seed)


def inputs_of(configuration: Configuration, seed: int = 3) -> StepInputs:
    return step_inputs(batch_of(configuration, seed), CPU)


def gradients(configuration: Configuration, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first step, which changes no weight."""
    torch.manual_seed(5)
    step = TrainingStep(configuration, CPU, StepSettings(learning_rate=0.0), item_counts=COUNTS)
    cut = (step_inputs(each, CPU) for each in passes(batch, configuration.tokens, configuration.sequences))
    loss = step.run_passes(cut, len(batch.targets), targets_of(batch, CPU))
    return float(loss), {
        name: each.grad.clone() for name, each in step.model.named_parameters() if each.grad is not None
    }


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=10, phases=[Phase.explicit, Phase.generate])  # a step is too slow to shrink by
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=10),
    tokens=st.integers(7, 40),
    sequences=st.integers(1, 10),
    seed=st.integers(0, 2**16),
)
def test_passes_add_up_to_the_whole_batch(
    form: dict[str, Any], lengths: list[int], tokens: int, sequences: int, seed: int
) -> None:
    """Loss and gradients of a batch are the same, however it is cut."""
    configuration = replace(FULL, **form)
    batch = some_batch(lengths, configuration, seed)
    whole_loss, whole = gradients(configuration, batch)
    cut_loss, in_passes = gradients(replace(configuration, pass_tokens=tokens, pass_sequences=sequences), batch)
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    assert in_passes.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(in_passes[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("cuts", [("one pass", 1), ("many passes", 3)])
def test_the_loss_of_a_step_is_the_mean_over_its_targets(cuts: tuple[str, int]) -> None:
    """And not the mean over passes, whose sizes differ."""
    step, batch = TrainingStep(FULL, CPU, StepSettings(learning_rate=0.0)), batch_of(FULL)
    with torch.no_grad():
        hidden = step.model(step_inputs(batch, CPU).sequences)
        expected = torch.nn.functional.cross_entropy(hidden @ step.model.item_table.T, targets_of(batch, CPU))
    cut = (step_inputs(each, CPU) for each in passes(batch, 1000, -(-len(batch) // cuts[1])))
    assert float(step.run_passes(cut, len(batch.items))) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_without_passes_is_refused() -> None:
    with pytest.raises(ValueError, match="without passes"):
        TrainingStep(FULL, CPU).run_passes([], 3)


def test_passes_and_steps_draw_different_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, at = [], LossCall.at

    def listening(self: LossCall, step: int, first: int, *rest: Any, **options: Any) -> LossCall:
        drawn.append((step, first))
        return at(self, step, first, *rest, **options)

    monkeypatch.setattr(LossCall, "at", listening)
    configuration = replace(FULL, loss="ce-", negatives=5)
    step, batch = TrainingStep(configuration, CPU), batch_of(configuration)
    for _ in range(2):
        step.run_passes((step_inputs(each, CPU) for each in passes(batch, 1000, 4)), len(batch.items))
    assert len(drawn) == len(set(drawn)) == 6


@pytest.mark.parametrize("loss", ["ce-", "cce-"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_draws_by_its_sampler(loss: str, sampler: Sampler) -> None:
    """Its loss is that of the eager form with the same negatives."""
    configuration = replace(FULL, loss=loss, negatives=40, sampler=sampler)
    counts = np.arange(1, configuration.catalog + 1) ** 2
    torch.manual_seed(5)
    step = TrainingStep(configuration, CPU, StepSettings(popularity_exponent=0.5, seed=8), item_counts=counts)
    batch = inputs_of(configuration)
    drawn_by = {
        "uniform": None,
        "popularity": popularity(counts, 0.5),
        "in-batch": in_batch(batch.targets, configuration.catalog),
        "mixed": mixed(batch.targets, configuration.catalog, 40, 0.5),
        "adaptive": None,
        "adaptive-mixed": mixed(batch.targets, configuration.catalog, 97, 0.5),
    }[sampler]
    with torch.no_grad():
        hidden = step.model(batch.sequences)
        drawn, hardest = (97, 40) if sampler in ADAPTIVE else (40, None)  # four for each are more than the catalog
        sampling = Sampling(tokens_per_set=1, seed=8, hardest=hardest)
        form = ce_neg if loss == "ce-" else cce_neg
        expected = form(hidden, step.model.item_table, batch.targets, drawn, sampling=sampling, distribution=drawn_by)
    assert float(step.loss(batch).detach()) == pytest.approx(float(expected), rel=1e-6)


def one_target() -> StepInputs:
    """One sequence of one item, whose target is item 1."""
    return StepInputs(on_cpu([[0]]), torch.tensor([1]))


def scores(step: TrainingStep, batch: StepInputs) -> Tensor:
    """The scores of every item for that target, float64 [V]."""
    with torch.no_grad():
        hidden: Tensor = step.model(batch.sequences)[0]
        return step.model.item_table.double() @ hidden.double()


def drawn_losses(step: TrainingStep, batch: StepInputs, draws: int) -> list[float]:
    with torch.no_grad():
        return [float(step.loss(batch, draw=draw)) for draw in range(draws)]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_popularity_draws_by_counts_to_the_power_of_the_exponent(exponent: float) -> None:
    """With one negative the loss tells which item was drawn: each as often as its share, and worth 1 / share."""
    counts = np.array([1, 4, 16, 64, 256])
    configuration = replace(FULL, loss="ce-", catalog=5, negatives=1, sampler="popularity")
    step = TrainingStep(configuration, CPU, StepSettings(popularity_exponent=exponent), item_counts=counts)
    batch, shares = one_target(), torch.from_numpy(counts**exponent / (counts**exponent).sum())
    score = scores(step, batch)
    worth = torch.log((score.exp() * (1 - shares[1]) / shares) + score[1].exp()) - score[1]
    worth[1] = 0.0  # the target itself is no negative
    found = torch.tensor(drawn_losses(step, batch, 800), dtype=torch.float64)
    distance, item = (found[:, None] - worth).abs().min(1)
    assert float(distance.max()) < 1e-5
    drawn = torch.bincount(item, minlength=5) / len(item)
    assert drawn.tolist() == pytest.approx(shares.tolist(), abs=0.07)


def test_popularity_without_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="needs item_counts"):
        TrainingStep(replace(FULL, loss="ce-", negatives=5, sampler="popularity"), CPU)


def test_bce_skips_a_negative_that_is_the_target() -> None:
    """Of two items half of the negatives are the target: they count for nothing, the other is pushed down."""
    configuration = replace(FULL, loss="bce", catalog=2, negatives=1)
    step = TrainingStep(configuration, CPU)
    batch = one_target()
    other, target = scores(step, batch).tolist()
    alone = math.log1p(math.exp(-target))
    found = sorted(drawn_losses(step, batch, 40))
    assert 8 <= sum(value == pytest.approx(alone, abs=1e-6) for value in found) <= 32
    for value in found:
        assert value == pytest.approx(alone, abs=1e-6) or value == pytest.approx(
            alone + math.log1p(math.exp(other)), abs=1e-6
        )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_bits(dropout: float) -> None:
    configuration = replace(FULL, architecture=replace(SIZES, dropout=dropout))
    batch = batch_of(configuration)
    loss, plain = gradients(configuration, batch)
    again_loss, again = gradients(replace(configuration, recompute=True), batch)
    assert again_loss == loss
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_recomputes_its_blocks_where_it_is_told_to(recompute: bool) -> None:
    configuration = replace(FULL, recompute=recompute)
    step, runs = TrainingStep(configuration, CPU), []
    for block in step.model.get_submodule("blocks").children():
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    step.run(inputs_of(configuration))
    assert len(runs) == SIZES.blocks * (2 if recompute else 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_recomputing_takes_less_memory(loss: str) -> None:
    """Of three blocks only their inputs are kept, and one block at a time: 40 bytes fewer per token and dimension."""
    negatives = LOSSES[loss].usual_negatives or (64 if LOSSES[loss].sampled else None)
    configuration = Configuration(
        loss=loss, catalog=5_000, batch_size=64, seq_len=256, negatives=negatives, architecture=Architecture(blocks=3)
    )
    plain = simulate_step(configuration).trace.peak()
    again = simulate_step(replace(configuration, recompute=True)).trace.peak()
    assert plain.allocated_bytes - again.allocated_bytes > 40 * configuration.tokens * configuration.architecture.dim


def test_adamw_decays() -> None:
    """Beside Adam's step every weight shrinks by learning rate x decay, however large its gradient."""
    inputs, weights = inputs_of(FULL), {}
    for options in (
        StepSettings(learning_rate=0.1),
        StepSettings(optimizer="adamw", learning_rate=0.1, weight_decay=0.5),
    ):
        torch.manual_seed(1)
        step = TrainingStep(FULL, CPU, options)
        before = step.model.item_table.detach().clone()
        step.run(inputs)
        weights[options.optimizer] = step.model.item_table.detach()
    torch.testing.assert_close(weights["adamw"], weights["adam"] - 0.05 * before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"pass_tokens": 0}, "pass_tokens 0"),
        ({"pass_tokens": 6}, "pass_tokens 6 is smaller than one sequence of seq_len 7"),
        ({"pass_sequences": 0}, "pass_sequences 0"),
        ({"recompute": 1}, "recompute 1"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], phrase: str) -> None:
    with pytest.raises(InputError, match=phrase):
        replace(FULL, **changes)
