"""The kernels' check and the facts of the doctor on a real card: what a user's `train` and `doctor` do first."""

from __future__ import annotations

from pathlib import Path

import pytest

from srsplan.kernels.losses import SAMPLERS
from srsplan.kernels.verification.subject import RunShape, Subject
from srsplan.planner.budget import CONTEXT_BYTES
from srsplan.profiler.probes.card import CardFacts, ask_card
from srsplan.profiler.probes.kernel_check import KernelCheck, card_here

SHAPES = {"cce": RunShape(tokens=8192, catalog=100_000), "cce-": RunShape(tokens=8192, catalog=100_000, negatives=512)}


@pytest.mark.parametrize(("dtype", "dim"), [("float16", 256), ("bfloat16", 64), ("float32", 128), ("float16", 1024)])
@pytest.mark.parametrize("loss", SHAPES)
def test_the_kernels_pass_their_check(
    loss: str, dtype: str, dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cases of every sampler, memory included, within a minute; and what was found is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    subject = Subject(loss=loss, dim=dim, dtype=dtype, tokens_per_set=32 if loss == "cce-" else 1)
    check = KernelCheck(card=card_here())
    verdict = check.run(subject, SHAPES[loss], SAMPLERS if loss == "cce-" else ())
    assert verdict.faults == []
    times = verdict.times[str(SHAPES[loss])]
    assert times.triton_ms
    assert times.chunked_ms
    assert verdict.seconds < 60
    assert check.known(subject, SHAPES[loss]) == verdict


def test_the_card_is_as_plans_assume() -> None:
    facts = ask_card()
    assert isinstance(facts, CardFacts), facts
    assert facts.segments_grow
    assert facts.context_bytes
    assert facts.context_bytes <= CONTEXT_BYTES
    assert facts.free_bytes + facts.context_bytes <= facts.total_bytes
