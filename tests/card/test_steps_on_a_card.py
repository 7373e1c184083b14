"""Real training steps on a card: what they allocate and reserve, and what happens where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration
from srsplan.planner.budget import make_budget
from srsplan.planner.confirm import confirm
from srsplan.planner.search import Prices, Space, recommend
from srsplan.planner.workload import WorstCase
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.cuda_probe import CudaProbe
from srsplan.profiler.probes.detect import detect_gpu
from srsplan.profiler.probes.device import find_device

MODEL = MemoryModel()


def probe() -> CudaProbe:
    found = find_device(detect_gpu(), timeout_s=200.0).probe
    assert isinstance(found, CudaProbe)
    return found


def some_step(loss: str) -> Configuration:
    kind = LOSSES[loss]
    negatives = (kind.usual_negatives or 256) if kind.sampled else None
    return Configuration(
        loss=loss, catalog=100_000, batch_size=64, seq_len=128, negatives=negatives,
        tokens_per_set=32 if kind.shares_negatives else 1, pass_tokens=3000,
    )  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"recompute": True},
    "in passes": {"pass_tokens": 1500},
    "in passes of few sequences": {"pass_sequences": 20},
    "on Triton": {"kernel": "triton"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_takes_what_was_predicted(loss: str, variant: str) -> None:
    if variant == "on Triton" and not LOSSES[loss].chunked:
        pytest.skip("the eager losses have one form")
    configuration = replace(some_step(loss), **VARIANTS[variant])
    found = probe().run(configuration)
    assert found.status == "ok", found.error_tail
    assert found.allocated_bytes == pytest.approx(int(MODEL.allocated([configuration])[0]), rel=0.005)
    assert found.reserved_bytes == pytest.approx(lifetime.steady(configuration, MODEL.program), rel=0.02)


@pytest.mark.parametrize("sampler", ["popularity", "in-batch"])
@pytest.mark.parametrize("loss", ["ce-", "cce-"])
def test_samplers_take_what_was_predicted(loss: str, sampler: str) -> None:
    configuration = Configuration.from_dict({**some_step(loss).to_dict(), "sampler": sampler})
    found = probe().run(configuration)
    assert found.status == "ok", found.error_tail
    assert found.allocated_bytes == pytest.approx(int(MODEL.allocated([configuration])[0]), rel=0.005)


def test_a_cap_is_hard() -> None:
    configuration = some_step("ce")
    needed = lifetime.steady(configuration, MODEL.program)
    assert replace(probe(), cap_bytes=needed // 2).run(configuration).status == "oom_device"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_plan_runs_under_its_budget(loss: str) -> None:
    """Twenty steps, an evaluation and a step more under a hard cap of 8 GB."""
    card = detect_gpu()
    space = Space(catalog=300_000, losses=(loss,), architecture=Architecture(), precision="fp16", workload=WorstCase())
    budget = make_budget(8 * 10**9, card)
    choice = recommend(space, Prices(space.workload, budget, card, MODEL)).choices[0]
    found = confirm(choice, budget, card, steps=20)
    assert found.basis.startswith("measured")
    assert found.fits
    assert found.reserved_bytes <= budget.usable_bytes
