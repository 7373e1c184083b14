"""What CUDA kernels take from the allocator inside one operator: invisible to any trace of tensors, so by formula.

Imports no torch: the planner's closed form evaluates the same formulas. Every size in bytes, in order of allocation.
Checked to the byte against 24 measured steps of one H200 (torch 2.11).
"""

from __future__ import annotations

MIB = 1 << 20

CUBLAS_FORWARD_BYTES = (32 * MIB, MIB)
"""Workspaces of the thread that runs forward, taken at its first matrix product and kept (Hopper; less elsewhere)."""

CUBLAS_BACKWARD_BYTES = (32 * MIB,)
"""Workspace of autograd's thread."""

SORTED_LOOKUP = 3072
"""Up to so many indices, the embedding's gradient is added without sorting and needs no temporaries."""


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not below size."""
    return -(-size // multiple) * multiple


def embedding_backward_before(tokens: int) -> tuple[int, int, int, int]:
    """Sorted indices, original positions (both live to the end); then, freed again, the range and the radix sort."""
    return tokens * 8, tokens * 8, tokens * 8, tokens * 16 + tokens // 4608 * 1024 + 65536


def embedding_backward_after(tokens: int, catalog: int, dim: int) -> tuple[tuple[int, bool], ...]:
    """Beside the gradient, (bytes, momentary): a momentary one is freed before the next is allocated.

    Segment counts and their scan, segment starts and their scan, then the partial sums.
    """
    segments = min(tokens, catalog)
    parts = tokens // 10 + segments
    return (
        (tokens * 8, False),
        (8, False),
        (tokens // 8, True),
        (segments * 8, False),
        (segments * 8, False),
        (segments // 8, True),
        (8, False),
        (parts * 8, False),
        (parts * round_up(dim, 32) * 4, False),
    )


def attention_backward(batch: int, heads: int, length: int, head_dim: int) -> tuple[int, int]:
    """Fused attention: fp32 row sums and the fp32 accumulator of the query's gradient."""
    rows = batch * heads * round_up(length, 128)
    return rows * 4, rows * round_up(head_dim, 32) * 4
