"""The cases of a check: small inputs that together reach every part of the kernels.

Full softmax: the dense and the sparse backward, one split of the catalog and several. Sampled softmax: every source of
negatives that is asked for, sets of one token and of the training's number. Both with ignored targets, and with nothing
else. Shape letters: M tokens, V items, D hidden size, ns negatives of a set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from srsplan.kernels.full_softmax.api import cce_triton
from srsplan.kernels.full_softmax.grid import WAVE, SoftmaxGrid
from srsplan.kernels.launches.device import capability_of
from srsplan.kernels.losses import ADAPTIVE, CANDIDATES, IN_BATCH_SHARE, MIXED, Sampler
from srsplan.kernels.reduction import IGNORE_INDEX
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.samplers.alias_table import Distribution, popularity
from srsplan.kernels.samplers.in_batch import InBatch, in_batch
from srsplan.kernels.samplers.mixed import mixed
from srsplan.kernels.samplers.sampling import Sampling
from srsplan.kernels.verification.subject import Subject

Source = Literal["uniform", "popularity", "in-batch", "mixed", "adaptive", "adaptive-mixed", "given"]
"""Where a case's negatives come from: a sampler, or the caller."""
Logits = Literal["spread", "peaked"]
"""All items matter, or all but a few are negligible."""
Ignored = Literal["some", "all"]

WIDE = 256
"""Hidden sizes above this have fewer tokens: the reference holds [M, ns, D] in float64."""
KNOWN_ITEMS = 64
"""Items of a peaked case that matter: all targets are among them."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the cases are."""

    tokens: int
    catalog: int
    negatives: int
    waves: bool
    """True where there are as many blocks of tokens as a card runs at once in one case."""


CARD_SIZES = Sizes(tokens=1000, catalog=5003, negatives=77, waves=True)
"""On a card: nothing divides anything, and there are several windows of sets of one token."""
INTERPRETED_SIZES = Sizes(tokens=40, catalog=603, negatives=19, waves=False)
"""In Triton's interpreter, which takes a millisecond where a card takes a microsecond."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case: its sizes, and what is particular about it."""

    name: str
    tokens: int
    catalog: int
    logits: Logits = "spread"
    ignored: Ignored = "some"
    source: Source | None = None
    """Where negatives come from; None for a full softmax."""
    negatives: int = 0
    tokens_per_set: int = 1
    deterministic: bool = False
    """The sampled softmax in the form that promises repeatable sums."""

    @property
    def repeatable(self) -> bool:
        """Tell whether two runs have to be equal in every bit."""
        return self.source in (None, "uniform") or self.deterministic


@dataclass(frozen=True)
class Inputs:
    """hidden [M, D] in the compute type, table [V, D] fp32, targets int64 [M], what negatives are drawn by, and the
    negatives of the sets, int64 [sets, ns], where they are given."""

    hidden: Tensor
    table: Tensor
    targets: Tensor
    drawn_by: Distribution | InBatch | None = None
    given: Tensor | None = None


def cases_of(subject: Subject, sources: Sequence[Sampler], sizes: Sizes, device: torch.device) -> list[Case]:
    """Return the cases of a loss; a sampled one draws from each of `sources`, and is given its negatives."""
    if subject.kind.sampled:
        return list(_sampled_cases(subject, dict.fromkeys(sources), sizes))
    return list(_full_cases(subject, sizes, device))


def _full_cases(subject: Subject, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    tokens, catalog, one_span = sizes.tokens, sizes.catalog, 201
    yield Case(name="dense, the catalog in splits", tokens=tokens, catalog=catalog)
    yield Case(name="dense, one span of items", tokens=tokens, catalog=one_span)
    yield Case(name="sparse: most of the catalog is negligible", tokens=tokens, catalog=2 * catalog, logits="peaked")
    yield Case(name="every target ignored", tokens=tokens, catalog=one_span, ignored="all")
    if sizes.waves:
        blocks = WAVE * grid_of(subject, tokens, one_span, device).span_rows
        yield Case(name="dense, the catalog in one split", tokens=blocks - 3, catalog=1009)


def _sampled_cases(subject: Subject, sources: Sequence[Sampler] | dict[Sampler, None], sizes: Sizes) -> Iterator[Case]:
    tokens = sizes.tokens if subject.dim <= WIDE else sizes.tokens * WIDE // subject.dim
    common = {"tokens": tokens, "catalog": sizes.catalog, "negatives": sizes.negatives}
    groups = sorted({1, subject.tokens_per_set})
    for source in (*sources, "given"):
        for group in groups:
            name = f"negatives {source}, {group} token{'s' * (group > 1)} a set"
            yield Case(name=name, source=source, tokens_per_set=group, **common)  # type: ignore[arg-type]
    last = {"source": subject.sampler, "tokens_per_set": groups[-1], **common}
    yield Case(name="repeatable sums", deterministic=True, **last)  # type: ignore[arg-type]
    yield Case(name="every target ignored", ignored="all", **last)  # type: ignore[arg-type]


def grid_of(subject: Subject, tokens: int, catalog: int, device: torch.device) -> SoftmaxGrid:
    """Return how a call of the full softmax is cut into programs on a device."""
    fp32 = subject.torch_dtype == torch.float32
    return SoftmaxGrid(
        tokens=tokens, catalog=catalog, dim=subject.dim, fp32=fp32, capability=capability_of(device)
    )  # fmt: skip


def inputs_of(case: Case, subject: Subject, device: torch.device) -> Inputs:
    """Make a case's inputs, the same every time; on meta tensors their shapes.

    The table's values are exact in the compute type: rounding them is no part of any comparison.
    """
    hidden, table, targets = _peaked(case, subject) if case.logits == "peaked" else _spread(case, subject)
    targets[slice(None) if case.ignored == "all" else slice(1, None, 5)] = IGNORE_INDEX
    dtype = subject.torch_dtype
    hidden, table, targets = hidden.to(dtype).to(device), table.to(dtype).float().to(device), targets.to(device)
    given = None
    if case.source == "given":
        sets = CallSets.of(case.negatives, sampling_of(case), case.tokens)
        shape = (-(-case.tokens // case.tokens_per_set), sets.negatives)
        given = torch.randint(case.catalog, shape, generator=_generator(case, 1)).to(device)
    return Inputs(hidden, table, targets, _drawn_by(case, targets), given)


def _generator(case: Case, salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * case.tokens + case.catalog + salt)


def _spread(case: Case, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a deviation of 2."""
    generator = _generator(case)
    hidden = torch.randn(case.tokens, subject.dim, generator=generator)
    table = torch.randn(case.catalog, subject.dim, generator=generator) * 2 / subject.dim**0.5
    return hidden, table, torch.randint(case.catalog, (case.tokens,), generator=generator)


def _peaked(case: Case, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Sure of its targets, which stand in the first span: the others are e^-48 as likely."""
    hidden, table, _ = _spread(case, subject)
    table[:KNOWN_ITEMS, 0], table[KNOWN_ITEMS:, 0] = 6.0, -6.0
    hidden[:, 0] = 4.0
    return hidden, table, torch.randint(KNOWN_ITEMS, (case.tokens,), generator=_generator(case, 2))


def _drawn_by(case: Case, targets: Tensor) -> Distribution | InBatch | None:
    if case.source == "in-batch":
        return in_batch(targets.clamp(min=0), case.catalog)
    if case.source in MIXED:
        return mixed(targets.clamp(min=0), case.catalog, case.negatives, IN_BATCH_SHARE)
    if case.source == "popularity":
        return popularity(torch.arange(case.catalog).numpy() % 50, 0.75).to(targets.device)
    return None


def sampling_of(case: Case) -> Sampling:
    """Return the settings that a case draws with."""
    hardest = max(1, case.negatives // CANDIDATES) if case.source in ADAPTIVE else None
    return replace(training_sampling(case.tokens_per_set), seed=3, step=9, hardest=hardest)


def training_sampling(tokens_per_set: int) -> Sampling:
    """Return the settings that a training draws with, whatever its seed."""
    return Sampling(tokens_per_set=tokens_per_set)


def kernel_loss(case: Case, inputs: Inputs) -> Tensor:
    """Call the kernels as the product does; the mean loss."""
    if case.source is None:
        return cce_triton(inputs.hidden, inputs.table, inputs.targets)
    return cce_neg_triton(
        inputs.hidden, inputs.table, inputs.targets, case.negatives if inputs.given is None else inputs.given,
        sampling=sampling_of(case), distribution=inputs.drawn_by, deterministic=case.deterministic,
    )  # fmt: skip


def negatives_of(case: Case, inputs: Inputs) -> Tensor:
    """Return the negatives that the kernels use for each token, int64 [M, ns]: the only place that knows them."""
    from srsplan.kernels.sampled_softmax.negatives import triton_negatives  # needs Triton

    drawn = case.negatives if inputs.given is None else inputs.given
    return triton_negatives(
        drawn, case.tokens, case.catalog, sampling_of(case), inputs.drawn_by, inputs.hidden.device
    )  # fmt: skip
