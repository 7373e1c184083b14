"""One case on a card: the kernels' loss and gradients against float64, and what is wrong with them in words.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from srsplan.kernels.launches.table import ASSUMED_CAPABILITY
from srsplan.kernels.verification import reference
from srsplan.kernels.verification.cases import Case, Inputs, grid_of, inputs_of, kernel_loss, negatives_of, sampling_of
from srsplan.kernels.verification.subject import Subject

PARTS = ("the loss", "hidden's gradient", "the table's gradient")
ALLOWED = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5}
"""Largest error by norm, relative to float64: those of the test suite."""
BESIDE_EAGER = 2.0
"""In 16 bit the error may be so many times that of eager PyTorch in the same type."""
EXACT_BY_LUCK = 0.5
"""Eager PyTorch may be exact on a few numbers: this share of the format's step, its rounding, is always allowed."""
BYTES_SHARE, BYTES_LEAST = 0.01, 16 << 10
"""By how much more than predicted a case may allocate: a share of it, and some scalars of 512 bytes each."""

Measure = Callable[[Callable[[], object]], int]
"""The allocated peak of a call above what was allocated before, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """How time and memory are measured, and who predicts memory: given from outside, the kernels know tensors only."""

    timer: Callable[[Callable[[], object]], float]
    """Milliseconds of a call, repeated as often as it takes."""
    measured_bytes: Measure | None = None
    """None where there is no allocator to ask."""
    predicted_bytes: Measure | None = None
    """The same of a call on meta tensors, by the operators' fake implementations."""


@dataclass(frozen=True)
class Fault:
    """What is wrong in one case."""

    case: str
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


@dataclass(frozen=True)
class Compared:
    """What a case showed."""

    faults: tuple[Fault, ...]
    worst: float = 0.0
    """The largest error as a share of what is allowed."""


def compare(case: Case, subject: Subject, device: torch.device, instruments: Instruments) -> Compared:
    """Run a case and compare; raises what the kernels, their compiler or the driver raise."""
    inputs = inputs_of(case, subject, device)
    truth, eager = _references(case, inputs)
    with empty_memory_is_nan():
        found = gradients(lambda each: kernel_loss(case, each), inputs)
        again = gradients(lambda each: kernel_loss(case, each), inputs) if case.repeatable else []
    faults, worst = _errors(found, truth, eager, ALLOWED[subject.torch_dtype], subject)
    if not faults and any(not torch.equal(one, other) for one, other in zip(found, again, strict=False)):
        faults = ["two runs differ, and should be equal in every bit"]
    faults += _memory(case, subject, inputs, instruments)
    return Compared(tuple(Fault(case.name, what) for what in faults), worst)


@contextmanager
def empty_memory_is_nan() -> Iterator[None]:
    """Fill what is allocated inside with NaN: what a kernel forgets to write must not hold an earlier, right result."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def gradients(loss: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    """Return the loss and the gradients of hidden and of the table.

    What comes in is about M, as a gradient scaler does it: a mean's gradients over M tokens vanish in fp16.
    """
    hidden, table = (tensor.detach().clone().requires_grad_() for tensor in (inputs.hidden, inputs.table))
    value = loss(replace(inputs, hidden=hidden, table=table))
    value.backward(torch.full_like(value, 2.0 ** max(0, int(math.log2(max(1, len(hidden)))))))
    return [value.detach(), *(torch.zeros_like(each) if each.grad is None else each.grad for each in (hidden, table))]


def _references(case: Case, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """Return loss and gradients in float64, and those of eager PyTorch in 16 bit, where that is the type."""
    if case.ignored == "all":
        return [inputs.hidden.new_zeros(()), torch.zeros_like(inputs.hidden), torch.zeros_like(inputs.table)], []
    items = None if case.source is None else negatives_of(case, inputs)

    def defined(each: Inputs) -> Tensor:
        if items is None:
            return reference.full_softmax(each.hidden, each.table, each.targets)
        hardest = sampling_of(case).hardest
        return reference.sampled_softmax(each.hidden, each.table, each.targets, items, each.drawn_by, hardest)

    truth = gradients(defined, _in_type(inputs, torch.float64))
    if inputs.hidden.dtype == torch.float32:
        return truth, []
    return truth, gradients(defined, _in_type(inputs, inputs.hidden.dtype))


def _in_type(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Return the same inputs with both matrices in one type; logQ in float64 where that is it."""
    drawn_by = inputs.drawn_by
    if drawn_by is not None and dtype == torch.float64:
        wide = drawn_by.log_prob.double()
        drawn_by = replace(drawn_by, log_prob=wide)
    return replace(inputs, hidden=inputs.hidden.to(dtype), table=inputs.table.to(dtype), drawn_by=drawn_by)


def _errors(
    found: list[Tensor], truth: list[Tensor], eager: list[Tensor], allowed: float, subject: Subject
) -> tuple[list[str], float]:
    """Return what is wrong with a loss and its gradients, and the largest error as a share of what is allowed."""
    faults, worst = [], 0.0
    for name, ours, right, theirs in zip_longest(PARTS, found, truth, eager):
        wrong = int((~torch.isfinite(ours)).sum())
        if wrong:
            faults.append(f"{wrong:,} of {ours.numel():,} values of {name} are not finite")
            continue
        limit = allowed
        if theirs is not None:
            precision = EXACT_BY_LUCK * torch.finfo(subject.torch_dtype).eps
            limit = min(limit, max(BESIDE_EAGER * relative_error(theirs, right), precision))
        error = relative_error(ours, right)
        worst = max(worst, error / limit)
        if not error <= limit:
            faults.append(f"{name} is off by {error:.1e} of itself, {limit:.1e} is allowed")
    return faults, worst


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Return the norm of the difference as a share of the norm of the truth; of a truth of 0, the norm itself."""
    difference, size = (found.double() - truth.double()).norm(), truth.double().norm()
    return float(difference / torch.where(size > 0, size, 1.0))


def _memory(case: Case, subject: Subject, inputs: Inputs, instruments: Instruments) -> list[str]:
    """Return what is wrong with the bytes that a case allocates: more than the fake implementations say."""
    if instruments.measured_bytes is None or instruments.predicted_bytes is None:
        return []
    if case.source is None and not _cut_as_predicted(case, subject, inputs.hidden.device):
        return []
    shapes = inputs_of(case, subject, torch.device("meta"))
    predicted = instruments.predicted_bytes(lambda: gradients(lambda each: kernel_loss(case, each), shapes))
    measured = instruments.measured_bytes(lambda: gradients(lambda each: kernel_loss(case, each), inputs))
    if measured <= predicted * (1 + BYTES_SHARE) + BYTES_LEAST:
        return []
    return [f"it allocates {measured:,} bytes, {predicted:,} are predicted"]


def _cut_as_predicted(case: Case, subject: Subject, device: torch.device) -> bool:
    """Tell whether the catalog is split on this card as it is on meta tensors, which stand for one capability."""
    here = grid_of(subject, case.tokens, case.catalog, device)
    return here.splits == replace(here, capability=ASSUMED_CAPABILITY).splits
