"""The ledger's memory of a contestant: what it would allocate on a card, without one."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch

from srsplan.profiler.bench.contestants import Contestant, contestants
from srsplan.profiler.bench.inputs import make_inputs
from srsplan.profiler.bench.logits import Logits
from srsplan.profiler.bench.shapes import Shape
from srsplan.profiler.memory.ledger import Ledger
from srsplan.profiler.memory.simulated_cuda import SimulatedCuda

META = torch.device("meta")


def ledger_bytes(contestant: Contestant, shape: Shape, dtype: torch.dtype) -> int | None:
    """Return the allocated peak above the inputs of forward and backward, both gradients included.

    None for others' code, and for what does not take the shape or the type.
    """
    return _ledger_bytes(*_identity(contestant), shape, dtype) if contestant.ours else None


@lru_cache(maxsize=1024)  # it does not depend on the values, and up to a minute is long for the largest shapes
def _ledger_bytes(name: str, tokens_per_set: int, shape: Shape, dtype: torch.dtype) -> int | None:
    same = next((each for each in contestants(META) if _identity(each) == (name, tokens_per_set)), None)
    if same is None or same.run is None or same.absence(shape, dtype):
        return None
    if same.on_triton and find_spec("triton") is None:
        return None
    inputs = make_inputs(shape, Logits(), dtype, META)
    ledger, cuda = Ledger(warm_process=True), SimulatedCuda(dtype)
    with ledger, cuda:
        ledger.phase("forward")
        with cuda.autocast():
            loss = same.run(inputs, shape)
        ledger.phase("backward")
        loss.backward()
        del loss
        inputs.clear()
    return ledger.trace.peak().allocated_bytes


def _identity(contestant: Contestant) -> tuple[str, int]:
    return contestant.name, contestant.tokens_per_set
