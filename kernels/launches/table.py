"""Launch configurations as data, chosen by the padded hidden size.

test_compiled_kernels.py compiles every entry for sm_80 and sm_90, and the largest for sm_86, 89 and 100: none exceeds
the shared memory of its card, and none spills more than eight registers. They are chosen by what the compiler
says of them (operands read again from shared memory, instructions beside the products, spills); speed is unmeasured.
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLES = 2
"""Raised whenever a table below or a kernel changes: launches that autotuning found for others are not used."""


@dataclass(frozen=True)
class Launch:
    """The tiles of a kernel, and the options of its compilation."""

    block_m: int
    """Tokens of a program."""
    block_n: int
    """Items of a tile."""
    num_warps: int
    """Warps of a program."""
    num_stages: int
    """Stages of its pipeline."""


SHARED_MEMORY_BYTES = {80: 163_840, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Shared memory that a program may use, by compute capability."""

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

ASSUMED_CAPABILITY = 90
"""The capability that is assumed without a card: in the interpreter, and on the ledger's meta tensors."""
Table = dict[int, Launch]
SPAN_ITEMS = 256
"""Items of a span: with a block of rows they share one byte. Tiles divide it."""

_HOPPER = {
    "softmax_forward": {
        64: Launch(128, 128, 8, 3),
        128: Launch(128, 128, 8, 3),
        256: Launch(128, 64, 8, 2),
        512: Launch(64, 32, 8, 2),
        1024: Launch(16, 16, 8, 1),
    },
    "softmax_forward_loss": {
        64: Launch(128, 128, 8, 3),
        128: Launch(128, 128, 8, 3),
        256: Launch(128, 128, 8, 2),
        512: Launch(128, 32, 8, 2),
        1024: Launch(64, 16, 8, 2),
    },
    "softmax_backward_table": {
        64: Launch(64, 128, 8, 3),
        128: Launch(64, 128, 8, 3),
        256: Launch(64, 128, 8, 2),
        512: Launch(32, 64, 8, 2),
        1024: Launch(16, 16, 8, 1),
    },
}
_BLACKWELL = {
    "softmax_forward": {256: Launch(64, 64, 8, 2), 512: Launch(32, 32, 8, 2), 1024: Launch(16, 32, 8, 1)},
    "softmax_forward_loss": {1024: Launch(32, 16, 8, 1)},
}
"""The entries that differ from Hopper's: Blackwell's compiler needs more registers there."""
_AMPERE = {
    "softmax_forward": {
        64: Launch(128, 64, 8, 2),
        128: Launch(128, 32, 8, 2),
        256: Launch(64, 64, 8, 2),
        512: Launch(32, 32, 8, 2),
        1024: Launch(16, 16, 8, 1),
    },
    "softmax_forward_loss": {
        64: Launch(128, 64, 8, 2),
        128: Launch(128, 64, 8, 2),
        256: Launch(128, 64, 8, 2),
        512: Launch(64, 32, 8, 2),
        1024: Launch(32, 16, 8, 1),
    },
    "softmax_backward_table": {
        64: Launch(64, 128, 8, 2),
        128: Launch(64, 128, 8, 2),
        256: Launch(64, 64, 8, 2),
        512: Launch(32, 32, 8, 2),
        1024: Launch(16, 16, 8, 1),
    },
}
_FP32 = {64: Launch(32, 32, 4, 2), 128: Launch(32, 32, 4, 2), 256: Launch(32, 32, 8, 2)}


def softmax_table(kernel: str, capability: int, fp32: bool = False) -> Table:
    """Return the launches of a kernel of the full softmax, by padded hidden size; backward's tokens divide forward's.

    From sm_90 on tiles are wide enough for tensor cores that read shared memory themselves; before, they are what the
    registers hold and the smallest card has room for. sm_12x are desktop cards, with as little room.
    """
    if fp32:  # no tensor cores: registers hold the operands
        return _FP32
    if not 90 <= capability < 120:
        return _AMPERE[kernel]
    return _HOPPER[kernel] if capability < 100 else _HOPPER[kernel] | _BLACKWELL.get(kernel, {})


def launch_for(table: Table, dim: int) -> Launch:
    """Return the table's launch for hidden size D; ValueError above the largest."""
    for width, launch in table.items():
        if dim <= width:
            return launch
    raise ValueError(f"hidden size {dim} is above {max(table)}, the largest the kernels hold")
