"""The tensors that the Triton kernels take. Does not import Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from srsplan.kernels.launches.sizes import refused_size

TYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_inputs(hidden: Tensor, item_table: Tensor, targets: Tensor) -> None:
    """Raise ValueError for tensors that the Triton kernels do not take."""
    dim = hidden.shape[1]
    if item_table.shape[1] != dim:
        raise ValueError(f"hidden {list(hidden.shape)} and item_table {list(item_table.shape)}: want one hidden size")
    if hidden.dtype not in TYPES or item_table.dtype not in (hidden.dtype, torch.float32):
        raise ValueError(
            f"hidden {hidden.dtype} and item_table {item_table.dtype}: want fp16, bf16 or fp32, or an fp32 table"
        )
    if reason := refused_size(dim, hidden.dtype == torch.float32):
        raise ValueError(f"{reason}; the chunked form takes any")
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {targets.dtype} {list(targets.shape)}: want int64 [{len(hidden)}]")
