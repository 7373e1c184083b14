"""The hidden sizes that the Triton kernels take. Imports neither torch nor Triton."""

from __future__ import annotations

DIM_STEP = 16
"""Hidden sizes are multiples of this: a matrix product wants 16 columns."""
LARGEST_DIM, LARGEST_FP32_DIM = 1024, 256
"""Largest hidden size, and that in fp32: a longer row would not fit a program's registers and shared memory."""


def refused_size(dim: int, fp32: bool = False) -> str:
    """Return the reason why the kernels do not take hidden size D in 16 bit, or in fp32; "" where they do."""
    if dim < 1 or dim % DIM_STEP or dim > LARGEST_DIM:
        return f"hidden size {dim} is no multiple of {DIM_STEP} up to {LARGEST_DIM}"
    if fp32 and dim > LARGEST_FP32_DIM:
        return (
            f"hidden size {dim} in fp32: the kernels take up to {LARGEST_FP32_DIM} in fp32 and {LARGEST_DIM} in 16 bit"
        )
    return ""
