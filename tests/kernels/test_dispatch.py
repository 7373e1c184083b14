"""The implementation that a loss says it has is the one that runs."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sequences import on_cpu
from torch import Tensor

from srsplan.kernels import Sampling, bucket_softmax, eager
from srsplan.kernels.block_softmax import operators as block_operators
from srsplan.kernels.dispatch import FUNCTIONS, Implementation, LossCall, LossOptions, choose
from srsplan.kernels.full_softmax import api as full
from srsplan.kernels.full_softmax import operators as full_operators
from srsplan.kernels.losses import LOSSES, TRITON
from srsplan.kernels.sampled_softmax import api as sampled
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError
from srsplan.models.training.step import StepInputs, TrainingStep

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
ASKED: tuple[Implementation, ...] = ("auto", "chunked", "triton")
ENTRIES = {
    ("ce", "eager PyTorch"): (eager, "ce"),
    ("ce-", "eager PyTorch"): (eager, "ce_neg"),
    ("bce", "eager PyTorch"): (eager, "bce"),
    ("gbce", "eager PyTorch"): (eager, "gbce"),
    ("sce", "eager PyTorch"): (bucket_softmax, "sce"),
    ("cce", "chunked PyTorch"): (full, "softmax_chunks"),
    ("cce-", "chunked PyTorch"): (sampled, "sampled_chunks"),
    ("cce", "Triton"): (full_operators, "full_softmax"),
    ("cce-", "Triton"): (block_operators, "block_softmax"),
}
"""The function that computes a loss in an implementation, where its callers look it up."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The entries that were called, in order; they do their work as ever."""
    calls: list[tuple[str, str]] = []

    def listen(entry: tuple[str, str], function: Callable[..., object]) -> Callable[..., object]:
        def listening(*arguments: object, **options: object) -> object:
            calls.append(entry)
            return function(*arguments, **options)

        return listening

    for entry, (module, name) in ENTRIES.items():
        monkeypatch.setattr(module, name, listen(entry, getattr(module, name)))
    return calls


def options(loss: str) -> LossOptions:
    negatives = LOSSES[loss].usual_negatives or (9 if LOSSES[loss].sampled else None)
    return LossOptions(negatives=negatives, sampling=Sampling(tokens_per_set=16), compute_dtype=torch.float32)


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(20, 16, requires_grad=True), torch.randn(50, 16), torch.randint(50, (20,))


def chosen(loss: str, asked: Implementation) -> LossCall | None:
    """For a card, whose kernels the interpreter runs here; None where the loss has no such implementation."""
    try:
        return choose(loss, CUDA, asked, options(loss), dim=16)
    except ValueError:
        return None


CHOICES = [(loss, asked) for loss in LOSSES for asked in ASKED]


@pytest.mark.parametrize(("loss", "asked"), CHOICES)
def test_what_is_said_is_what_runs(loss: str, asked: Implementation, ran: list[tuple[str, str]]) -> None:
    call = chosen(loss, asked)
    if call is None:
        assert asked != "auto"
        return
    call(*tensors())
    assert ran == [(loss, call.implementation)]
    assert call.description() == {"loss": loss, "implementation": call.implementation, "reason": call.reason}


def test_every_implementation_of_the_table_can_be_had() -> None:
    calls = [call for loss, asked in CHOICES if (call := chosen(loss, asked)) is not None]
    assert {(call.loss, call.implementation) for call in calls} == {
        (loss, name) for loss, functions in FUNCTIONS.items() for name in functions
    }
    assert set(FUNCTIONS) == set(LOSSES.values())
    assert {(call.loss.name, call.implementation) for call in calls} == set(ENTRIES)
    assert all(call.reason for call in calls)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_training_step_runs_what_it_says(loss: str, ran: list[tuple[str, str]]) -> None:
    """The description of a step's loss is printed by `train`, and kept in its metrics.json."""
    kind = LOSSES[loss]
    configuration = Configuration(
        loss=loss, catalog=60, batch_size=4, seq_len=5, precision="fp32", negatives=options(loss).negatives,
        tokens_per_set=16 if kind.shares_negatives else 1, architecture=Architecture(dim=16, blocks=1, heads=1),
    )  # fmt: skip
    step = TrainingStep(configuration, CPU)
    batch = StepInputs(on_cpu(torch.randint(60, (4, 5))), torch.randint(60, (20,)))
    step.run(batch)
    assert ran == [(loss, step.loss_call.implementation)]
    if kind.chunked:
        with pytest.raises(ValueError, match="not on cpu"):
            TrainingStep(replace(configuration, kernel="triton"), CPU)
    else:  # a configuration cannot ask for what the loss does not have
        with pytest.raises(InputError, match="has no Triton kernel"):
            replace(configuration, kernel="triton")


@pytest.mark.parametrize(
    ("loss", "device", "asked", "dim", "phrase"),
    [
        ("ce", META, "triton", 64, "ce has no Triton kernel: cce and cce- have"),
        ("ce-", CPU, "chunked", 64, "ce- has no chunked form: cce and cce- have"),
        ("cce", CPU, "triton", 64, "not on cpu"),
        ("cce-", META, "triton", 40, "hidden size 40 is no multiple of 16"),
        ("cce", META, "triton", 2048, "up to 1024"),
        ("cce", META, "triton", 512, "up to 256 in fp32"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    loss: str, device: torch.device, asked: Implementation, dim: int, phrase: str
) -> None:
    with pytest.raises(ValueError, match=phrase):
        choose(loss, device, asked, options(loss), dim=dim)


def test_a_sampled_loss_needs_negatives_and_a_loss_a_name() -> None:
    with pytest.raises(ValueError, match="cce- needs a number of negatives"):
        choose("cce-", CPU)
    with pytest.raises(KeyError):
        choose("softmax", CPU)
    with pytest.raises(ValueError, match="ce has no Triton"):
        LossCall(loss=LOSSES["ce"], implementation=TRITON, reason="", options=LossOptions())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("loss", [loss.name for loss in LOSSES.values() if loss.chunked])
def test_triton_and_chunked_give_the_same_loss(loss: str, dtype: torch.dtype) -> None:
    """Called as the training step does it; with so many negatives that the draws' difference is small."""
    hidden, table, targets = tensors()
    negatives = 4096 if LOSSES[loss].sampled else None
    given = LossOptions(negatives=negatives, sampling=Sampling(tokens_per_set=16), compute_dtype=dtype)
    found = [
        float(choose(loss, CUDA, asked, given, dim=16)(hidden, table, targets).detach())
        for asked in ("chunked", "triton")
    ]
    assert found[0] == pytest.approx(found[1], rel=2e-2 if LOSSES[loss].sampled else 2e-3)
