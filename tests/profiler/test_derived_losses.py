"""Programs of losses and samplers, derived here and now, against the ledger: also where no shipped file has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_steps import random_steps

from srsplan.kernels.losses import Kernel, Sampler
from srsplan.models.config import Configuration
from srsplan.profiler.memory.derive import derive_step
from srsplan.profiler.memory.generic_sizes import Kind
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.memory.program import Program
from srsplan.profiler.memory.simulate import simulate_step


class Derived(MemoryModel):
    """The memory model on programs that are derived where they are asked for, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[tuple[Kind, bool], Program] = {}

    def program(self, loss: str, configuration: Configuration, many_chunks: bool) -> Program:
        """Derive the program of a configuration."""
        each = configuration
        kind = Kind(
            loss=loss, precision=each.precision, blocks=each.architecture.blocks, sampler=each.sampler,
            recompute=each.recompute, kernel=each.kernel, passes=each.several_passes,
        )  # fmt: skip
        if (kind, many_chunks) not in self._derived:
            self._derived[kind, many_chunks] = derive_step(kind, many_chunks)
        return self._derived[kind, many_chunks]


@pytest.mark.parametrize(
    ("loss", "sampler", "kernel"),
    [
        ("gbce", "adaptive-mixed", "chunked"),
        ("cce-", "adaptive-mixed", "chunked"),
        ("cce-", "adaptive", "triton"),
        ("sce", "uniform", "chunked"),
    ],
)
def test_a_derived_program_equals_the_ledger(loss: str, sampler: Sampler, kernel: Kernel) -> None:
    """With candidates of any number, which the program knows nothing of."""
    model, seen = Derived(), 0
    for each in random_steps(loss, "fp16", 1, 5, seed=11, options=True):
        configuration = replace(each, sampler=sampler, kernel=kernel, recompute=False)
        if not configuration.several_passes:
            continue
        allocated = int(model.allocated([configuration])[0])
        assert allocated == pytest.approx(simulate_step(configuration).allocated_bytes, rel=1e-4), configuration
        seen += 1
    assert seen >= 2
