"""The hidden sizes and types that the Triton kernels take. Does not import Triton."""

from __future__ import annotations

import torch
from torch import Tensor

DIM_STEP = 16
"""Hidden sizes are multiples of this: a matrix product wants 16 columns."""
LARGEST_DIM, LARGEST_FP32_DIM = 1024, 256
"""Largest hidden size, and that in fp32: a longer row would not fit a program's registers and shared memory."""

TYPES = (torch.float16, torch.bfloat16, torch.float32)


def refused_size(dim: int, dtype: torch.dtype | None = None) -> str:
    """Return the reason why the kernels do not take hidden size D in a type (16 bit without one); "" where they do."""
    if dim < 1 or dim % DIM_STEP or dim > LARGEST_DIM:
        return f"hidden size {dim} is no multiple of {DIM_STEP} up to {LARGEST_DIM}"
    if dtype == torch.float32 and dim > LARGEST_FP32_DIM:
        return (
            f"hidden size {dim} in fp32: the kernels take up to {LARGEST_FP32_DIM} in fp32 and {LARGEST_DIM} in 16 bit"
        )
    return ""


def check_inputs(hidden: Tensor, item_table: Tensor, targets: Tensor) -> None:
    """Raise ValueError for tensors that the Triton kernels do not take."""
    dim = hidden.shape[1]
    if item_table.shape[1] != dim:
        raise ValueError(f"hidden {list(hidden.shape)} and item_table {list(item_table.shape)}: want one hidden size")
    if hidden.dtype not in TYPES or item_table.dtype not in (hidden.dtype, torch.float32):
        raise ValueError(
            f"hidden {hidden.dtype} and item_table {item_table.dtype}: want fp16, bf16 or fp32, or an fp32 table"
        )
    if reason := refused_size(dim, hidden.dtype):
        raise ValueError(f"{reason}; the chunked form takes any")
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {targets.dtype} {list(targets.shape)}: want int64 [{len(hidden)}]")
