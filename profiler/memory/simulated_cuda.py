"""CUDA's behaviour that meta tensors lack: autocast with its weight cache, fused dropout and attention, fused Adam.

`torch.autocast` knows no meta device, so its policy is imitated: one function mode that casts as CUDA's would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

# https://docs.pytorch.org/docs/stable/amp.html: CUDA ops that autocast to 16 bit, and to fp32
TO_HALF = {
    F.linear, torch.bmm, torch.matmul, torch.mm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__,
    Tensor.bmm, Tensor.mm,
}  # fmt: skip
TO_SINGLE = {
    F.layer_norm, F.nll_loss, F.softplus, F.log_softmax, F.softmax, torch.softmax, torch.log_softmax, torch.exp,
    torch.log, torch.logsumexp, Tensor.exp, Tensor.log, Tensor.logsumexp,
}  # fmt: skip


class SimulatedCuda(TorchFunctionMode):
    """Inside, functions on meta tensors allocate what they would on CUDA. `autocast()` is its autocast."""

    def __init__(self, dtype: torch.dtype, attention: str = "flash") -> None:
        """Take autocast's `dtype`, fp32 for none; `attention` is "flash" or "cudnn", in fp32 always "efficient"."""
        super().__init__()
        self.dtype, self.attention = dtype, attention
        self._active = False
        self._weights: dict[int, Tensor] = {}

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Cast as CUDA's autocast does, and keep 16-bit copies of weights until the end."""
        self._active = self.dtype != torch.float32
        try:
            yield
        finally:
            self._active = False
            self._weights.clear()

    @contextmanager
    def recompute(self) -> Iterator[None]:
        """Do the same for what backward computes once more, because autograd's hooks leave function modes behind."""
        with self, self.autocast():
            yield

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        if not any(isinstance(value, Tensor) and value.is_meta for value in args):
            return func(*args, **keywords)
        if func is F.dropout:
            return _dropout(*args, **keywords)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **keywords)
        if self._active and "out" not in keywords:
            if func is F.cross_entropy:
                return self._cross_entropy(*args, **keywords)
            dtype = self.dtype if func in TO_HALF else torch.float32 if func in TO_SINGLE else None
            if dtype is not None:
                # The last argument is cast first, as the compiled wrapper does
                args = tuple([self._cast(value, dtype) for value in reversed(args)][::-1])
        return func(*args, **keywords)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        weight = value.is_leaf and value.requires_grad and not value._is_view()
        if not weight or dtype != self.dtype:
            return value.to(dtype)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(dtype)
        return self._weights[id(value)]

    def _cross_entropy(self, scores: Tensor, target: Tensor, **keywords: Any) -> Tensor:
        # log-softmax keeps the 16-bit type it is asked for; the likelihood is on the fp32 list
        likelihood = aten._log_softmax(scores, 1, False).float()
        chosen = {name: keywords[name] for name in ("ignore_index", "reduction") if name in keywords}
        return F.nll_loss(likelihood, target, **chosen)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float = 0.0, is_causal: bool = False
    ) -> Any:
        if self._active:
            query, key, value = (self._cast(each, self.dtype) for each in (query, key, value))
        grad = query.requires_grad
        if query.dtype == torch.float32:
            operator = aten._scaled_dot_product_efficient_attention
            return operator(query, key, value, None, grad, dropout_p, is_causal)[0]
        if self.attention == "cudnn":
            operator = aten._scaled_dot_product_cudnn_attention
            return operator(query, key, value, None, grad, dropout_p, is_causal)[0]
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return aten.native_dropout(x, p, True)[0] if training and p else x


@contextmanager
def fused_optimizers_on_meta() -> Iterator[None]:
    """Allow fused Adam and foreach norms on meta tensors: they refuse them by name only, their operators take them."""
    optimizer: Any = sys.modules["torch.optim.optimizer"]
    clipping: Any = sys.modules["torch.nn.utils.clip_grad"]
    devices, has_foreach = optimizer._get_fused_kernels_supported_devices, clipping._has_foreach_support
    optimizer._get_fused_kernels_supported_devices = lambda: [*devices(), "meta"]
    clipping._has_foreach_support = lambda tensors, device: True
    try:
        yield
    finally:
        optimizer._get_fused_kernels_supported_devices = devices
        clipping._has_foreach_support = has_foreach
