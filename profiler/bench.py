"""Loss kernels side by side: what runs, on which inputs, how its time and memory are taken.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set, g tokens that share a set.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from srsplan.kernels import chunked, eager
from srsplan.kernels.sampling import Sampling
from srsplan.profiler.ledger import Ledger
from srsplan.profiler.simulated_cuda import SimulatedCuda

WARM_UPS = 3
SECONDS_EACH = 2.0
"""A contestant is repeated for so long, 3 to 50 times."""

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
        """Fewer tokens and items, for machines on which the whole takes too long."""
        tokens, catalog = max(64, round(self.tokens * factor)), max(64, round(self.catalog * factor))
        name = self.name if factor == 1 else f"{self.name} x {factor:g}"
        negatives = min(self.negatives, catalog - 1)
        return Shape(name=name, tokens=tokens, catalog=catalog, negatives=negatives, dim=self.dim)


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
    peak_bytes: int | None = None
    """Above the inputs, both gradients included; measured on CUDA."""
    ledger_bytes: int | None = None
    """The same by the ledger, for what is srsplan's own."""
    value: float | None = None
    """The loss."""


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
    from srsplan.kernels.softmax import cce_triton  # Triton is not installed everywhere

    return cce_triton(inputs.hidden, inputs.table, inputs.targets)


def _sampled_triton(group: int, deterministic: bool = False, copy_table: bool = True) -> Run:
    def run(inputs: Inputs, shape: Shape) -> Tensor:
        from srsplan.kernels.sampled import cce_neg_triton

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


def measure(contestant: Contestant, inputs: Inputs, shape: Shape, logits: str, free_bytes: int) -> Measurement:
    """Run it, or say why not. Never raises for what the contestant does."""
    base: dict[str, Any] = {
        "shape": shape, "logits": logits, "contestant": contestant.name, "loss": contestant.loss,
        "tokens_per_set": contestant.tokens_per_set,
    }  # fmt: skip
    needed = ledger_bytes(contestant, shape, inputs.hidden.dtype) if contestant.ours else None
    if contestant.run is None:
        return Measurement(**base, status="absent", reason=contestant.absent, ledger_bytes=needed)
    if needed is not None and needed > free_bytes:
        return Measurement(**base, status="oom", reason=f"needs {needed / 2**30:.1f} GiB", ledger_bytes=needed)
    try:
        found = _figures(contestant.run, inputs, shape)
    except torch.cuda.OutOfMemoryError:
        return Measurement(**base, status="oom", reason="out of memory", ledger_bytes=needed)
    except Exception as error:  # somebody else's code: what it raises is its result
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return Measurement(**base, status="failed", reason=reason, ledger_bytes=needed)
    finally:
        inputs.clear()
        if inputs.hidden.is_cuda:
            torch.cuda.empty_cache()
    return Measurement(**base, status="ok", ledger_bytes=needed, **found)


def _figures(run: Run, inputs: Inputs, shape: Shape) -> dict[str, Any]:
    device = inputs.hidden.device

    def forward() -> Tensor:
        with _autocast(inputs):
            return run(inputs, shape)

    def both() -> None:
        forward().backward()
        inputs.clear()

    value = float(forward().detach())
    both()
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        both()
        peak = torch.cuda.max_memory_allocated(device) - before
    forward_ms, total_ms = timed(forward, device), timed(both, device)
    return {"forward_ms": forward_ms, "total_ms": total_ms, "peak_bytes": peak, "value": value}


def _autocast(inputs: Inputs) -> AbstractContextManager[object]:
    if inputs.hidden.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(inputs.hidden.device.type, dtype=inputs.hidden.dtype)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds, after warm-up."""
    began = time.perf_counter()
    for _ in range(WARM_UPS if device.type == "cuda" else 1):
        run()
    _wait(device)
    once = (time.perf_counter() - began) / (WARM_UPS if device.type == "cuda" else 1)
    repeats = max(3, min(50, round(SECONDS_EACH / max(once, 1e-6))))
    return statistics.median(_times(run, device, repeats))


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
    meta = torch.device("meta")
    same = (each for each in contestants(meta) if _identity(each) == _identity(contestant))
    run = next((each.run for each in same), None)
    if run is None or ("Triton" in contestant.name and find_spec("triton") is None):
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


def run_all(
    shapes: Sequence[Shape],
    logits: Sequence[str],
    entrants: Sequence[Contestant],
    dtype: torch.dtype,
    device: torch.device,
    limit_bytes: Callable[[], int],
) -> Iterator[Measurement]:
    """One measurement after another; `limit_bytes` says how much is free."""
    for shape in shapes:
        for kind in logits:
            inputs = make_inputs(shape, kind, dtype, device)
            for entrant in entrants:
                yield measure(entrant, inputs, shape, kind, limit_bytes())
            del inputs
