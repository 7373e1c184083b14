"""The Triton full softmax in the interpreter: against float64, against eager, and what it skips."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import pytest
import torch
import triton.language as tl
from test_triton_sampled import IGNORED, errors, gradients
from torch import Tensor

from srsplan.kernels import ce
from srsplan.kernels.full_softmax import PUBLISHED_FILTER
from srsplan.kernels.full_softmax import kernel as triton_softmax
from srsplan.kernels.full_softmax import operators as softmax_operators
from srsplan.kernels.full_softmax.api import cce_triton
from srsplan.kernels.full_softmax.operators import full_softmax, full_softmax_backward

# tokens, catalog, D: sizes that divide nothing, one row, one tile, several spans
SHAPES = [
    (1, 2, 16), (2, 3, 32), (7, 50, 16), (16, 33, 64), (17, 101, 80), (31, 64, 16), (33, 257, 32), (37, 600, 112),
    (63, 77, 16), (70, 101, 48), (97, 300, 160), (130, 515, 16), (45, 1100, 16), (5, 31, 208),
    (13, 11, 96), (11, 29, 144), (19, 403, 32), (43, 261, 16), (59, 999, 80), (88, 47, 48),
]  # fmt: skip


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, table_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, table, targets with some ignored."""
    torch.manual_seed(sum(shape))
    tokens, catalog, dim = shape
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    return torch.randn(tokens, dim).to(dtype), (torch.randn(catalog, dim) * 0.3).to(table_dtype), targets


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("types", ["fp32", "fp16", "fp16 with an fp32 table"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(shape: tuple[int, int, int], types: str, reduction: str) -> None:
    dtype = torch.float32 if types == "fp32" else torch.float16
    table_dtype = torch.float16 if types == "fp16" else torch.float32
    hidden, table, targets = inputs(shape, dtype, table_dtype)
    truth = gradients(ce, hidden.double(), table.double(), targets, reduction=reduction)
    found = errors(gradients(cce_triton, hidden, table, targets, reduction=reduction), truth)
    assert max(found) <= (1e-5 if dtype == torch.float32 else 1e-3)
    if table.dtype == dtype:
        eager = errors(gradients(ce, hidden, table, targets, reduction=reduction), truth)
        assert all(
            ours <= max(2 * theirs, 4 * torch.finfo(dtype).eps) for ours, theirs in zip(found, eager, strict=True)
        )


@pytest.mark.parametrize("filter_eps", [None, 0.0])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_launches_of_every_family(monkeypatch: pytest.MonkeyPatch, capability: int, filter_eps: float | None) -> None:
    """Blocks and tiles of other sizes, more than one of each, and sums over parts of the catalog."""
    monkeypatch.setattr(softmax_operators, "capability_of", lambda device: capability)
    hidden, table, targets = inputs((300, 1200, 64), torch.float16, torch.float32)
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets, filter_eps=filter_eps), truth)) <= 1e-3


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_the_dense_and_the_sparse_form_agree(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Whichever the number of spans that matter would choose."""
    monkeypatch.setattr(triton_softmax, "SPARSE_SHARE", share)
    hidden, table, targets = peaked()
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets), truth)) <= 1e-5
    hidden, table, targets = inputs((300, 1200, 64), torch.float16, torch.float16)
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets), truth)) <= 1e-3


def peaked() -> tuple[Tensor, Tensor, Tensor]:
    """Sure of its targets, which stand in the first tiles: the far end of the catalog is negligible."""
    torch.manual_seed(2)
    table = torch.randn(2000, 16)
    table[:64, 0], table[64:, 0] = 12.0, -12.0
    hidden = torch.randn(40, 16) * 0.5
    hidden[:, 0] = 2.0
    return hidden, table, torch.randint(64, (40,))


def spans_that_matter(filter_eps: float) -> Tensor:
    hidden, table, targets = peaked()
    spans: Tensor = full_softmax(hidden, table, targets, IGNORED, float(torch.tensor(filter_eps).log()), True, True)[2]
    return spans


def test_negligible_spans_are_skipped_and_nothing_is_lost() -> None:
    """By default only what rounds to nothing; the larger the threshold, the more."""
    hidden, table, targets = peaked()
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert spans_that_matter(2.0**-40).float().mean() < 0.6
    assert max(errors(gradients(cce_triton, hidden, table, targets), truth)) <= 1e-5
    assert max(errors(gradients(cce_triton, hidden, table, targets, filter_eps=0.0), truth)) <= 1e-5
    assert max(errors(gradients(cce_triton, hidden, table, targets, filter_eps=1e-4), truth)) <= 1e-2
    assert spans_that_matter(1e-4).sum() <= spans_that_matter(2.0**-40).sum()


def test_a_target_is_never_skipped() -> None:
    """Wrong about every target: their spans hold tiny shares but a gradient of one each."""
    hidden, table, _ = peaked()
    targets = torch.randint(1900, 2000, (40,))
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets, filter_eps=1e-3), truth)) <= 1e-2


def test_runs_are_bitwise_equal() -> None:
    hidden, table, targets = inputs((130, 515, 16), torch.float16, torch.float32)
    runs = [gradients(cce_triton, hidden, table, targets) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_and_all_ignored() -> None:
    table = torch.randn(9, 16, requires_grad=True)
    for hidden, targets in (
        (torch.randn(0, 16), torch.empty(0, dtype=torch.long)),
        (torch.randn(6, 16), torch.full((6,), IGNORED)),
    ):
        table.grad = None
        value = cce_triton(hidden, table, targets)
        value.backward()
        assert value == 0
        assert table.grad is not None
        assert not table.grad.any()


def test_non_contiguous_inputs() -> None:
    hidden, table, targets = inputs((37, 600, 112), torch.float32, torch.float32)
    plain = gradients(cce_triton, hidden, table, targets)
    assert (
        max(errors(gradients(cce_triton, hidden.t().contiguous().t(), table.t().contiguous().t(), targets), plain))
        <= 1e-6
    )


def test_operators_keep_torchs_rules() -> None:
    hidden, table, targets = inputs((9, 300, 16), torch.float32, torch.float32)
    arguments = (hidden.requires_grad_(), table.requires_grad_(), targets, IGNORED, -20.0, True, True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(full_softmax, arguments, test_utils=tests)
    state = [tensor.detach() for tensor in full_softmax(*arguments)]
    detached = (hidden.detach(), table.detach(), targets, *state, torch.ones(9), IGNORED)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(full_softmax, (*arguments[:5], *wanted), test_utils=("test_schema", "test_faketensor"))
        torch.library.opcheck(
            full_softmax_backward, (*detached, *wanted), test_utils=("test_schema", "test_faketensor")
        )
    with pytest.raises(RuntimeError, match="told that a gradient is not wanted"):
        full_softmax_backward(*detached[:5], state[2][:0], *detached[6:], True, True)


@pytest.mark.parametrize("filter_eps", [-0.1, 1.0])
def test_an_impossible_filter_is_refused(filter_eps: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        cce_triton(torch.zeros(3, 16), torch.zeros(5, 16), torch.zeros(3, dtype=torch.long), filter_eps=filter_eps)


def test_the_published_filter_skips_more_than_the_format_and_keeps_the_gradient() -> None:
    hidden, table, targets = peaked()
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets, filter_eps=PUBLISHED_FILTER), truth)) <= 1e-2
    assert spans_that_matter(1e-4).sum() <= spans_that_matter(PUBLISHED_FILTER).sum()
    assert spans_that_matter(PUBLISHED_FILTER).sum() <= spans_that_matter(2.0**-40).sum()


@pytest.mark.parametrize("look", [2, 4])
def test_the_sparse_form_finds_every_span_that_matters(monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    """More blocks of rows than it looks at in one go, some of them empty: of 13 blocks five hold a live token."""
    monkeypatch.setattr(triton_softmax, "LOOK", tl.constexpr(look))
    monkeypatch.setattr(triton_softmax, "SPARSE_SHARE", 2.0)
    torch.manual_seed(5)
    hidden, table = torch.randn(13 * 128 - 5, 16).half(), torch.randn(300, 16).half()
    targets = torch.full((len(hidden),), IGNORED)
    for place in (3, 300, 301, 128 * 7, 128 * 8 + 127, len(hidden) - 1):
        targets[place] = place % 300
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets), truth)) <= 1e-3
    spans: Tensor = full_softmax(hidden, table, targets, IGNORED, -20.0, True, True)[2]
    assert spans.shape == (2, 13)
    assert spans.any(0).nonzero().flatten().tolist() == [0, 2, 7, 8, 12]
