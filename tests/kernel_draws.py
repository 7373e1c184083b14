"""The draws of the Triton kernels as a tensor, for tests in the interpreter and on a card."""

from __future__ import annotations

from srsplan.kernels.sampled_softmax.negatives import triton_draws as kernel_draws

__all__ = ["kernel_draws"]
