"""What operators return on meta tensors, remembered: much of it is worked out in Python, half a millisecond each time.

A step has thousands of operators, and the same ones again and again. An operator whose results are new tensors, and
that changes none of its arguments, has equal results for arguments of equal shapes, strides, types and values: they are
made anew of the shapes that were found the first time. An operator that writes its first argument returns it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Spec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and type of a result."""

_KNOWN: dict[Hashable, tuple[Spec | None, ...] | None] = {}
"""Results by operator and arguments, None where they cannot be made anew."""

MOST_KNOWN = 1 << 17
"""Results that are remembered, some 100 MB; then all are forgotten."""


def on_meta(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what `func(*args, **kwargs)` returns, from memory where that is the same."""
    if not _makes_new_tensors(func):
        return args[0] if _writes_its_first(func) else func(*args, **kwargs)
    try:
        key = func, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items())
        known = _KNOWN.get(key, ())
    except TypeError:  # of a value that cannot be told from others
        return func(*args, **kwargs)
    if known is None:
        return func(*args, **kwargs)
    if not known:
        result = func(*args, **kwargs)
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = _specs(result, (*args, *kwargs.values()))
        return result
    found = tuple(
        None if spec is None else torch.empty_strided(*spec[:2], dtype=spec[2], device="meta") for spec in known
    )
    return found[0] if len(func._schema.returns) == 1 else found


@cache
def _makes_new_tensors(func: Any) -> bool:
    """Tell whether an operator changes no argument, and its results are said to be new."""
    schema = func._schema
    return not schema.is_mutable and all(
        each.alias_info is None and isinstance(each.type, torch.TensorType) for each in schema.returns
    )


@cache
def _writes_its_first(func: Any) -> bool:
    """Tell whether an operator writes its first argument alone, whose shape stays as it is, and returns it."""
    schema = func._schema
    written = [each.alias_info is not None and each.alias_info.is_write for each in schema.arguments]
    returned = [each.alias_info is not None and each.alias_info.is_write for each in schema.returns]
    return torch.Tag.inplace_view not in func.tags and returned == [True] and written[0] and sum(written) == 1


def _key(value: Any) -> Hashable:
    """Return a value that is equal for equal arguments alone; TypeError for what there is none of."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value  # 1, 1.0 and True are equal


def _specs(result: Any, arguments: tuple[Any, ...]) -> tuple[Spec | None, ...] | None:
    """Return how to make a result anew; None where it shares storage, or does not lie at the beginning of one."""
    leaves = result if isinstance(result, tuple) else (result,)
    tensors = [each for each in leaves if each is not None]
    used = {each.untyped_storage()._cdata for each in tree_leaves(arguments) if isinstance(each, Tensor)}
    specs = [_spec(each) for each in leaves]
    storages = {each.untyped_storage()._cdata for each in tensors if isinstance(each, Tensor)}
    whole = all(
        spec is not None
        and each.is_meta
        and not each.storage_offset()
        and each.untyped_storage().nbytes() == _bytes(spec)
        for each, spec in zip(leaves, specs, strict=True)
        if each is not None
    )
    return tuple(specs) if whole and not storages & used and len(storages) == len(tensors) else None


def _spec(result: Any) -> Spec | None:
    if not isinstance(result, Tensor):
        return None
    return tuple(result.shape), tuple(result.stride()), result.dtype


def _bytes(spec: Spec) -> int:
    """Return the bytes of a storage that just holds a tensor."""
    shape, strides, dtype = spec
    if 0 in shape:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return (last + 1) * dtype.itemsize
