"""The training loop: what a resumed run may do otherwise, and where it ends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sequences import some_batch
from small_runs import CPU, ONE, TINY, contents, resume, trainer

from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import DeviceOutOfMemory, InputError
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.epochs_log import EpochRecord
from srsplan.models.training.evaluation import Evaluation, evaluate
from srsplan.models.training.loop import Trainer
from srsplan.models.training.progress import Progress
from srsplan.models.training.retries import out_of_memory_explained, train_batch
from srsplan.models.training.settings import Settings
from srsplan.models.training.step import StepInputs, TrainingStep


class Told(NoCallbacks):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def on_out_of_memory(self, sentence: str) -> None:
        self.sentences.append(sentence)


class SmallCard(TrainingStep):
    """Only so many tokens fit at once: PyTorch's own error beyond."""

    fits = 30

    def run_passes(self, passes: Iterable[StepInputs], *rest: Any, **options: Any) -> torch.Tensor:
        return super().run_passes(map(self.fitting, passes), *rest, **options)

    def fitting(self, each: StepInputs) -> StepInputs:
        if len(each.targets) > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return each


OTHERS: list[tuple[str, Configuration, Settings]] = [
    ("has loss cce, not ce", replace(TINY, loss="ce"), ONE),
    ("has batch_size 16, not 8", replace(TINY, batch_size=8), ONE),
    ("has dropout 0.1, not 0.3", replace(TINY, architecture=Architecture(dim=16, blocks=1, dropout=0.3)), ONE),
    ("has seed 42, not 7", TINY, replace(ONE, seed=7)),
]


@pytest.mark.parametrize(("phrase", "configuration", "settings"), OTHERS, ids=[phrase for phrase, *_ in OTHERS])
def test_another_run_is_not_resumed(
    tmp_path: Path, phrase: str, configuration: Configuration, settings: Settings
) -> None:
    trainer(tmp_path / "out").run(NoCallbacks())
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=phrase):
        resume(trainer(tmp_path / "out", configuration, settings))
    assert contents(tmp_path / "out") == before


def test_other_data_of_the_same_size_are_not_resumed_on(tmp_path: Path) -> None:
    trainer(tmp_path / "out").run(NoCallbacks())
    with pytest.raises(InputError, match="trained on other data"):
        resume(trainer(tmp_path / "out", data=1))


def test_the_ways_out_of_divergence_are_allowed_and_told(tmp_path: Path) -> None:
    trainer(tmp_path / "out").run(NoCallbacks())
    more = trainer(tmp_path / "out", settings=Settings(epochs=2, learning_rate=5e-4, patience=3))
    resume(more)
    assert more.changes == ("learning_rate is 0.0005 from here on, it was 0.001",)
    assert more.run(NoCallbacks()).epoch == 2


def test_an_end_before_the_first_evaluation_is_evaluated(tmp_path: Path) -> None:
    rarely = Settings(epochs=4, evaluate_every=4)

    class Interrupts(NoCallbacks):
        def on_epoch_end(self, record: EpochRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "out", settings=rarely).run(Interrupts())
    shorter = trainer(tmp_path / "out", settings=replace(rarely, epochs=1))
    resume(shorter)
    assert shorter.run(NoCallbacks()).best_epoch == 1
    assert (tmp_path / "out" / "best.safetensors").exists()


def test_out_of_memory_is_explained_with_bytes() -> None:
    with (
        pytest.raises(DeviceOutOfMemory, match=r"bytes allocated .* batch size 16, sequence length 8") as caught,
        out_of_memory_explained(TINY),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)


STILL = replace(TINY, architecture=replace(TINY.architecture, dropout=0.0))
"""Without dropout the weights do not depend on how a batch is cut."""


def on_a_small_card(folder: Path, settings: Settings = ONE, configuration: Configuration = STILL) -> Trainer:
    whole = trainer(folder, configuration, settings)
    step = SmallCard(whole.step.configuration, CPU, settings)
    step.model.load_state_dict(whole.step.model.state_dict())
    return Trainer(step, whole.split, settings, folder)


def test_out_of_memory_cuts_the_batch_and_trains_the_same_model(tmp_path: Path) -> None:
    """16 sequences of 5 tokens do not fit, nor do 8; passes of 20 tokens do, and the weights are those of one pass."""
    told, small = Told(), on_a_small_card(tmp_path / "small")
    whole = trainer(tmp_path / "whole", small.step.configuration)
    whole.step.model.load_state_dict(small.step.model.state_dict())
    small.run(told)
    whole.run(NoCallbacks())
    assert small.progress.pass_tokens == 20
    assert [phrase in told.sentences[at] for at, phrase in enumerate(("has 40 tokens", "has 20 tokens"))] == [True] * 2
    assert "same batch size 16" in told.sentences[1]
    for name, weight in whole.step.model.state_dict().items():
        assert torch.allclose(weight, small.step.model.state_dict()[name], atol=2e-4), name


def test_a_resumed_run_remembers_that_it_was_cut(tmp_path: Path) -> None:
    on_a_small_card(tmp_path / "small").run(Told())
    told, again = Told(), on_a_small_card(tmp_path / "small", Settings(epochs=2))
    resume(again)
    again.run(told)
    assert again.progress.pass_tokens == 20
    assert not told.sentences


def test_a_run_goes_on_in_passes_of_another_size(tmp_path: Path) -> None:
    """They decide the memory, not what is computed: the weights are those of a run that nobody stopped."""
    whole = trainer(tmp_path / "whole", STILL, replace(ONE, epochs=3))
    whole.run(NoCallbacks())
    trainer(tmp_path / "parts", STILL, replace(ONE, epochs=1)).run(NoCallbacks())
    for epochs, cut in ((2, replace(STILL, pass_tokens=24)), (3, replace(STILL, pass_sequences=5, recompute=True))):
        more = trainer(tmp_path / "parts", cut, replace(ONE, epochs=epochs))
        resume(more)
        assert more.changes == ()
        assert more.run(NoCallbacks()).epoch == epochs
    for name, weight in load_file(tmp_path / "whole" / "weights-3.safetensors").items():
        if name.startswith("model."):
            found = load_file(tmp_path / "parts" / "weights-3.safetensors")[name]
            assert torch.allclose(found, weight, atol=2e-4), name


def sizes_of_passes(lengths: list[int], fits: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[str]]:
    """Tokens of the passes that were tried for one batch on a card, the last attempt's being the step; what is told."""
    monkeypatch.setattr(SmallCard, "fits", fits)
    configuration = replace(STILL, batch_size=len(lengths))
    step, told, tried = SmallCard(configuration, CPU), Told(), list[int]()
    fitting = SmallCard.fitting

    def listening(self: SmallCard, each: StepInputs) -> StepInputs:
        tried.append(len(each.targets))
        return fitting(self, each)

    monkeypatch.setattr(SmallCard, "fitting", listening)
    train_batch(step, some_batch(lengths, 40), Progress(pass_tokens=configuration.tokens), told)
    return tried, told.sentences


def test_a_half_empty_batch_is_halved_by_the_tokens_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by those that it could have: 16 sequences of one token, of which 9 fit, take two passes."""
    tried, told = sizes_of_passes([1] * 16, 9, monkeypatch)
    assert tried == [16, 8, 8]
    assert len(told) == 1


def test_passes_shrink_to_the_longest_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, told = sizes_of_passes([2, 7, 1, 1], 7, monkeypatch)
    assert tried == [11, 2, 7, 2]
    assert "has 7 tokens at most" in told[-1]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sizes_of_passes([2, 7, 1, 1], 6, monkeypatch)


def test_a_later_batch_may_have_longer_sequences_than_passes_had_tokens() -> None:
    """Memory ran out where all sequences were short; the next batch's longest exceeds the passes that were left."""
    step, progress = SmallCard(STILL, CPU), Progress(pass_tokens=3)
    train_batch(step, some_batch([8, 1, 2], 40), progress, Told())
    assert progress.pass_tokens == 3
    assert step.steps_done == 1


def test_one_sequence_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallCard, "fits", 0)
    with pytest.raises(DeviceOutOfMemory, match="the GPU ran out of memory") as caught:
        on_a_small_card(tmp_path / "small").run(Told())
    assert "--seq-len" in caught.value.hint


def test_out_of_memory_in_evaluation_ranks_fewer_users_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()

    def at_most_ten(step: Any, parts: Any, holdout: Any, ranking: Any) -> Evaluation:
        if ranking.users > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return evaluate(step, parts, holdout, ranking)

    monkeypatch.setattr("srsplan.models.training.loop.evaluate", at_most_ten)
    whole = trainer(tmp_path / "run", settings=Settings(epochs=1, evaluation_batch=64))
    whole.run(told)
    assert whole.ranking().users == 8
    assert "8 users at once" in told.sentences[-1]


def test_validation_has_no_gradients_beside_it_and_reports_the_usual_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient of the table is as large as the table: it is freed before a holdout is ranked."""
    kept = list[bool]()

    def listening(step: TrainingStep, *rest: Any) -> Evaluation:
        kept.extend(parameter.grad is not None for parameter in step.model.parameters())
        return evaluate(step, *rest)

    monkeypatch.setattr("srsplan.models.training.loop.evaluate", listening)
    trainer(tmp_path / "run").run(NoCallbacks())
    assert kept
    assert not any(kept)
    (line,) = (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()
    assert {key for key in json.loads(line) if key.startswith("NDCG")} == {f"NDCG_{k}" for k in (1, 5, 10, 20)}


def test_the_logged_loss_is_the_mean_over_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, run_passes = list[float](), TrainingStep.run_passes

    def listening(self: TrainingStep, *inputs: Any, **options: Any) -> torch.Tensor:
        loss = run_passes(self, *inputs, **options)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(TrainingStep, "run_passes", listening)
    trainer(tmp_path / "run").run(NoCallbacks())
    (line,) = (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()
    assert len(losses) > 1
    assert json.loads(line)["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
