"""Out of memory in the optimizer: the step is repeated, and what torch left half-made is cleared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import ONE, TINY, trainer

from srsplan.models.training.callbacks import NoCallbacks

STILL = replace(TINY, architecture=replace(TINY.architecture, dropout=0.0))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("failing", [1, 2, 5])
def test_out_of_memory_while_moments_are_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, optimizer: Any
) -> None:
    """The n-th moment finds no memory in the first step: the run ends with the weights of one where all of them do."""
    settings = replace(ONE, optimizer=optimizer)
    whole = trainer(tmp_path / "whole", STILL, settings)
    whole.run(NoCallbacks())
    zeros_like, calls = torch.zeros_like, 0

    def at_times(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.53 GiB.")
        return zeros_like(*arguments, **options)

    retried = trainer(tmp_path / "retried", STILL, settings)
    monkeypatch.setattr(torch, "zeros_like", at_times)
    retried.run(NoCallbacks())
    assert calls > failing
    assert retried.progress.pass_tokens < STILL.tokens
    for name, weight in whole.step.model.state_dict().items():
        assert torch.allclose(weight, retried.step.model.state_dict()[name], atol=2e-4), name
