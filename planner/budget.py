"""The budget of a plan: reserved bytes of a card, after the CUDA context and a margin for being wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srsplan.models.errors import InputError, NothingFits
from srsplan.models.units import format_gb, format_gib
from srsplan.profiler.probes.catalogue import Gpu, load_gpus

CONTEXT_BYTES = 640 << 20
"""CUDA context and kernels' code outside the allocator: an assumption until a profile measures it."""

DEFAULT_MARGIN = 0.02
"""Share of the budget kept free: the upper bound of a prediction already holds the worst measured fragmentation."""

PLAIN_NUMBER = 10**6
"""Below this many bytes somebody wrote gigabytes without their unit."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes a training process may take of a card."""

    bytes: int
    margin_bytes: int
    gpu: str
    """The card it is meant for."""
    context_bytes: int = CONTEXT_BYTES
    context_basis: str = "assumed"
    """Source of the context's size."""

    @property
    def usable_bytes(self) -> int:
        """Bytes that the allocator may reserve."""
        return self.bytes - self.context_bytes - self.margin_bytes

    def for_usable(self, usable_bytes: int) -> int:
        """Return the smallest budget, in bytes, of which at least `usable_bytes` are left after context and margin."""
        share = self.margin_bytes / self.bytes
        return math.ceil((usable_bytes + self.context_bytes) / (1 - share)) + 1

    def describe(self) -> str:
        """Return both units of the budget in one line."""
        return (
            f"{format_gb(self.bytes)} = {format_gib(self.bytes)}, less CUDA context {format_gib(self.context_bytes)} "
            f"({self.context_basis}) and margin {format_gib(self.margin_bytes)}: {format_gib(self.usable_bytes)} usable"
        )


def assumed_gpu(total: int) -> Gpu:
    """Return the card to calculate times for where none is named: the smallest that holds the budget."""
    large_enough = [gpu for gpu in load_gpus() if gpu.capacity_bytes >= total]
    if not large_enough:
        largest = max(load_gpus(), key=lambda gpu: gpu.capacity_bytes)
        raise InputError(
            f"--budget {format_gb(total)} is more than any card of the catalogue has",
            f"the largest is {largest.name} with {format_gb(largest.capacity_bytes)}; srsplan plans for one GPU",
        )
    return min(large_enough, key=lambda gpu: (gpu.capacity_bytes, -gpu.bandwidth_bytes_s))


def make_budget(total: int | None, gpu: Gpu, margin: float = DEFAULT_MARGIN) -> Budget:
    """Return the budget of `total` bytes, or of the whole card.

    InputError where the card has less, NothingFits where nothing is left for a training process.
    """
    if not 0 <= margin < 0.5:
        raise InputError(f"--margin {margin} is outside [0, 0.5)", "0.02 keeps 2% of the budget free")
    size = gpu.capacity_bytes if total is None else total
    if size > gpu.capacity_bytes:
        raise InputError(
            f"--budget {format_gb(size)} is more than {gpu.name} has ({format_gb(gpu.capacity_bytes)})",
            "give a smaller budget or a larger card; `srsplan gpus` lists them",
        )
    budget = Budget(bytes=size, margin_bytes=int(size * margin), gpu=gpu.name)
    if budget.usable_bytes <= 0:
        context = format_gib(CONTEXT_BYTES)
        message = f"--budget {format_gb(size)} leaves nothing after CUDA context ({context}) and margin"
        if size < PLAIN_NUMBER:
            raise InputError(message, f"a plain number is bytes: did you mean {size}GB?")
        raise NothingFits(f"nothing fits: {message}", "give several GB: the model comes on top of the context")
    return budget
