"""What is remembered of operators on meta tensors is what they return."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from random_steps import random_steps

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.models.kinds import MODEL_KINDS
from srsplan.profiler.memory import ledger, meta_results
from srsplan.profiler.memory.meta_results import on_meta
from srsplan.profiler.memory.simulate import simulate_step

aten = torch.ops.aten


def trace(configuration: Configuration) -> tuple[object, ...]:
    found = simulate_step(configuration).trace
    return [astuple(each) for each in found.allocations], found.events, found.marks


@pytest.mark.parametrize("model", MODEL_KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_traces_are_those_of_operators_that_run(loss: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp16", "fp32"):
        configuration = random_steps(loss, precision, 1, 1, seed=5, options=True, models=[model])[0]
        meta_results._KNOWN.clear()
        first, again = trace(configuration), trace(configuration)
        with monkeypatch.context() as patched:
            patched.setattr(ledger, "on_meta", lambda func, args, kwargs: func(*args, **kwargs))
            assert first == again == trace(configuration)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_arguments_that_are_equal_and_not_alike_are_told_apart() -> None:
    """1, 1.0 and True are equal, and give sums of different types."""
    for value, dtype in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64)):
        assert on_meta(aten.add.Tensor, (meta(3, dtype=torch.int64), value), {}).dtype == dtype
    for like in (meta(2, 3), meta(3, 2).t()):
        assert on_meta(aten.empty_like.default, (like,), {}).stride() == like.stride()


def test_results_are_new_and_views_are_views() -> None:
    x = meta(4, 4)
    first, second = (on_meta(aten.mul.Tensor, (x, x), {}) for _ in range(2))
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    for _ in range(2):
        for view in (on_meta(aten.t.default, (x,), {}), on_meta(aten._unsafe_view.default, (x, [16]), {})):
            assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_what_is_written_is_returned_and_what_is_resized_is() -> None:
    x = meta(4)
    assert on_meta(aten.add_.Tensor, (x, x), {}) is x
    assert on_meta(aten.resize_.default, (x, [9]), {}).shape == (9,)
    wrong = meta(3, dtype=torch.int64)
    with pytest.raises(RuntimeError):
        on_meta(aten.mm.default, (meta(2, 3), meta(2, 3)), {})
    assert on_meta(aten.copy_.default, (wrong, meta(3)), {}) is wrong


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_results, "MOST_KNOWN", 5)
    for size in range(1, 30):
        assert on_meta(aten.mul.Tensor, (meta(size), 2), {}).shape == (size,)
        assert len(meta_results._KNOWN) <= 5 + 1
