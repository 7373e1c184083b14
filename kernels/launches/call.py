"""Starting a Triton kernel: what every operator passes beside its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
from torch import Tensor

from srsplan.kernels.launches.autotune import Form, Key, launch_on
from srsplan.kernels.launches.device import capability_of
from srsplan.kernels.launches.table import Launch

SMALLEST_BLOCK = 16
"""Rows and columns that a matrix product takes at least."""


def tuned_launch(
    kernel: str, hidden: Tensor, default: Launch, run: Callable[[Launch], object], form: Form,
    block_n: tuple[int, ...] = (),
) -> tuple[Launch, bool]:  # fmt: skip
    """Return the table's launch of a kernel, or what autotuning found; and whether `run` was called to find it."""
    key = Key(
        kernel=kernel, dim=hidden.shape[1], dtype=str(hidden.dtype), capability=capability_of(hidden.device),
        form=form, triton=triton.__version__,
    )  # fmt: skip
    return launch_on(hidden.device, key, default, run, block_n)


def row_options(dim: int) -> dict[str, Any]:
    """Return the compile-time arguments for rows of hidden size D: D, and the columns of a block that holds them."""
    return {"DIM": dim, "BLOCK_D": max(SMALLEST_BLOCK, triton.next_power_of_2(dim))}


def launch_options(launch: Launch) -> dict[str, Any]:
    """Return the compile-time arguments of a launch but its rows of a block; fp32 products are exact (no tf32)."""
    return {
        "BLOCK_N": launch.block_n,
        "PRECISION": "ieee",
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }
