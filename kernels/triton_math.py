"""Device functions that both families of Triton kernels use."""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Below every logit, and finite: exp(LOWEST - LOWEST) is 1, not NaN."""


@triton.jit
def log_add_exp(one, other):
    """Return log (exp one + exp other)."""
    top = tl.maximum(one, other)
    return top + tl.log(tl.exp(one - top) + tl.exp(other - top))


@triton.jit
def surplus_of(loss):
    """Return the target's share of the softmax minus one, without cancellation for a loss near 0."""
    return -tl.where(loss < 0.01, loss - loss * loss * 0.5, 1.0 - tl.exp(-loss))
