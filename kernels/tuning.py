"""Launch configurations as data, chosen by the padded hidden size.

tests/test_compiled_kernels.py compiles every entry for sm_80 and sm_90, and the largest for sm_86, 89 and 100: none
exceeds the shared memory of its card, and none spills more than four registers. One table serves all families until
speed is measured on one: it says what fits, not what is fastest.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Tokens of a program, items of a tile, warps of a program, stages of its pipeline."""

    tokens: int
    tile: int
    warps: int
    stages: int


SHARED_MEMORY_BYTES = {80: 163_840, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""What a program may use, by compute capability."""

SAMPLED_FORWARD = {
    64: Launch(32, 32, 4, 2),
    128: Launch(32, 32, 4, 2),
    256: Launch(32, 32, 8, 2),
    512: Launch(32, 32, 8, 2),
    1024: Launch(32, 16, 8, 2),
}
SAMPLED_BACKWARD = {
    64: Launch(32, 32, 4, 2),
    128: Launch(32, 32, 8, 2),
    256: Launch(32, 32, 8, 2),
    512: Launch(32, 16, 8, 1),
    1024: Launch(16, 16, 16, 1),
}

SOFTMAX = {
    64: Launch(32, 32, 4, 2),
    128: Launch(32, 32, 4, 2),
    256: Launch(32, 32, 8, 2),
    512: Launch(32, 32, 8, 1),
    1024: Launch(16, 16, 8, 1),
}
"""Forward and both backwards: `tile` is of items."""


def launch_for(table: dict[int, Launch], dim: int) -> Launch:
    """The entry for hidden size D; ValueError above the largest."""
    for width, launch in table.items():
        if dim <= width:
            return launch
    raise ValueError(f"hidden size {dim} is above {max(table)}, the largest the kernels hold")
