"""Loss kernels side by side: what runs, on which inputs, how its time and memory are taken.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set, g tokens that share a set.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from srsplan.kernels import chunked, eager
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.profiler.memory.ledger import Ledger
from srsplan.profiler.memory.simulated_cuda import SimulatedCuda

WARM_UPS = 3
SECONDS_EACH = 1.0
"""A contestant is repeated for so long, 3 to 50 times, where nobody says how often."""

SLOW_SECONDS = 5.0
"""A call of so long is timed once."""

FLUSHED_BYTES = 256 << 20
"""Written between repeats on CUDA, so that nothing is found in the second-level cache."""

TARGET_SHARE = 0.1
"""Mean probability of the target in trained-like logits. Of SASRec trained on Amazon Video it is 0.01, of a language
model 0.4: skipping negligible work depends on it."""

Status = Literal["ok", "oom", "failed", "absent"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that every contestant is given."""

    name: str
    tokens: int
    catalog: int
    negatives: int
    dim: int = 256

    def scaled(self, factor: float) -> Shape:
        """Fewer tokens and items, for machines on which the whole takes too long; not below 64 of either."""
        if factor == 1:
            return self
        tokens, catalog = (max(min(64, size), round(size * factor)) for size in (self.tokens, self.catalog))
        name, negatives = f"{self.name} x {factor:g}", min(self.negatives, catalog - 1)
        return replace(self, name=name, tokens=tokens, catalog=catalog, negatives=negatives)


SHAPES = {
    name: Shape(name=name, tokens=tokens, catalog=catalog, negatives=negatives)
    for name, tokens, catalog, negatives in (
        ("ml20m", 131_072, 15_000, 1511),
        ("beauty", 32_768, 176_000, 511),
        ("gowalla", 327_680, 309_000, 511),
        ("zvuk", 131_072, 893_000, 2047),
        ("30music", 184_320, 909_000, 4095),
        ("megamarket", 1_638_400, 1_661_000, 1023),
    )
}
"""Of published datasets: batch size 256 to 5,120, the catalogs as they are."""


@dataclass(frozen=True)
class Inputs:
    """hidden [M, D] in the compute type, table [V, D] fp32 (a model's), table_16 [V, D] in the compute type (for peers
    that want one type), targets int64 [M]; the first three want gradients."""

    hidden: Tensor
    table: Tensor
    table_16: Tensor
    targets: Tensor

    def clear(self) -> None:
        """No gradients."""
        for tensor in (self.hidden, self.table, self.table_16):
            tensor.grad = None


Run = Callable[[Inputs, Shape], Tensor]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An implementation of a loss."""

    name: str
    loss: str
    """ce or ce-: what it computes."""
    tokens_per_set: int = 1
    run: Run | None = None
    """None where it cannot run here."""
    absent: str = ""
    """Why, and the way out."""
    ours: bool = True


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What became of a contestant on a shape."""

    shape: Shape
    logits: str
    contestant: str
    loss: str
    tokens_per_set: int
    status: Status
    reason: str = ""
    forward_ms: float | None = None
    total_ms: float | None = None
    """Forward and backward."""
    fastest_ms: float | None = None
    slowest_ms: float | None = None
    """Of the repeats of which `total_ms` is the median."""
    peak_bytes: int | None = None
    """Above the inputs, both gradients included; measured on CUDA."""
    ledger_bytes: int | None = None
    """The same by the ledger, for what is srsplan's own."""
    value: float | None = None
    """The loss."""
    loss_error: float | None = None
    """Relative to the first full softmax that ran. Sampled forms draw negatives of their own: None."""
    repeats: int | None = None
    """How many times `total_ms` is the median of."""


@dataclass(frozen=True, kw_only=True)
class Bout:
    """What is compared, on what."""

    shapes: Sequence[Shape]
    logits: Sequence[str]
    """random and trained, see `make_inputs`."""
    entrants: Sequence[Contestant]
    dtype: torch.dtype
    device: torch.device
    repeats: int | None = None
    """None: as many as a second allows."""


def contestants(device: torch.device) -> list[Contestant]:
    """srsplan's own forms and eager PyTorch."""
    found = [
        Contestant(name="eager ce", loss="ce", run=lambda i, s: eager.ce(i.hidden, i.table, i.targets)),
        Contestant(name="chunked cce", loss="ce", run=lambda i, s: chunked.cce(i.hidden, i.table, i.targets)),
        _triton("Triton cce", "ce", 1, device, _full_triton),
        Contestant(name="eager ce-", loss="ce-", run=lambda i, s: eager.ce_neg(*_sampled(i, s))),
    ]
    found += [
        Contestant(name="chunked cce-", loss="ce-", tokens_per_set=group, run=_chunked(group)) for group in (1, 32)
    ]
    found += [_triton("Triton cce-", "ce-", group, device, _sampled_triton(group)) for group in (1, 32, 64)]
    repeatable, no_copy = _sampled_triton(32, deterministic=True), _sampled_triton(32, copy_table=False)
    found.append(_triton("Triton cce-, repeatable", "ce-", 32, device, repeatable))
    found.append(_triton("Triton cce-, no copy of the table", "ce-", 32, device, no_copy))
    return found


def _triton(name: str, loss: str, group: int, device: torch.device, run: Run) -> Contestant:
    here = device.type in ("cuda", "meta")
    absent = "" if here else "runs on CUDA"
    return Contestant(name=name, loss=loss, tokens_per_set=group, run=run if here else None, absent=absent)


def _sampled(inputs: Inputs, shape: Shape) -> tuple[Tensor, Tensor, Tensor, int]:
    return inputs.hidden, inputs.table, inputs.targets, shape.negatives


def _chunked(group: int) -> Run:
    sampling = Sampling(tokens_per_set=group)
    return lambda inputs, shape: chunked.cce_neg(*_sampled(inputs, shape), sampling=sampling)


def _full_triton(inputs: Inputs, _: Shape) -> Tensor:
    from srsplan.kernels.full_softmax.api import cce_triton  # Triton is not installed everywhere

    return cce_triton(inputs.hidden, inputs.table, inputs.targets)


def _sampled_triton(group: int, deterministic: bool = False, copy_table: bool = True) -> Run:
    def run(inputs: Inputs, shape: Shape) -> Tensor:
        from srsplan.kernels.sampled_softmax.api import cce_neg_triton

        sampling = Sampling(tokens_per_set=group)
        tensors = _sampled(inputs, shape)
        return cce_neg_triton(*tensors, sampling=sampling, deterministic=deterministic, copy_table=copy_table)

    return run


def make_inputs(shape: Shape, logits: str, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """`logits` "random": uniform targets, logits of deviation 1. "trained": Zipf targets (exponent 1), and hidden
    states that point at their targets as strongly as gives them a probability of 0.1 on average, so that the softmax
    has the shape of a trained model's: popular items and the target stand out."""
    generator = torch.Generator(device).manual_seed(seed) if device.type != "meta" else None
    scale = shape.dim**-0.25
    hidden = scale * torch.randn(shape.tokens, shape.dim, generator=generator, device=device)
    table = scale * torch.randn(shape.catalog, shape.dim, generator=generator, device=device)
    targets = torch.randint(shape.catalog, (shape.tokens,), generator=generator, device=device)
    if logits == "trained" and device.type != "meta":
        hidden, targets = _trained(hidden, table, generator)
    table_16 = table.to(dtype)
    for tensor in (hidden := hidden.to(dtype), table, table_16):
        tensor.requires_grad_()
    return Inputs(hidden, table, table_16, targets)


def _trained(hidden: Tensor, table: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Rows of popular items share a direction with all hidden states; then each leans towards its target's row."""
    ranks = torch.arange(1, len(table) + 1, device=table.device, dtype=torch.float64)
    cumulative = (1 / ranks).cumsum(0)
    draws = torch.rand(len(hidden), generator=generator, device=hidden.device, dtype=torch.float64)
    targets = torch.searchsorted(cumulative / cumulative[-1], draws).clamp(max=len(table) - 1)
    popularity = -ranks.log().float()
    common = torch.nn.functional.normalize(torch.randn(table.shape[1], generator=generator, device=table.device), dim=0)
    table += 0.3 * (popularity - popularity.mean())[:, None] * common
    hidden += common - (hidden @ common)[:, None] * common
    low, high = 0.0, 16.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(hidden, table, targets, middle) < TARGET_SHARE else (low, middle)
    return hidden + high * table[targets] / table.shape[1] ** 0.5, targets


def _share(hidden: Tensor, table: Tensor, targets: Tensor, pull: float, sample: int = 256) -> float:
    """Mean probability of the target of some tokens."""
    rows, wanted = hidden[:sample], targets[:sample]
    scores = (rows + pull * table[wanted] / table.shape[1] ** 0.5) @ table.T
    return float(torch.softmax(scores, 1).gather(1, wanted[:, None]).mean())


def measure(
    contestant: Contestant,
    inputs: Inputs,
    shape: Shape,
    logits: str,
    free_bytes: Callable[[], int],
    repeats: int | None = None,
) -> Measurement:
    """Run it, or say why not. Never raises for what the contestant does."""
    found = _blank(contestant, shape, logits, inputs.hidden.dtype)
    if contestant.run is None:
        return found
    try:
        needed = found.ledger_bytes
        if needed is not None and needed > (free := free_bytes()):
            return replace(found, status="oom", reason=f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        return replace(found, status="ok", **_figures(contestant.run, inputs, shape, repeats))
    except Exception as error:  # somebody else's code: what it raises is its result
        return replace(found, **_outcome(error))
    finally:
        inputs.clear()
        _release(inputs.hidden.device)


def _blank(contestant: Contestant, shape: Shape, logits: str, dtype: torch.dtype) -> Measurement:
    """Before it runs: absent."""
    return Measurement(
        shape=shape,
        logits=logits,
        contestant=contestant.name,
        loss=contestant.loss,
        tokens_per_set=contestant.tokens_per_set,
        status="absent",
        reason=contestant.absent,
        ledger_bytes=ledger_bytes(contestant, shape, dtype) if contestant.ours else None,
    )


def _outcome(error: Exception) -> dict[str, Any]:
    """Status and reason; a CPU's allocator has no exception of its own."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return {"status": "oom", "reason": "out of memory"}
    return {"status": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def _release(device: torch.device) -> None:
    """Give back what is cached; after a kernel's fault the device refuses even that, and later ones fail by name."""
    if device.type == "cuda":
        gc.collect()
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _figures(run: Run, inputs: Inputs, shape: Shape, repeats: int | None) -> dict[str, Any]:
    device = inputs.hidden.device

    def forward() -> Tensor:
        with _autocast(inputs):
            return run(inputs, shape)

    def both() -> None:
        forward().backward()
        inputs.clear()

    value = float(forward().detach())
    if not math.isfinite(value):
        raise ArithmeticError(f"the loss is {value}")
    both()
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        both()
        peak = torch.cuda.max_memory_allocated(device) - before
    forward_ms, total_ms = times(forward, device, repeats), times(both, device, repeats)
    return {
        "forward_ms": statistics.median(forward_ms), "total_ms": statistics.median(total_ms), "peak_bytes": peak,
        "value": value, "repeats": len(total_ms), "fastest_ms": min(total_ms), "slowest_ms": max(total_ms),
    }  # fmt: skip


def _autocast(inputs: Inputs) -> AbstractContextManager[object]:
    if inputs.hidden.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(inputs.hidden.device.type, dtype=inputs.hidden.dtype)


def times(run: Callable[[], object], device: torch.device, repeats: int | None = None) -> list[float]:
    """Milliseconds of `repeats` calls after warm-up; None takes as many as SECONDS_EACH allows."""
    began = time.perf_counter()
    run()
    _wait(device)
    once = time.perf_counter() - began
    if device.type == "cuda" and once < SECONDS_EACH:
        for _ in range(WARM_UPS - 1):
            run()
        _wait(device)
        once = (time.perf_counter() - began) / WARM_UPS
    return list(_times(run, device, repeats or _repeats(once)))


def _repeats(seconds: float) -> int:
    return 1 if seconds > SLOW_SECONDS else max(3, min(50, round(SECONDS_EACH / max(seconds, 1e-6))))


def _times(run: Callable[[], object], device: torch.device, repeats: int) -> Iterator[float]:
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    for _ in range(repeats):
        if flushed is None:
            began = time.perf_counter()
            run()
            yield 1e3 * (time.perf_counter() - began)
            continue
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        yield start.elapsed_time(end)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ledger_bytes(contestant: Contestant, shape: Shape, dtype: torch.dtype) -> int | None:
    """Allocated peak above the inputs of forward and backward, both gradients included; None for others' code."""
    return _ledger_bytes(*_identity(contestant), shape, dtype)


@lru_cache(maxsize=1024)  # it does not depend on the values, and up to a minute is long for the largest shapes
def _ledger_bytes(name: str, tokens_per_set: int, shape: Shape, dtype: torch.dtype) -> int | None:
    meta = torch.device("meta")
    run = next((each.run for each in contestants(meta) if _identity(each) == (name, tokens_per_set)), None)
    if run is None or ("Triton" in name and find_spec("triton") is None):
        return None
    inputs = make_inputs(shape, "random", dtype, meta)
    ledger, cuda = Ledger(warm_process=True), SimulatedCuda(dtype)
    with ledger, cuda:
        ledger.phase("forward")
        with cuda.autocast():
            loss = run(inputs, shape)
        ledger.phase("backward")
        loss.backward()
        del loss
        inputs.clear()
    return ledger.trace.peak().allocated_bytes


def _identity(contestant: Contestant) -> tuple[str, int]:
    return contestant.name, contestant.tokens_per_set


def run_all(bout: Bout, free_bytes: Callable[[], int], announce: Callable[[str], object]) -> Iterator[Measurement]:
    """One measurement after another; `free_bytes` says what the device has left, `announce` is told what begins."""
    for shape in bout.shapes:
        for logits in bout.logits:
            yield from _round(bout, shape, logits, free_bytes, announce)


def _round(
    bout: Bout, shape: Shape, logits: str, free_bytes: Callable[[], int], announce: Callable[[str], object]
) -> Iterator[Measurement]:
    """Every contestant on the same inputs; where those cannot be made, that is everyone's result."""
    announce(f"{shape.name}: {logits} inputs")
    try:
        inputs = make_inputs(shape, logits, bout.dtype, bout.device)
    except Exception as error:  # out of memory, or a device that an earlier contestant has broken
        outcome = _outcome(error)
        for entrant in bout.entrants:
            found = _blank(entrant, shape, logits, bout.dtype)
            why = {**outcome, "reason": f"making the inputs: {outcome['reason']}"}
            yield found if entrant.run is None else replace(found, **why)
        return
    finally:
        _release(bout.device)
    reference = None
    for entrant in bout.entrants:
        announce(f"{shape.name}: {entrant.name}")
        found = measure(entrant, inputs, shape, logits, free_bytes, bout.repeats)
        if found.loss == "ce" and found.value is not None:
            reference = reference or found.value
            found = replace(found, loss_error=abs(found.value - reference) / max(abs(reference), 1e-30))
        yield found
