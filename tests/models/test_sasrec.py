"""The model: causality, padding, the tied gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srsplan.kernels import cce
from srsplan.kernels.lookup import tied_lookup
from srsplan.models.config import Architecture, Configuration
from srsplan.models.sasrec import SASRec
from srsplan.models.training.step import StepInputs, StepSettings, TrainingStep

SIZES = Architecture(dim=32, heads=2, blocks=2, dropout=0.0)
CPU = torch.device("cpu")


def model(catalog: int = 50, seq_len: int = 12) -> SASRec:
    torch.manual_seed(0)
    return SASRec(catalog, seq_len, SIZES)


def test_a_position_sees_only_what_came_before() -> None:
    sasrec, items = model(), torch.randint(50, (3, 12))
    changed = items.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    before, after = sasrec(items), sasrec(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_what_stands_at_padding_changes_nothing_and_gets_no_gradient() -> None:
    items = torch.randint(40, (1, 12))
    gradients = []
    for filler in (41, 47):
        sasrec = model()
        items[:, 5:] = filler
        hidden = sasrec(items)[:, :5].reshape(-1, 32)
        cce(hidden, sasrec.item_table, torch.tensor([1, 2, 3, 4, 5])).backward()
        assert sasrec.item_table.grad is not None
        gradients.append(sasrec.item_table.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


def test_the_tied_gradient_is_that_of_two_separate_ones() -> None:
    table = torch.randn(50, 8, requires_grad=True)
    items, targets = torch.randint(50, (30,)), torch.randint(50, (30,))

    def gradient(lookup: object) -> Tensor:
        table.grad = None
        cce(lookup(table, items).tanh(), table, targets).backward()  # type: ignore[operator]
        assert table.grad is not None
        return table.grad

    assert torch.allclose(gradient(tied_lookup), gradient(lambda rows, at: F.embedding(at, rows)), atol=1e-7)


def test_the_tied_lookup_accumulates_and_works_alone() -> None:
    table = torch.randn(9, 4, requires_grad=True)
    items = torch.tensor([[1, 1], [3, 8]])
    for _ in range(2):
        tied_lookup(table, items).sum().backward()
    expected = torch.zeros(9, 4)
    expected[1], expected[3], expected[8] = 4, 2, 2
    assert table.grad is not None
    assert torch.equal(table.grad, expected)
    with torch.no_grad():
        assert torch.equal(tied_lookup(table, items), table[items])
    with pytest.raises(ValueError, match="leaf"):
        tied_lookup(table * 2, items)


@pytest.mark.parametrize(("loss", "negatives", "group"), [("ce", None, 1), ("cce", None, 1), ("ce-", 20, 1),
                                                          ("cce-", 20, 16), ("bce", 1, 1)])  # fmt: skip
def test_every_loss_learns_a_cycle(loss: str, negatives: int | None, group: int) -> None:
    """Item k is always followed by k + 1: a hundred steps must find that out."""
    torch.manual_seed(1)
    configuration = Configuration(
        loss=loss, catalog=60, batch_size=32, seq_len=10, negatives=negatives, tokens_per_set=group,
        architecture=SIZES, precision="fp32",
    )  # fmt: skip
    step = TrainingStep(configuration, CPU, StepSettings(learning_rate=5e-3))
    for _ in range(120):
        sequences = (torch.randint(60, (32, 1)) + torch.arange(11)) % 60
        batch = StepInputs(sequences[:, :-1], torch.arange(320), sequences[:, 1:].reshape(-1))
        step.run(batch)
    step.model.eval()
    probe = (torch.arange(40)[:, None] + torch.arange(10)) % 60
    scores = step.model(probe)[:, -1] @ step.model.item_table.t()
    assert (scores.argmax(1) == (torch.arange(40) + 10) % 60).float().mean() > 0.9


def test_equal_seeds_give_equal_steps() -> None:
    configuration = Configuration(
        loss="cce-",
        catalog=60,
        batch_size=4,
        seq_len=10,
        negatives=7,
        tokens_per_set=8,
        architecture=SIZES,
        precision="fp32",
    )
    items = torch.randint(60, (4, 10))
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        step = TrainingStep(configuration, CPU, StepSettings(seed=9))
        losses.append([float(step.run(StepInputs(items, torch.arange(40), items.reshape(-1)))) for _ in range(3)])
    assert losses[0] == losses[1]
