"""Device functions that both families of Triton kernels use."""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""An excluded entry: below every logit, and finite: exp(LOWEST - LOWEST) is 1, not NaN."""
LOW = tl.constexpr(-1e20)
"""The value that a running maximum begins with: above LOWEST and below every logit, so that exp(LOWEST - LOW) is 0."""

LIFT = tl.constexpr(1024.0)
"""Shares are lifted before they are rounded to 16 bit: fp16 then holds shares down to 6e-11 instead of 6e-8."""


@triton.jit
def log_add_exp(one, other):
    """Return log (exp one + exp other)."""
    top = tl.maximum(one, other)
    return top + tl.log(tl.exp(one - top) + tl.exp(other - top))


@triton.jit
def log1p(x):
    """Return log (1 + x) for x in [0, 1], to fp32 rounding of the result: 2 artanh (x / (2 + x)), by its series."""
    part = x / (2.0 + x)
    square = part * part
    series = 1.0 / 9.0 + square * (1.0 / 11.0 + square * (1.0 / 13.0))
    series = 1.0 / 3.0 + square * (1.0 / 5.0 + square * (1.0 / 7.0 + square * series))
    return 2.0 * part * (1.0 + square * series)


@triton.jit
def loss_of(others, positive):
    """Return log (1 + exp (others - positive)): the loss from the others' log-sum-exp and the target's logit.

    The log-sum-exp less the logit would be rounded to their size: at logits of 20 a loss of 1e-6 has no digits.
    """
    behind = others - positive
    return tl.maximum(behind, 0.0) + log1p(tl.exp(-tl.abs(behind)))


@triton.jit
def surplus_of(loss):
    """Return the target's share of the softmax minus one, exp (-loss) - 1, without cancellation for a loss near 0."""
    series = 1.0 - loss * 0.25 * (1.0 - loss * 0.2)
    small = loss * (1.0 - loss * 0.5 * (1.0 - loss * (1.0 / 3.0) * series))
    return -tl.where(loss < 0.1, small, 1.0 - tl.exp(-loss))
