"""Averages of the weights and clipped gradients, against float64; where the average is used; what both take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_steps import random_steps
from safetensors.torch import load_file
from sequences import some_batch, some_lengths
from small_runs import CPU, ONE, TINY, resume, trainer
from torch import Tensor

from srsplan.models.config import Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.models.training.averaging import WeightAverage
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.inputs import step_inputs
from srsplan.models.training.progress import Progress
from srsplan.models.training.retries import train_batch
from srsplan.models.training.step import StepSettings, TrainingStep
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.memory.simulate import EvaluationSizes, simulate_evaluation, simulate_step

MODEL = MemoryModel()


def after_steps(configuration: Configuration, settings: StepSettings, steps: int) -> tuple[TrainingStep, list[Any]]:
    """A step after so many batches, and its weights before the first and after each, float64."""
    torch.manual_seed(5)
    step = TrainingStep(configuration, CPU, settings)
    found = [{name: each.detach().double() for name, each in step.model.named_parameters()}]
    for seed in range(steps):
        lengths = some_lengths(configuration.batch_size, configuration.seq_len, seed)
        step.run(step_inputs(some_batch(lengths, configuration.catalog, seed), CPU))
        found.append({name: each.detach().double() for name, each in step.model.named_parameters()})
    return step, found


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_an_average_is_the_exponential_one_of_all_weights_so_far(decay: float) -> None:
    """With a decay that grows from 2 / 11 on, so that the first weights are soon forgotten."""
    step, weights = after_steps(replace(TINY, ema=decay), StepSettings(learning_rate=0.05), 12)
    assert step.average is not None
    expected = weights[0]
    for number, each in enumerate(weights[1:], start=1):
        kept = min(decay, (1 + number) / (10 + number))
        expected = {name: kept * expected[name] + (1 - kept) * each[name] for name in expected}
    for name, parameter in step.average.model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not parameter.requires_grad


def test_an_average_changes_nothing_of_the_training() -> None:
    plain, averaged = (after_steps(replace(TINY, ema=ema), StepSettings(), 3)[1][-1] for ema in (None, 0.9))
    assert all(torch.equal(plain[name], averaged[name]) for name in plain)


def test_the_average_is_ranked_kept_as_best_and_loaded(tmp_path: Path) -> None:
    """Validation and best.safetensors are of the average; the checkpoint holds both."""
    run = trainer(tmp_path / "out", replace(TINY, ema=0.9), replace(ONE, learning_rate=0.02))
    run.run(NoCallbacks())
    saved, best = (load_file(tmp_path / "out" / name) for name in ("weights-1.safetensors", "best.safetensors"))
    for name, weight in best.items():
        assert torch.equal(weight, saved[f"average.{name}"])
        assert torch.equal(weight, run.step.model.state_dict()[name])
        assert torch.equal(weight, run.step.evaluated.state_dict()[name])
    assert any(not torch.equal(best[name], saved[f"model.{name}"]) for name in best)
    logged = run.progress.best
    again = resume(trainer(tmp_path / "out", replace(TINY, ema=0.9), replace(ONE, learning_rate=0.02)))
    assert again.ranked(again.split.validation, NoCallbacks()).all["NDCG_10"] == logged


@pytest.mark.parametrize("ema", [0, 1, 1.5, -0.1, float("nan"), True, "0.9"])
def test_what_is_no_decay_is_refused(ema: Any) -> None:
    with pytest.raises(InputError, match="is no decay between 0 and 1"):
        replace(TINY, ema=ema)


@pytest.mark.parametrize("largest", [0.05, 1e6])
def test_clipped_gradients_have_at_most_the_norm_and_the_same_direction(largest: float) -> None:
    """The norm that is reported is that before, in float64; gradients below the limit stay as they are."""
    batch = step_inputs(some_batch([5, 3, 8], TINY.catalog, 1), CPU)

    def gradients(clip_norm: float | None) -> tuple[Tensor, Tensor | None]:
        torch.manual_seed(5)
        step = TrainingStep(TINY, CPU, StepSettings(clip_norm=clip_norm))
        step.run(batch)
        found = [each.grad.double().flatten() for each in step.model.parameters() if each.grad is not None]
        return torch.cat(found), step.gradient_norm

    (whole, nothing), (clipped, norm) = gradients(None), gradients(largest)
    assert nothing is None
    assert norm is not None
    assert float(norm) == pytest.approx(float(whole.norm()), rel=1e-5)
    torch.testing.assert_close(clipped, whole * min(1.0, largest / float(whole.norm())), rtol=1e-4, atol=1e-9)


def test_scaled_gradients_are_unscaled_before_they_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's loss scale of 65,536 would clip everything away; a step whose norm overflows is left out."""
    batch = step_inputs(some_batch([5, 3, 8], TINY.catalog, 1), CPU)

    def trained(scale: float | None) -> tuple[list[Tensor], float]:
        torch.manual_seed(5)
        step = TrainingStep(TINY, CPU, StepSettings(clip_norm=0.05))
        if scale is not None:
            step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        step.run(batch)
        assert step.gradient_norm is not None
        return [each.detach().clone() for each in step.model.parameters()], float(step.gradient_norm)

    plain, scaled, overflowed = trained(None), trained(65536.0), trained(3e38)
    assert scaled[1] == pytest.approx(plain[1], rel=1e-5)
    for one, other in zip(plain[0], scaled[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.manual_seed(5)
    first = [each.detach() for each in TrainingStep(TINY, CPU).model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(first, overflowed[0], strict=True))


def test_a_clipped_step_that_ran_out_of_memory_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between unscaling and the optimizer's first moments: the second attempt unscales its own gradients."""
    batch = some_batch([5, 3, 8], TINY.catalog, 1)

    def trained(fails: bool) -> list[Tensor]:
        torch.manual_seed(5)
        configuration = replace(TINY, architecture=replace(TINY.architecture, dropout=0.0))
        step = TrainingStep(configuration, CPU, StepSettings(clip_norm=0.05))
        step.scaler, inner = torch.amp.GradScaler("cpu", init_scale=65536.0), step.optimizer.step

        def once(*values: Any, **options: Any) -> Any:
            monkeypatch.setattr(step.optimizer, "step", inner)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        if fails:
            monkeypatch.setattr(step.optimizer, "step", once)
        train_batch(step, batch, Progress(pass_tokens=configuration.tokens), NoCallbacks())
        return [each.detach() for each in step.model.parameters()]

    for one, other in zip(trained(False), trained(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


TENSORS_OF_TWO_BLOCKS = 28
FORMS: list[tuple[str, Precision]] = [("ce", "fp16"), ("cce", "fp32"), ("cce-", "bf16"), ("bce", "fp16")]


@pytest.mark.parametrize(("loss", "precision"), FORMS)
def test_the_memory_of_an_average_is_in_the_plan_to_the_byte(loss: str, precision: Precision) -> None:
    """One more copy of every weight in a step, in evaluation and in what is reserved: as the ledger has it."""
    for plain in random_steps(loss, precision, 2, 1, seed=6, options=True):
        averaged = replace(plain, ema=0.999)
        found = MODEL.allocated_sizes([averaged])[0]
        assert found == simulate_step(averaged).allocated_bytes
        weights = found - simulate_step(plain).allocated_bytes
        assert MODEL.breakdown(averaged)["average"] == weights > plain.table_bytes
        assert MODEL.evaluation(averaged, 16, 99) - MODEL.evaluation(plain, 16, 99) == weights
        more = MODEL.predict(averaged, 16, 99).upper_bytes - MODEL.predict(plain, 16, 99).upper_bytes
        assert more == pytest.approx(weights, rel=0.05, abs=64 << 20)  # pages of the allocator, blocks that fit or not
        ranked = [simulate_evaluation(each, EvaluationSizes(users=16, seen_pairs=99)) for each in (plain, averaged)]
        assert ranked[1].allocated_bytes - ranked[0].allocated_bytes == weights


def test_an_update_of_the_average_takes_no_temporaries() -> None:
    """Two steps allocate as many storages as without it, and the copies."""
    plain = replace(TINY, loss="ce", precision="fp16")
    traces = [simulate_step(each).trace for each in (plain, replace(plain, ema=0.9))]
    weights = len(list(TrainingStep(TINY, CPU).model.parameters()))
    assert len(traces[1].allocations) - len(traces[0].allocations) == weights


@pytest.mark.parametrize(("loss", "precision"), FORMS)
def test_clipping_keeps_the_norm_and_moves_no_peak(loss: str, precision: Precision) -> None:
    """512 bytes: the norm that is told. Its temporaries come where logits and activations are gone."""

    for configuration in random_steps(loss, precision, 2, 1, seed=5, options=True):
        clipped = simulate_step(configuration, settings=StepSettings(clip_norm=1.0))
        assert clipped.allocated_bytes - simulate_step(configuration).allocated_bytes == 512
        sums = [each.requested_bytes for each in clipped.trace.allocations if each.operator == "foreach_norm/0"]
        blocks = -(-configuration.catalog * configuration.architecture.dim // 65536)
        assert sums == [4 * TENSORS_OF_TWO_BLOCKS * blocks] * 2  # of both steps


def test_an_average_begins_with_the_first_weights() -> None:
    step = TrainingStep(TINY, CPU)
    average = WeightAverage(step.model, 0.9)
    for name, parameter in step.model.named_parameters():
        assert torch.equal(dict(average.model.named_parameters())[name], parameter)
        assert dict(average.model.named_parameters())[name] is not parameter
