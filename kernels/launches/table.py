"""Launch configurations as data, chosen by the padded hidden size. Speed is unmeasured. Imports no torch.

examples/compiled_kernels.py compiles every entry for every family of cards; its tables are kept beside it, and
test_compiled_kernels.py wants every entry in them, within shared memory and registers. Of what fits, those of the
sampled softmax are chosen by what the compiler says of them:

- asynchronous copies are in flight beside the products: three stages, and five where items are looked up first;
- the warps that a multiprocessor holds are eight or more;
- then the fewest instructions per row; a fifth more is paid for twelve warps, or for two programs in the place of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


Table = dict[int, Launch]

SHARED_MEMORY_BYTES = {80: 163_840, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Shared memory that a program may use, by compute capability."""

SAMPLED_FORWARD = {
    64: Launch(32, 32, 4, 3),
    128: Launch(32, 32, 4, 3),
    256: Launch(32, 32, 4, 3),
    512: Launch(32, 32, 8, 3),
    1024: Launch(32, 32, 8, 3),
}
SAMPLED_BACKWARD = {
    64: Launch(32, 64, 4, 3),
    128: Launch(32, 32, 4, 3),
    256: Launch(32, 32, 4, 3),
    512: Launch(32, 32, 8, 3),
    1024: Launch(16, 16, 8, 3),
}

MOST_SET_TOKENS, SMALL_SET_TOKENS = 32, 16
"""Tokens of a set that one program takes at most; and up to how many a set has launches of its own, of 16 rows."""
_SAMPLED = {
    "sampled_forward": SAMPLED_FORWARD,
    "sampled_backward": SAMPLED_BACKWARD,
    "sampled_forward_small": {
        64: Launch(16, 64, 4, 3),
        128: Launch(16, 64, 4, 3),
        256: Launch(16, 64, 4, 3),
        512: Launch(16, 32, 4, 3),
        1024: Launch(16, 16, 4, 3),
    },
    "sampled_backward_small": {
        64: Launch(16, 64, 4, 3),
        128: Launch(16, 32, 4, 3),
        256: Launch(16, 32, 4, 3),
        512: Launch(16, 16, 4, 3),
        1024: Launch(16, 16, 8, 3),
    },
}
"""Hopper's, and what the others have where nothing else is said."""
_SAMPLED_BLACKWELL = {"sampled_backward": {256: Launch(32, 16, 4, 3), 512: Launch(32, 16, 8, 3)}}
"""Its compiler needs more registers there."""
_SAMPLED_AMPERE = {
    "sampled_forward": {512: Launch(32, 16, 4, 3), 1024: Launch(32, 16, 8, 3)},
    "sampled_backward": {64: Launch(32, 32, 4, 3)},
    "sampled_forward_small": {256: Launch(16, 32, 4, 3), 1024: Launch(16, 16, 8, 3)},
    "sampled_backward_small": {64: Launch(16, 32, 4, 3)},
}
"""Atomic additions of four numbers at once are Hopper's: before, wide tiles spend registers on places."""
_SAMPLED_DESKTOP = {
    "sampled_forward": {256: Launch(32, 16, 4, 3), 512: Launch(32, 32, 8, 3), 1024: Launch(32, 16, 8, 2)},
    "sampled_backward": {256: Launch(32, 16, 4, 3), 512: Launch(32, 16, 8, 3), 1024: Launch(16, 16, 8, 1)},
    "sampled_forward_small": {128: Launch(16, 32, 4, 3), 512: Launch(16, 16, 4, 3)},
    "sampled_backward_small": {256: Launch(16, 16, 4, 3), 512: Launch(16, 16, 8, 3), 1024: Launch(16, 16, 8, 1)},
}
"""Cards with 99 KiB of shared memory."""
_SAMPLED_BACKWARD_HEAVY = {
    64: Launch(32, 32, 4, 3),
    128: Launch(32, 32, 8, 3),
    256: Launch(32, 32, 8, 3),
    512: Launch(32, 16, 8, 3),
    1024: Launch(16, 16, 8, 1),
}
"""For every card, where items are looked up or sums are in fixed point: a thread holds more, and has half the sums."""
_SAMPLED_WIDE = {"sampled_forward": {1024: Launch(32, 16, 8, 3)}}
_SAMPLED_WIDE_AMPERE = {
    "sampled_forward": {512: Launch(32, 16, 8, 3), 1024: Launch(32, 16, 8, 1)},
    "sampled_backward": {512: Launch(32, 16, 8, 1), 1024: Launch(16, 16, 8, 1)},
}
_SAMPLED_WIDE_DESKTOP = {
    "sampled_forward": {512: Launch(32, 16, 8, 3), 1024: Launch(16, 16, 8, 1)},
    "sampled_backward": {512: Launch(32, 16, 8, 1), 1024: Launch(16, 16, 8, 1)},
}
"""Where the rows of a tile are in fp32. Backward of D 1024 has no room then on cards with 99 KiB."""
_SAMPLED_FP32 = {
    "sampled_forward": {64: Launch(32, 16, 4, 3), 128: Launch(32, 16, 8, 3), 256: Launch(32, 16, 8, 3)},
    "sampled_backward": {64: Launch(32, 16, 4, 3), 128: Launch(32, 16, 8, 3), 256: Launch(32, 16, 8, 3)},
}

_BLOCKS = {
    "blocks_forward": {
        64: Launch(32, 32, 4, 5),
        128: Launch(32, 32, 4, 5),
        256: Launch(32, 32, 4, 5),
        512: Launch(32, 32, 8, 5),
        1024: Launch(16, 16, 8, 5),
    },
    "blocks_backward": {
        64: Launch(32, 32, 4, 4),
        128: Launch(32, 32, 4, 4),
        256: Launch(32, 32, 4, 4),
        512: Launch(32, 32, 8, 3),
        1024: Launch(16, 16, 8, 3),
    },
}
"""Items are at most those of a block. Forward reads the items of a tile before its rows: with five stages one tile's
rows are copied while another's are used."""
_BLOCKS_WIDE = {512: Launch(32, 16, 8, 5), 1024: Launch(16, 16, 8, 3)}
"""Forward where the rows of a tile are in fp32."""
_BLOCKS_FP32 = {64: Launch(32, 32, 8, 3), 128: Launch(16, 16, 4, 3), 256: Launch(16, 16, 4, 3)}


def blocks_table(kernel: str, fp32: bool = False, wide: bool = False) -> Table:
    """Return the launches of a kernel of the sampled softmax with negatives in blocks, by padded hidden size.

    `wide`: rows of the table are in fp32 beside 16-bit hidden states.
    """
    if fp32:
        return _BLOCKS_FP32
    return _BLOCKS[kernel] | (_BLOCKS_WIDE if wide and kernel == "blocks_forward" else {})


ASSUMED_CAPABILITY = 90
"""The capability that is assumed without a card: in the interpreter, and on the ledger's meta tensors."""
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
    "softmax_forward": {
        128: Launch(128, 64, 8, 3),
        256: Launch(64, 64, 8, 2),
        512: Launch(32, 32, 8, 2),
        1024: Launch(16, 32, 8, 1),
    },
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


def sampled_table(
    kernel: str, capability: int, set_tokens: int, *, fp32: bool = False, wide: bool = False, looked_up: bool = False,
    deterministic: bool = False,
) -> Table:  # fmt: skip
    """Return the launches of a kernel of the sampled softmax for sets of some tokens, by padded hidden size.

    `fp32` is hidden's type, `wide` a table in fp32 beside 16-bit hidden states; `looked_up` says that items are loaded
    (from an alias table, a list, the batch) before their rows are: each load of the chain takes a stage.
    """
    if fp32:  # no tensor cores: registers hold the operands
        found = _SAMPLED_FP32[kernel]
    elif kernel == "sampled_backward" and (looked_up or deterministic):
        found = _SAMPLED_BACKWARD_HEAVY
    else:
        found = _sampled_family(kernel + "_small" * (set_tokens <= SMALL_SET_TOKENS), capability)
    if wide:
        found = found | _sampled_wide(capability).get(kernel, {})
    most = SMALL_SET_TOKENS if set_tokens <= SMALL_SET_TOKENS else MOST_SET_TOKENS
    return {dim: _of_sets(each, most, 2 if looked_up else 0) for dim, each in found.items()}


def _sampled_wide(capability: int) -> dict[str, Table]:
    if 90 <= capability < 120:
        return _SAMPLED_WIDE
    return _SAMPLED_WIDE_AMPERE if capability == 80 else _SAMPLED_WIDE_DESKTOP


def _of_sets(launch: Launch, most_tokens: int, more_stages: int) -> Launch:
    stages = launch.num_stages + (more_stages if launch.num_stages > 1 else 0)
    return replace(launch, block_m=min(launch.block_m, most_tokens), num_stages=stages)


def _sampled_family(name: str, capability: int) -> Table:
    if 90 <= capability < 120:
        return _SAMPLED[name] | (_SAMPLED_BLACKWELL.get(name, {}) if capability >= 100 else {})
    return _SAMPLED[name] | _SAMPLED_AMPERE[name] | ({} if capability == 80 else _SAMPLED_DESKTOP[name])


def launch_for(table: Table, dim: int) -> Launch:
    """Return the table's launch for hidden size D; ValueError above the largest."""
    for width, launch in table.items():
        if dim <= width:
            return launch
    raise ValueError(f"hidden size {dim} is above {max(table)}, the largest the kernels hold")
