"""Which calls share a launch that autotuning found, and what such a launch may change: in the interpreter."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from test_triton_sampled import errors, gradients, inputs

from srsplan.kernels import Sampling, ce
from srsplan.kernels.full_softmax.api import cce_triton
from srsplan.kernels.launches import autotune, call
from srsplan.kernels.launches.autotune import Key, Launches
from srsplan.kernels.launches.table import Launch
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.samplers.alias_table import distribution

Keys = Callable[..., set[str]]


def sampled(
    set_tokens: int = 16, log_q: bool = True, blocks: bool = False, dtype: torch.dtype = torch.float16,
    table_dtype: torch.dtype | None = None, weighted: bool = False, **options: bool,
) -> None:  # fmt: skip
    """Forward and backward of the sampled softmax: its table pays to be copied."""
    hidden, table, targets, _ = inputs((40, 30, 32, 40, 16), dtype, table_dtype or dtype)
    sampling = Sampling(tokens_per_set=set_tokens, log_q=log_q, blocks=blocks)
    gradients(
        cce_neg_triton, hidden, table, targets, 40, sampling=sampling,
        distribution=distribution(np.ones(30)) if weighted else None, **options,
    )  # fmt: skip


def full(with_grad: bool = True, catalog: int = 600) -> None:
    """Forward and backward of the full softmax; a catalog of several spans is split between programs."""
    hidden, table, targets, _ = inputs((40, catalog, 32, 1, 1), torch.float16, torch.float16)
    cce_triton(hidden.requires_grad_(with_grad), table.requires_grad_(), targets).backward()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Keys:
    """The keys under which a call looks for its launches."""

    def found(run: Callable[..., None], **changed: object) -> set[str]:
        seen: list[str] = []

        def launch_on(device: object, key: Key, default: Launch, *_: object) -> tuple[Launch, bool]:
            seen.append(str(key))
            return default, False

        monkeypatch.setattr(call, "launch_on", launch_on)
        run(**changed)
        assert len(seen) == 2
        return set(seen)

    return found


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ({"set_tokens": 1}, 0), ({"log_q": False}, 0), ({"blocks": True}, 0), ({"weighted": True}, 0),
        ({"dtype": torch.float32}, 0),
        ({"table_dtype": torch.float32, "copy_table": False}, 0), ({"deterministic": True}, 1),
        ({"table_dtype": torch.float32}, 2), ({"set_tokens": 13}, 2),
    ],
    ids=str,
)  # fmt: skip
def test_calls_that_differ_for_the_compiler_share_no_launch(keys: Keys, changed: dict[str, Any], shared: int) -> None:
    """Fixed point is backward's business. A copied table is read in hidden's type; 13 tokens stand in 16 rows."""
    assert len(keys(sampled) & keys(sampled, **changed)) == shared


@pytest.mark.parametrize(("changed", "shared"), [({"with_grad": False}, 0), ({"catalog": 200}, 1)], ids=str)
def test_calls_of_the_full_softmax_that_differ_share_no_launch(
    keys: Keys, changed: dict[str, Any], shared: int
) -> None:
    """Splitting is forward's business; without hidden's gradient blocks are others."""
    assert len(keys(full) & keys(full, **changed)) == shared


def test_another_card_compiler_or_table_has_launches_of_its_own(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = keys(sampled)
    for place, name, value in [
        (call, "capability_of", lambda device: 80), (triton, "__version__", "0.0"), (autotune, "TABLES", -1),
    ]:  # fmt: skip
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value)
            assert not usual & keys(sampled), name


def test_remembered_tokens_never_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid and spans follow today's table: programs of half the tokens would leave the other half unwritten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remembered = Launches("card", lambda run: 1.0)

    def launch_on(device: object, key: Key, default: Launch, *rest: Any) -> tuple[Launch, bool]:
        remembered.known[str(key)] = replace(default, block_m=default.block_m // 2)
        return remembered.choose(key, default, *rest)

    monkeypatch.setattr(call, "launch_on", launch_on)
    hidden, table, targets, _ = inputs((300, 1200, 32, 1, 1), torch.float16, torch.float16)
    truth = gradients(ce, hidden.double(), table.double(), targets)
    assert max(errors(gradients(cce_triton, hidden, table, targets), truth)) <= 1e-3
