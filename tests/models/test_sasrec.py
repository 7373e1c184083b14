"""The model: against a plain one written from the paper, dropout's places, who sees whom, the tied gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from plain_sasrec import plain_sasrec
from sequences import on_cpu
from torch import Tensor, nn

from srsplan.kernels import cce
from srsplan.kernels.lookup import tied_lookup
from srsplan.models.config import Architecture, Configuration
from srsplan.models.sasrec import Block, SASRec
from srsplan.models.training.step import StepInputs, StepSettings, TrainingStep

SIZES = Architecture(dim=32, heads=2, blocks=2, dropout=0.0)
CPU = torch.device("cpu")


def model(catalog: int = 50, seq_len: int = 12) -> SASRec:
    torch.manual_seed(0)
    return SASRec(catalog, seq_len, SIZES)


def large_weights(sasrec: SASRec) -> None:
    """Weights that matter: those of the beginning are so small that a missing part would hardly be seen."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in sasrec.named_parameters():
            scale, centre = (0.5, 1.0) if name.endswith("norm.weight") else (0.4, 0.0)
            weight.copy_(centre + scale * torch.randn_like(weight))


def some_loss(valid: Tensor, table: Tensor) -> Tensor:
    """Takes states [M, D] and the table [V, D] alike, as every loss does."""
    return torch.logsumexp(valid @ table.T / table.shape[1], 1).sum()


@pytest.mark.parametrize(
    ("dim", "heads", "blocks", "lengths"),
    [(8, 1, 1, [1]), (16, 2, 1, [5, 3, 1]), (16, 2, 2, [2, 6]), (32, 4, 3, [4, 1, 7]), (24, 3, 2, [7, 7])],
)
def test_equal_to_a_plain_sasrec(dim: int, heads: int, blocks: int, lengths: list[int]) -> None:
    """Forward and gradients, on copied weights."""
    sasrec = SASRec(20, 9, Architecture(dim=dim, heads=heads, blocks=blocks, dropout=0.0))
    large_weights(sasrec)
    sequences = [torch.randint(20, (length,)).tolist() for length in lengths]
    weights = {name: weight.detach().double().requires_grad_() for name, weight in sasrec.named_parameters()}

    hidden = sasrec(on_cpu(sequences)).split(lengths)
    truth = plain_sasrec(weights, sequences, blocks, heads)
    for states, true_states in zip(hidden, truth, strict=True):
        torch.testing.assert_close(states.double(), true_states, rtol=1e-4, atol=1e-4)

    some_loss(torch.cat(hidden), sasrec.item_table).backward()
    some_loss(torch.cat(truth), weights["item_embedding.weight"]).backward()
    for name, weight in sasrec.named_parameters():
        found, true = weight.grad, weights[name].grad
        assert found is not None
        assert true is not None
        torch.testing.assert_close(
            found.double(), true, rtol=1e-3, atol=1e-5 + 1e-4 * float(true.abs().max()), msg=name
        )


def test_in_evaluation_nothing_is_dropped() -> None:
    sasrec = SASRec(20, 9, Architecture(dim=16, heads=2, blocks=2, dropout=0.5)).eval()
    large_weights(sasrec)
    items, weights = torch.randint(20, (2, 6)), dict(sasrec.named_parameters())
    with torch.no_grad():
        truth = torch.cat(plain_sasrec(weights, items.tolist(), 2, 2))
        torch.testing.assert_close(sasrec(on_cpu(items)), truth, rtol=1e-4, atol=1e-4)


def constant(layer: nn.Linear, value: float) -> None:
    """A layer that gives one value, whatever it is given."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(value)


def assert_dropped(found: Tensor, whole: Tensor, share: float = 0.4) -> None:
    """About so large a share of `found` is 0, and the rest is `whole` scaled up."""
    zero = found == 0
    assert float(zero.float().mean()) == pytest.approx(share, abs=0.05)
    torch.testing.assert_close(found[~zero], (whole / (1 - share)).expand_as(found)[~zero])


def dropping() -> SASRec:
    """One block without a final norm, in training mode."""
    torch.manual_seed(0)
    sasrec = SASRec(20, 40, Architecture(dim=64, heads=8, blocks=1, dropout=0.4))
    sasrec.norm = nn.Identity()  # type: ignore[assignment]
    return sasrec.train()


def block_of(sasrec: SASRec) -> Block:
    block = sasrec.blocks[0]
    assert isinstance(block, Block)
    return block


def test_training_drops_out_the_embedding() -> None:
    sasrec, items = dropping(), on_cpu(torch.randint(20, (4, 40)))
    block = block_of(sasrec)
    constant(block.attention.project_out, 0.0)
    constant(block.feed_forward.outer, 0.0)
    assert_dropped(sasrec(items), sasrec.eval()(items))


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_training_drops_out_the_output_of_both_sublayers(part: str) -> None:
    block, x, packing = block_of(dropping()), torch.randn(160, 64), on_cpu([[0] * 40] * 4).packing
    constant(block.attention.project_out, 3.0 if part == "attention" else 0.0)
    constant(block.feed_forward.outer, 3.0 if part == "feed_forward" else 0.0)
    change = block(x, packing) - x
    assert_dropped(torch.where(change.abs() < 1e-5, 0.0, change), torch.tensor(3.0))


def test_training_drops_out_attention_weights() -> None:
    """A first token attends to itself alone: its weight of 1 is dropped in every head by itself, or scaled up."""
    attention = block_of(dropping()).attention
    constant(attention.project_in, 1.0)
    with torch.no_grad():
        attention.project_out.weight.copy_(torch.eye(64))
    first = attention(torch.randn(1500, 64), on_cpu([[0] * 3] * 500).packing)[::3].view(500, 8, 8)
    assert bool((first == first[:, :, :1]).all())
    assert_dropped(first[:, :, 0], torch.tensor(1.0))


@pytest.mark.parametrize("place", [0, 7, 11, 12, 20])
def test_a_token_changes_itself_and_what_follows_in_its_sequence_alone(place: int) -> None:
    """The other sequences of the batch and what came before stay the same."""
    sasrec, lengths = model(), [12, 1, 9]
    items = torch.randint(50, (22,))
    changed = items.clone()
    changed[place] = (changed[place] + 1) % 50
    end = next(end for end in (12, 13, 22) if end > place)
    before, after = (sasrec(on_cpu([part.tolist() for part in each.split(lengths)])) for each in (items, changed))
    differing = ((before - after).abs() > 1e-6).any(1).nonzero().flatten().tolist()
    assert differing == list(range(place, end))


def test_the_tied_gradient_is_that_of_two_separate_ones() -> None:
    rows, items, targets = torch.randn(50, 8), torch.randint(50, (30,)), torch.randint(50, (30,))

    def gradient(lookup: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        table = rows.clone().requires_grad_()
        cce(lookup(table, items).tanh(), table, targets).backward()
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
        step.run(StepInputs(on_cpu(sequences[:, :-1]), sequences[:, 1:].reshape(-1)))
    step.model.eval()
    probe = (torch.arange(40)[:, None] + torch.arange(10)) % 60
    scores = step.model(on_cpu(probe))[9::10] @ step.model.item_table.t()
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
        losses.append([float(step.run(StepInputs(on_cpu(items), items.reshape(-1)))) for _ in range(3)])
    assert losses[0] == losses[1]
