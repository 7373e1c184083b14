"""The ledger: every storage a piece of PyTorch allocates, in order, on meta tensors and without a GPU.

A dispatch mode sees each operator's results and, through weak references, each storage's end. Temporaries inside
kernels come from `scratch`. The result is a trace; its peak is the allocated peak of the caching allocator.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srsplan.profiler.memory import workspaces as scratch
from srsplan.profiler.memory.meta_results import on_meta

aten = torch.ops.aten
GRANULE_BYTES = 512
"""The caching allocator rounds every request up to this."""

MATRIX_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.mm.out, aten.addmm_.default}
ATTENTION_BACKWARD = {
    aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_cudnn_attention_backward.default,
}


@dataclass(frozen=True)
class Allocation:
    """One storage: the bytes requested, the phase and operator that made it, its shape (empty for workspaces).

    The operator of a workspace is "formula/entry" or "formula/entry/tokens"; the formula is one of `workspaces`.
    """

    requested_bytes: int
    phase: str
    operator: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def allocated_bytes(self) -> int:
        """The bytes that the caching allocator counts for it."""
        return scratch.round_up(self.requested_bytes, GRANULE_BYTES)


@dataclass
class Trace:
    """Allocations and the order in which they come and go: `events` holds +index at birth, ~index at death."""

    allocations: list[Allocation] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    """Beginnings of the phases, each as (number of events before it, its name)."""

    def peak(self, first_event: int = 0) -> Peak:
        """Return the instant with the most allocated bytes, at or after `first_event`."""
        live: set[int] = set()
        current, best, at = 0, -1, 0
        for position, event in enumerate(self.events):
            index = event if event >= 0 else ~event
            current += self.allocations[index].allocated_bytes * (1 if event >= 0 else -1)
            if current > best and position >= first_event:
                best, at = current, position
        for event in self.events[: at + 1]:
            live.add(event) if event >= 0 else live.discard(~event)
        return Peak(best, at, tuple(self.allocations[index] for index in sorted(live)))

    def start_of(self, phase: str, occurrence: int = -1) -> int:
        """Return the number of the first event in a phase's n-th occurrence; the last occurrence by default."""
        return [event for event, name in self.marks if name == phase][occurrence]


@dataclass(frozen=True)
class Peak:
    """An instant of a trace: its allocated bytes, the event it follows, and everything alive."""

    allocated_bytes: int
    event: int
    live: tuple[Allocation, ...]

    def breakdown(self, tag: Callable[[Allocation], str]) -> dict[str, int]:
        """Return the allocated bytes by tag; they add up to `allocated_bytes`."""
        sums: dict[str, int] = defaultdict(int)
        for allocation in self.live:
            sums[tag(allocation)] += allocation.allocated_bytes
        return dict(sums)


class Ledger(TorchDispatchMode):
    """Records a `Trace` of everything on meta tensors while it is active."""

    def __init__(self, warm_process: bool = False) -> None:
        """Begin a trace; with `warm_process` matrix products have run before, and their workspaces exist already."""
        super().__init__()
        self.trace = Trace()
        self._seen: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._phase = "build"
        self._workspaces = {False, True} if warm_process else set()

    def phase(self, name: str) -> None:
        """Begin a phase: allocations belong to it from here on."""
        self._phase = name
        self.trace.marks.append((len(self.trace.events), name))

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._phase == "backward" and func is aten.add.Tensor and _adds_in_place(args):
            return args[0].add_(args[1])
        fake = _fakes().get(func)
        if fake is not None:  # an operator of ours: what it allocates inside counts as well
            with self:
                return fake(*args, **(kwargs or {}))
        if func is aten.embedding_dense_backward.default and args[1].numel() > scratch.SORTED_LOOKUP:
            return self._embedding_backward(func, args)
        result = on_meta(func, args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # native_dropout allocates its mask before its result
        for tensor in reversed(tensors) if func is aten.native_dropout.default else tensors:
            self._see(tensor, str(func))
        if func in MATRIX_PRODUCTS:
            self._matrix_workspace()
        if func in ATTENTION_BACKWARD:
            batch, heads, length, head_dim = args[1].shape
            sizes = scratch.attention_backward(batch, heads, length, head_dim)
            self._temporaries(enumerate(sizes), "attention_backward/{}")
        if func is aten._foreach_norm.Scalar:
            sums = scratch.foreach_norm(len(args[0]), max(each.numel() for each in args[0]))
            self._temporaries(enumerate(sums), "foreach_norm/{}")
        if func is aten._flash_attention_backward.default:
            (tokens, heads, head_dim), sequences = args[1].shape, args[6].numel() - 1
            packed: Iterable[int] = scratch.flash_backward(tokens, sequences, heads, head_dim)
            self._temporaries(enumerate(packed), "flash_backward/{}")
        if func is aten._efficient_attention_backward.default:
            packed = scratch.efficient_backward(*args[1].shape[1:])
            self._temporaries(enumerate(packed), "efficient_backward/{}")
        if func is aten.sort.stable and args[0].dtype == torch.int32:
            self._temporaries(enumerate(scratch.sort(args[0].numel())), f"sort/{{}}/{args[0].numel()}")
        return result

    def _allocate(self, size: int, operator: str, shape: Iterable[int] = (), dtype: str = "") -> int:
        self.trace.allocations.append(Allocation(size, self._phase, operator, tuple(shape), dtype))
        index = len(self.trace.allocations) - 1
        self.trace.events.append(index)
        return index

    def _see(self, tensor: Tensor, operator: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen or not tensor.is_meta or not storage.nbytes():
            return
        index = self._allocate(storage.nbytes(), operator, tensor.shape, str(tensor.dtype))

        def end(_: object) -> None:
            del self._seen[key]
            self.trace.events.append(~index)

        self._seen[key] = index, weakref.ref(storage, end)

    def _temporaries(self, sizes: Iterable[tuple[int, int]], operator: str) -> None:
        indices = [self._allocate(size, operator.format(entry)) for entry, size in sizes]
        self.trace.events.extend(~index for index in reversed(indices))

    def _matrix_workspace(self) -> None:
        """Allocate what cuBLAS takes at the first matrix product of a thread, forward's or autograd's, and keeps."""
        backward = self._phase == "backward"
        if backward in self._workspaces:
            return
        self._workspaces.add(backward)
        for size in scratch.CUBLAS_BACKWARD_BYTES if backward else scratch.CUBLAS_FORWARD_BYTES:
            self._allocate(size, "cublas/0")

    def _embedding_backward(self, func: Any, args: tuple[Any, ...]) -> Tensor:
        tokens, catalog, dim = args[1].numel(), args[2], args[0].shape[-1]
        operator = f"embedding_backward/{{}}/{tokens}"
        before = list(enumerate(scratch.embedding_backward_before(tokens)))
        kept = [self._allocate(size, operator.format(entry)) for entry, size in before[:2]]
        self._temporaries(before[2:], operator)
        result: Tensor = func(*args)
        self._see(result, str(func))
        after = scratch.embedding_backward_after(tokens, catalog, dim)
        for entry, (size, momentary) in enumerate(after, start=len(before)):
            index = self._allocate(size, operator.format(entry))
            if momentary:
                self.trace.events.append(~index)
            else:
                kept.append(index)
        self.trace.events.extend(~index for index in reversed(kept))
        return result


@cache
def _fakes() -> dict[Any, Callable[..., Any]]:
    """Return fake implementations of srsplan's own operators, by operator; none where Triton is not installed."""
    try:
        from srsplan.kernels.block_softmax import operators as blocks
        from srsplan.kernels.full_softmax import operators as softmax
        from srsplan.kernels.sampled_softmax import operators as sampled
    except ImportError:
        return {}
    operators = torch.ops.srsplan
    return {
        operators.block_softmax.default: blocks.block_softmax_fake,
        operators.block_softmax_backward.default: blocks.block_softmax_backward_fake,
        operators.sampled_softmax.default: sampled.sampled_softmax_fake,
        operators.sampled_softmax_backward.default: sampled.sampled_softmax_backward_fake,
        operators.full_softmax.default: softmax.full_softmax_fake,
        operators.full_softmax_backward.default: softmax.full_softmax_backward_fake,
    }


def _adds_in_place(args: tuple[Any, ...]) -> bool:
    """Tell whether autograd would add in place, into a gradient that nobody else holds.

    It never does under a dispatch mode, so the ledger does it. Held by nobody else means 4 references to the tensor
    (input buffer, Python wrapper, two on the stack) and 2 to its storage.
    """
    first, second = args[:2]
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and first.shape == second.shape
        and first.dtype == second.dtype
        and first.is_contiguous()
        and first._use_count() == 4  # type: ignore[attr-defined]
        and torch._C._storage_Use_Count(first.untyped_storage()._cdata) == 2
    )
