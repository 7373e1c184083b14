"""Workspaces that CUDA kernels take inside one operator: no trace of tensors shows them, so they are formulas.

Imports no torch: the planner's closed form evaluates the same formulas, on whole arrays of configurations.
Every size is in bytes, in the order of allocation. They are checked to the byte against 24 measured steps of one H200
(torch 2.11).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Size = TypeVar("Size", int, NDArray[np.int64])

MIB = 1 << 20

CUBLAS_FORWARD_BYTES = (32 * MIB, MIB)
"""Workspaces of the thread that runs forward, taken at its first matrix product and kept (Hopper; less elsewhere)."""

CUBLAS_BACKWARD_BYTES = (32 * MIB,)
"""Workspace of autograd's thread."""

SORTED_LOOKUP = 3072
"""Up to so many indices, the embedding's gradient is added without sorting and needs no temporaries."""


def round_up(size: Size, multiple: int) -> Size:
    """Return the smallest multiple that is not below size."""
    return -(-size // multiple) * multiple


def embedding_backward_before(tokens: Size) -> tuple[Size, Size, Size, Size]:
    """Return the sizes of sorted indices and positions, which live to the end, then of the range and the radix sort."""
    return tokens * 8, tokens * 8, tokens * 8, tokens * 16 + tokens // 4608 * 1024 + 65536


def embedding_backward_after(tokens: Size, catalog: Size, dim: Size) -> tuple[tuple[Size, bool], ...]:
    """Return sizes beside the gradient as (bytes, momentary); a momentary one is freed before the next is allocated.

    They are segment counts and their scan, segment starts and their scan, then the partial sums.
    """
    segments = tokens - (tokens - catalog) * (tokens > catalog)  # the smaller, for integers and arrays alike
    parts = tokens // 10 + segments
    return (
        (tokens * 8, False),
        (8 + 0 * tokens, False),
        (tokens // 8, True),
        (segments * 8, False),
        (segments * 8, False),
        (segments // 8, True),
        (8 + 0 * tokens, False),
        (parts * 8, False),
        (parts * round_up(dim, 32) * 4, False),
    )


def sort(count: Size) -> tuple[Size, Size]:
    """Return what a stable sort of so many int32 takes beside its results: their numbers, and the radix sort.

    From PyTorch's source (segmented_sort_large_segments in SortStable.cu, torch 2.6 to 2.13), the radix sort as that of
    `embedding_backward_before` with smaller keys; not measured on a card yet.
    """
    return count * 8, count * 12 + count // 4608 * 1024 + 65536


def foreach_norm(tensors: int, largest: int) -> tuple[int]:
    """Return what the norms of a list of tensors take beside their results: one fp32 sum for every block of 65,536.

    Each tensor has as many as the `largest`, in elements. From PyTorch's source (foreach_tensor_norm_cuda in
    ForeachReduceOp.cu, torch 2.6 to 2.13); not measured on a card yet.
    """
    return (4 * tensors * -(-largest // 65536),)


def attention_backward(batch: Size, heads: Size, length: Size, head_dim: Size) -> tuple[Size, Size]:
    """Return the sizes of fused attention's fp32 row sums, and of the fp32 accumulator of the query's gradient."""
    rows = batch * heads * round_up(length, 128)
    return rows * 4, rows * round_up(head_dim, 32) * 4


def flash_backward(tokens: Size, sequences: Size, heads: Size, head_dim: Size) -> tuple[Size, Size]:
    """Return what FlashAttention's backward takes for packed sequences: row sums, and the query gradient's sums, fp32.

    Both have 128 rows more for every sequence. From PyTorch's source (mha_varlen_bwd in flash_api.cpp, torch 2.6 to
    2.13); not measured on a card yet.
    """
    rows = tokens + 128 * sequences
    wide = round_up(head_dim, 32) + (round_up(head_dim, 64) - round_up(head_dim, 32)) * (head_dim > 128)
    return rows * heads * 4, rows * heads * wide * 4


def efficient_backward(tokens: Size, heads: Size, head_dim: Size) -> tuple[Size, Size, Size]:
    """Return what memory-efficient attention's backward takes for packed sequences in fp32.

    The product of result and its gradient, its sums, and these transposed. From PyTorch's source
    (attention_backward.cu, torch 2.6 to 2.13); not measured on a card yet.
    """
    return tokens * heads * head_dim * 4, tokens * heads * 4, tokens * heads * 4
