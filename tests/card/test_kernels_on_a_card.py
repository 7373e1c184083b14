"""The Triton kernels as a card runs them: against float64, against eager PyTorch, and what they take."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from kernel_draws import kernel_draws
from torch import Tensor

from srsplan.kernels import Sampling, cce, ce, ce_neg
from srsplan.kernels.chunking import set_count
from srsplan.kernels.full_softmax.api import cce_triton
from srsplan.kernels.full_softmax.grid import SoftmaxGrid
from srsplan.kernels.launches.table import SPAN_ITEMS
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.samplers.alias_table import Distribution, popularity
from srsplan.kernels.samplers.in_batch import InBatch, in_batch
from srsplan.profiler.bench.shapes import Shape
from srsplan.profiler.memory.ledger import Ledger

IGNORED = -100
ALLOWED = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5}
TYPES = [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.float16, torch.float32)]
if torch.cuda.is_available():  # the interpreter's bf16 is not a card's
    TYPES.append((torch.bfloat16, torch.float32))
SCALE = 1 if torch.cuda.is_available() else 8
"""In the interpreter there are fewer tokens and items."""
# tokens, catalog, D: nothing divides anything, every launch of the tables
SHAPES = [
    (tokens // SCALE, catalog // SCALE, dim)
    for tokens, catalog, dim in (
        (1000, 5003, 64), (777, 3001, 128), (1500, 9001, 256), (300, 2003, 208), (270, 1009, 512), (150, 700, 1024)
    )
]  # fmt: skip


def inputs(
    shape: tuple[int, int, int], types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, table, targets with some ignored; logits with a deviation of 2."""
    torch.manual_seed(sum(shape))
    tokens, catalog, dim = shape
    hidden, table = torch.randn(tokens, dim), torch.randn(catalog, dim) * 2 / dim**0.5
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    return hidden.to(types[0]).to(device), table.to(types[1]).to(device), targets.to(device)


def gradients(loss: Any, hidden: Tensor, table: Tensor, *arguments: object, **options: object) -> list[Tensor]:
    x, y = hidden.detach().clone().requires_grad_(), table.detach().clone().requires_grad_()
    value = loss(x, y, *arguments, **options)
    value.backward()
    assert x.grad is not None
    assert y.grad is not None
    return [value.detach().double(), x.grad.double(), y.grad.double()]


def errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]


CASES = [(shape, types) for shape in SHAPES for types in TYPES if types[0] != torch.float32 or shape[2] <= 256]
"""In fp32 the kernels take hidden sizes up to 256."""


def within(found: list[float], dtype: torch.dtype, eager: list[float] | None) -> bool:
    """As close to float64 as the type allows, and no further from it than twice what eager PyTorch is."""
    least = 4 * torch.finfo(dtype).eps
    beside = zip(found, eager, strict=True) if eager else ()
    return max(found) <= ALLOWED[dtype] and all(ours <= max(2 * theirs, least) for ours, theirs in beside)


@pytest.mark.interpreted
@pytest.mark.parametrize(("shape", "types"), CASES, ids=str)
@pytest.mark.parametrize("filter_eps", [None, 0.0])
def test_full_softmax(
    shape: tuple[int, int, int], types: tuple[torch.dtype, torch.dtype], filter_eps: float | None, device: torch.device
) -> None:
    hidden, table, targets = inputs(shape, types, device)
    truth = gradients(ce, hidden.double(), table.double(), targets)
    found = errors(gradients(cce_triton, hidden, table, targets, filter_eps=filter_eps), truth)
    eager = errors(gradients(ce, hidden, table, targets), truth) if types[0] == types[1] else None
    assert within(found, types[0], eager), (found, eager)


@pytest.mark.interpreted
@pytest.mark.parametrize("group", [1, 32, 128])
@pytest.mark.parametrize(("shape", "types"), CASES, ids=str)
def test_sampled_softmax(
    shape: tuple[int, int, int], types: tuple[torch.dtype, torch.dtype], group: int, device: torch.device
) -> None:
    hidden, table, targets = inputs(shape, types, device)
    sets = set_count(len(hidden), group)
    drawn = torch.randint(len(table), (sets, 77), device=device)
    spread = drawn[torch.arange(len(hidden), device=device) % sets]
    truth = gradients(ce_neg, hidden.double(), table.double(), targets, spread)
    sampling = Sampling(tokens_per_set=group)
    found = errors(gradients(cce_neg_triton, hidden, table, targets, drawn, sampling=sampling), truth)
    eager = errors(gradients(ce_neg, hidden, table, targets, spread), truth) if types[0] == types[1] else None
    assert within(found, types[0], eager), (found, eager)


def drawn_by(sampler: str, catalog: int, targets: Tensor) -> Distribution | InBatch | None:
    if sampler == "in-batch":
        return in_batch(targets, catalog, IGNORED)
    return popularity(torch.arange(catalog).numpy() % 50, 0.75).to(targets.device) if sampler == "popularity" else None


@pytest.mark.interpreted
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in-batch"])
def test_samplers(sampler: str, deterministic: bool, device: torch.device) -> None:
    """Forward and backward draw what the sampler says, and the loss is the definition's for these items."""
    hidden, table, targets = inputs((1000 // SCALE, 4003 // SCALE, 64), (torch.float32, torch.float32), device)
    source, sampling = drawn_by(sampler, len(table), targets), Sampling(tokens_per_set=32, seed=3, step=9)
    sets = set_count(len(hidden), 32)
    items = kernel_draws((sets, 100), len(table), sampling, source, device)
    assert int(items.min()) >= 0
    assert int(items.max()) < len(table)
    spread = items[torch.arange(len(hidden), device=device) % sets]
    doubled = source
    if source is not None:  # the same log-Q, in float64
        doubled = type(source)(**{**vars(source), "log_prob": source.log_prob.double()})
    truth = gradients(_defined, hidden.double(), table.double(), targets, spread, doubled)
    options = {"sampling": sampling, "distribution": source, "deterministic": deterministic}
    assert max(errors(gradients(cce_neg_triton, hidden, table, targets, 100, **options), truth)) <= 1e-5
    if deterministic:
        runs = [gradients(cce_neg_triton, hidden, table, targets, 100, **options) for _ in range(2)]
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def _defined(
    hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor, source: Distribution | InBatch | None
) -> Tensor:
    """From the definition, with log-Q of any distribution."""
    share = torch.full((len(table),), 1 / len(table), dtype=torch.float64, device=table.device)
    if source is not None:
        share = source.log_prob.exp()
    keep = targets != IGNORED
    hidden, targets, items = hidden[keep], targets[keep], items[keep]
    hit = items == targets[:, None]
    kept = (~hit).sum(1, keepdim=True).clamp(min=1)
    scores = torch.einsum("md,mnd->mn", hidden, table[items])
    scores = scores + torch.log((1 - share[targets])[:, None] / (share[items] * kept))
    positive = (hidden * table[targets]).sum(1)
    logits = torch.cat([positive[:, None], scores.masked_fill(hit, -torch.inf)], 1)
    return (torch.logsumexp(logits, 1) - positive).mean()


@pytest.mark.interpreted
def test_the_full_softmax_is_bitwise_repeatable(device: torch.device) -> None:
    hidden, table, targets = inputs(SHAPES[2], (torch.float16, torch.float32), device)
    runs = [gradients(cce_triton, hidden, table, targets) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.interpreted
def test_spans_that_are_skipped_change_nothing(device: torch.device) -> None:
    """Sure of its targets: almost all of the catalog is negligible, and the sparse form of backward runs."""
    torch.manual_seed(2)
    table = torch.randn(20_000 // SCALE, 64, device=device) * 0.1
    table[:128, 0], table[128:, 0] = 12.0, -12.0
    hidden = torch.randn(400, 64, device=device) * 0.1
    hidden[:, 0] = 2.0
    targets = torch.randint(128, (400,), device=device)
    truth = gradients(ce, hidden.double(), table.double(), targets)
    # the first column of hidden's gradient cancels to nothing
    assert max(errors(gradients(cce_triton, hidden, table, targets), truth)) <= 1e-4
    half = [each.half() for each in (hidden, table)]
    truth = gradients(ce, half[0].double(), half[1].double(), targets)
    assert max(errors(gradients(cce_triton, *half, targets), truth)) <= 1e-3


@pytest.mark.parametrize("loss", ["cce", "cce-", "cce-, repeatable", "cce-, no copy"])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(name="many items", tokens=1000, catalog=1_000_000, negatives=300, dim=64),
        Shape(name="many tokens", tokens=20_000, catalog=200_000, negatives=1000, dim=128),
        Shape(name="wide", tokens=4096, catalog=50_000, negatives=512),
    ],
    ids=lambda shape: shape.name,
)
def test_kernels_take_what_the_ledger_says(loss: str, shape: Shape, device: torch.device) -> None:
    """Allocated peak above the inputs, forward and backward, within 1%."""
    run(loss, shape, device)  # compiles, and makes what is kept
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found = run(loss, shape, device)
    ledger = Ledger(warm_process=True)
    run(loss, shape, torch.device("meta"), ledger)
    assert found == pytest.approx(ledger.trace.peak().allocated_bytes, rel=0.01)


def run(loss: str, shape: Shape, device: torch.device, ledger: Ledger | None = None) -> int:
    """Forward and backward; the allocated peak above the inputs, bytes, where there is an allocator."""
    hidden = torch.zeros(shape.tokens, shape.dim, dtype=torch.float16, device=device, requires_grad=True)
    table = torch.zeros(shape.catalog, shape.dim, device=device, requires_grad=True)
    targets = torch.zeros(shape.tokens, dtype=torch.long, device=device)
    before = torch.cuda.memory_allocated() if ledger is None else 0
    with ledger or nullcontext():
        _loss(loss, hidden, table, targets, shape.negatives).backward()
    return torch.cuda.max_memory_allocated() - before if ledger is None else 0


def _loss(name: str, hidden: Tensor, table: Tensor, targets: Tensor, negatives: int) -> Tensor:
    if name == "cce":
        return cce_triton(hidden, table, targets)
    repeatable, copied = name.endswith("repeatable"), not name.endswith("no copy")
    return cce_neg_triton(hidden, table, targets, negatives, deterministic=repeatable, copy_table=copied)


@pytest.mark.parametrize("shape", [(1_700_000, 3000, 64), (3000, 12_000_000, 64)], ids=str)
def test_sizes_beyond_32_bits(shape: tuple[int, int, int], device: torch.device) -> None:
    """Tokens x items above 2^31; against the chunked form.

    A sum: the mean over 1.36 million tokens has gradients that fp16 does not hold, in either form.
    """
    hidden, table, targets = inputs(shape, (torch.float16, torch.float16), device)
    full = gradients(cce, hidden, table, targets, reduction="sum")
    assert max(errors(gradients(cce_triton, hidden, table, targets, reduction="sum"), full)) <= 5e-3


BEYOND = (500, 35_000_000, 64)
"""tokens, catalog, D: the table has more than 2^31 entries."""


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_a_table_beyond_32_bits(loss: str, device: torch.device) -> None:
    """Items from both ends of the catalog, scored and added to; against a small table of the rows that matter."""
    tokens, catalog, dim = BEYOND
    assert catalog * dim > 2**31
    needed = catalog * dim * (2 + 2 + 4 + 2 + 8)  # the table and its copy, the gradient in fp32, in fp16, in float64
    if torch.cuda.mem_get_info()[0] < 1.1 * needed:
        pytest.skip(f"{1.1 * needed / 2**30:.0f} GiB are not free")
    torch.manual_seed(7)
    ends = torch.cat([torch.arange(1000), torch.arange(catalog - 1000, catalog)]).to(device)
    few = (torch.randn(2000, dim, device=device) / 4).half()
    hidden = torch.randn(tokens, dim, device=device).half()
    places = torch.randint(2000, (tokens,), device=device)
    table = torch.zeros(catalog, dim, dtype=torch.float16, device=device)
    table[ends] = few
    drawn = torch.randint(2000, (set_count(tokens, 32), 77), device=device)
    if loss == "cce":
        found = gradients(cce_triton, hidden, table, ends[places], reduction="sum")
        truth = gradients(_beside_zeros, hidden.double(), few.double(), places, catalog - 2000)
    else:
        options = {"reduction": "sum", "sampling": Sampling(log_q=False)}
        found = gradients(cce_neg_triton, hidden, table, ends[places], ends[drawn], **options)
        spread = drawn[torch.arange(tokens, device=device) % len(drawn)]
        truth = gradients(ce_neg, hidden.double(), few.double(), places, spread, **options)
    assert max(errors([found[0], found[1], found[2][ends]], truth)) <= 2e-3


def _beside_zeros(hidden: Tensor, few: Tensor, places: Tensor, zeros: int) -> Tensor:
    """The summed loss over a catalog of `few` rows and so many rows of zeros."""
    scores = hidden @ few.T
    rest = torch.full_like(scores[:, :1], zeros).log()
    return (torch.logsumexp(torch.cat([scores, rest], 1), 1) - scores.gather(1, places[:, None])[:, 0]).sum()


@pytest.mark.interpreted
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_a_catalog_of_several_spans_that_is_not_split(
    types: tuple[torch.dtype, torch.dtype], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few tokens have their catalog split on a card, and forward then ends in another kernel."""
    monkeypatch.setattr(SoftmaxGrid, "wanted_splits", lambda _: 1)
    hidden, table, targets = inputs(SHAPES[0], types, device)
    assert len(table) > 2 * SPAN_ITEMS
    truth = gradients(ce, hidden.double(), table.double(), targets)
    found = errors(gradients(cce_triton, hidden, table, targets), truth)
    assert within(found, types[0], None), found


@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in-batch"])
def test_a_graph_that_is_replayed_draws_anew(sampler: str, device: torch.device) -> None:
    """Seed and step are tensors: what is captured reads them each time."""
    hidden, table, targets = inputs((1000, 4003, 64), (torch.float16, torch.float16), device)
    source, step = drawn_by(sampler, len(table), targets), torch.zeros((), dtype=torch.long, device=device)

    def losses(step: int | Tensor) -> Tensor:
        return cce_neg_triton(
            hidden, table, targets, 50, sampling=Sampling(step=step), distribution=source, reduction="none"
        )

    losses(step)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = losses(step)
    for number in (3, 4):
        step.fill_(number)
        graph.replay()
        torch.testing.assert_close(found, losses(number), rtol=0, atol=0)
