"""The learning rate of every step: torch's own schedulers give the same, and a resumed run goes on along it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import ONE, SAMPLED, resume, trainer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from srsplan.kernels.dispatch import LossCall
from srsplan.models.errors import InputError
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.schedule import LearningRates
from srsplan.models.training.settings import Settings


def by_torch(rates: LearningRates, steps: int) -> list[float]:
    """The same course from torch's schedulers, one after the other."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rates.rate)
    warm, left = rates.warmup_steps, rates.planned_steps - rates.warmup_steps
    after: LRScheduler = (
        ConstantLR(optimizer, factor=1.0)
        if rates.shape == "constant"
        else CosineAnnealingLR(optimizer, T_max=left, eta_min=rates.final_rate)
    )
    scheduler = after
    if warm:
        growing = LinearLR(optimizer, start_factor=1 / warm, total_iters=max(1, warm - 1))
        scheduler = SequentialLR(optimizer, [growing, after], milestones=[warm])
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR calls its own with a step's number
            scheduler.step()
    return found


@pytest.mark.parametrize("shape", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 2, 7])
def test_rates_are_those_of_torchs_schedulers(shape: Any, warmup: int) -> None:
    final = 1e-4 if shape == "cosine" else 0.0
    rates = LearningRates(shape=shape, rate=0.01, final_rate=final, warmup_steps=warmup, planned_steps=30)
    assert [rates.at(step) for step in range(30)] == pytest.approx(by_torch(rates, 30), rel=1e-6)


@given(
    warmup=st.integers(0, 50), left=st.integers(1, 200), rate=st.floats(1e-6, 1.0), share=st.floats(0, 1),
    shape=st.sampled_from(["constant", "cosine"]),
)  # fmt: skip
def test_a_rate_rises_then_falls_and_stays_within_its_bounds(
    warmup: int, left: int, rate: float, share: float, shape: Any
) -> None:
    rates = LearningRates(
        shape=shape, rate=rate, final_rate=share * rate, warmup_steps=warmup, planned_steps=warmup + left
    )
    found = [rates.at(step) for step in range(warmup + left + 5)]
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup] == pytest.approx(rate)
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert all(0 < each <= rate * (1 + 1e-12) for each in found[: warmup + left])
    assert found[-5:] == pytest.approx([share * rate if shape == "cosine" else rate] * 5)


def test_a_warm_up_in_percent_is_of_all_planned_steps() -> None:
    rates = Settings(epochs=10, warmup_percent=5.0).learning_rates(batches=40)
    assert (rates.warmup_steps, rates.planned_steps) == (20, 400)


class Rates(NoCallbacks):
    """The rate that the optimizer has when each step ends."""

    def __init__(self, step: Any) -> None:
        self.step, self.found = step, list[float]()

    def on_batch_end(self) -> None:
        self.found.append(self.step.optimizer.param_groups[0]["lr"])


def test_the_optimizer_steps_at_these_rates(tmp_path: Path) -> None:
    settings = replace(ONE, epochs=3, schedule="cosine", warmup_steps=3, final_learning_rate=1e-5)
    whole = trainer(tmp_path / "out", settings=settings)
    listening = Rates(whole.step)
    whole.run(listening)
    rates = settings.learning_rates(len(whole.batches))
    assert listening.found == [rates.at(step) for step in range(rates.planned_steps)]
    logged = [json.loads(line) for line in (tmp_path / "out" / "epochs.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in logged] == listening.found[len(whole.batches) - 1 :: len(whole.batches)]


def test_batches_that_are_used_again_have_their_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an over-sampling factor of one epoch, later ones draw with the numbers of its steps, in other orders."""
    drawn, at = list[int](), LossCall.at

    def listening(self: LossCall, step: int, *rest: Any, **options: Any) -> LossCall:
        drawn.append(step)
        return at(self, step, *rest, **options)

    monkeypatch.setattr(LossCall, "at", listening)
    run = trainer(tmp_path / "out", SAMPLED, replace(ONE, epochs=3, osf=1))
    run.run(NoCallbacks())
    steps = len(run.batches)
    epochs = [drawn[start : start + steps] for start in range(0, 3 * steps, steps)]
    assert epochs[0] == [*range(steps)]
    assert sorted(epochs[1]) == sorted(epochs[2]) == epochs[0]
    assert run.step.steps_done == 3 * steps


EVERYTHING = replace(
    ONE, epochs=5, schedule="cosine", warmup_percent=20.0, clip_norm=0.5, osf=2, learning_rate=0.01, patience=50
)


def test_a_run_with_every_option_resumes_to_the_bit(tmp_path: Path) -> None:
    """Stopped by Ctrl-C twice: weights, moments, averages and the log are those of a run that nobody stopped."""
    averaged = replace(SAMPLED, ema=0.9)
    trainer(tmp_path / "whole", averaged, EVERYTHING).run(NoCallbacks())

    class Stops(NoCallbacks):
        def on_epoch_end(self, record: Any) -> None:
            raise KeyboardInterrupt

    for attempt in range(2):
        part = trainer(tmp_path / "parts", averaged, EVERYTHING)
        with pytest.raises(KeyboardInterrupt):
            (resume(part) if attempt else part).run(Stops())
    last = resume(trainer(tmp_path / "parts", averaged, EVERYTHING))
    assert last.changes == ()
    assert last.run(NoCallbacks()).epoch == 5
    for name in ("weights-5.safetensors", "best.safetensors"):
        whole, parts = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole), name
    assert any(key.startswith("average.") for key in load_file(tmp_path / "parts" / "weights-5.safetensors"))

    def logged(folder: str) -> list[dict[str, float]]:
        lines = (tmp_path / folder / "epochs.jsonl").read_text().splitlines()
        return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]

    assert logged("parts") == logged("whole")


def test_more_epochs_stretch_a_cosine_and_are_told(tmp_path: Path) -> None:
    """The rate goes on along the course of the new number; a constant rate has nothing to say."""
    cosine = replace(ONE, epochs=2, schedule="cosine", patience=50)
    trainer(tmp_path / "out", settings=cosine).run(NoCallbacks())
    more = resume(trainer(tmp_path / "out", settings=replace(cosine, epochs=4)))
    (told,) = more.changes
    assert told.startswith("4 epochs are planned from here on instead of 2")
    listening = Rates(more.step)
    more.run(listening)
    steps = len(more.batches)
    rates = replace(cosine, epochs=4).learning_rates(steps)
    assert listening.found == [rates.at(step) for step in range(2 * steps, 4 * steps)]
    trainer(tmp_path / "constant", settings=replace(ONE, epochs=1)).run(NoCallbacks())
    assert resume(trainer(tmp_path / "constant", settings=replace(ONE, epochs=2))).changes == ()


def test_ways_out_of_divergence_may_be_added_and_other_options_not(tmp_path: Path) -> None:
    trainer(tmp_path / "out").run(NoCallbacks())
    clipped = resume(trainer(tmp_path / "out", settings=replace(ONE, epochs=2, clip_norm=1.0, warmup_steps=3)))
    assert clipped.changes == (
        "clip_norm is 1.0 from here on, it was None",
        "warmup_steps is 3 from here on, it was 0",
    )
    with pytest.raises(InputError, match="has osf None, not 2"):
        resume(trainer(tmp_path / "out", settings=replace(ONE, epochs=2, osf=2)))
    with pytest.raises(InputError, match=r"has ema None, not 0\.9"):
        resume(trainer(tmp_path / "out", replace(trainer(tmp_path / "out").step.configuration, ema=0.9)))


def test_a_checkpoint_from_before_these_options_goes_on(tmp_path: Path) -> None:
    """Its identity names none of them: it has their defaults."""
    trainer(tmp_path / "out").run(NoCallbacks())
    path = tmp_path / "out" / "state.json"
    state = json.loads(path.read_text())
    assert state["run"].keys().isdisjoint({"schedule", "warmup_steps", "clip_norm", "osf", "epochs"})
    del state["run"]["ema"]
    path.write_text(json.dumps(state))
    assert resume(trainer(tmp_path / "out", settings=replace(ONE, epochs=2))).changes == ()


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"schedule": "linear"}, "unknown --schedule 'linear'"),
    ({"final_learning_rate": 1.0, "schedule": "cosine"}, "--final-learning-rate 1.0 is outside 0..0.001"),
    ({"final_learning_rate": float("nan"), "schedule": "cosine"}, "--final-learning-rate nan"),
    ({"final_learning_rate": 1e-4}, "means nothing to a constant schedule"),
    ({"warmup_steps": -1}, "--warmup-steps -1"),
    ({"warmup_percent": 100.0}, "--warmup-percent 100.0"),
    ({"warmup_percent": float("nan")}, "--warmup-percent nan"),
    ({"warmup_steps": 5, "warmup_percent": 5.0}, "contradict each other"),
    ({"clip_norm": 0.0}, "--clip-norm 0.0 is not a number above zero"),
    ({"clip_norm": float("inf")}, "--clip-norm inf"),
    ({"osf": 0}, "--osf 0 is below 1"),
]


@pytest.mark.parametrize(("values", "phrase"), IMPOSSIBLE, ids=[phrase for _, phrase in IMPOSSIBLE])
def test_impossible_settings_are_refused(values: dict[str, Any], phrase: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(**values)
    assert phrase in caught.value.message
    assert caught.value.hint


def test_a_warm_up_that_leaves_nothing_to_a_cosine_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a warm-up of 4 steps leaves none of the 4 planned steps"):
        trainer(tmp_path / "out", settings=replace(ONE, schedule="cosine", warmup_steps=4))
