"""Sizes by which every variable of a step can be told from every other: each has a prime factor of its own.

Candidates are tried in a fixed order until one is generic, so the same sizes are found every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from srsplan.kernels import chunking
from srsplan.kernels.losses import DEFAULT_LOSS, LOSSES, Sampler
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.simulate import EvaluationSizes
from srsplan.profiler.memory.symbols import SMALL_PRIMES, NotFactored, Size, Sizes, largest_prime_factor

UNLIMITED = 10**9
"""So many tokens, or items, that a chunk is as large as it gets."""

SEQ_LEN = 409
"""Prime, and 13 x 32 when padded to 32."""

DIM, HEADS = 8 * 11 * 29, 11
NEGATIVES, TOKENS_PER_SET = 61, 37

CONTAINED = {("H", "D"), ("G", "P")}
"""(factor, product): D is a multiple of H and P one of G. `factor` looks for the products first."""

BATCHES = (1009, 1013, 1019, 1021)
EVALUATION_BATCHES = (521, 523, 541, 547, 557, 563, 569, 571, 577, 587, 593, 599)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Key of a program: everything about a training that changes more than sizes."""

    loss: str
    precision: Precision
    blocks: int
    sampler: Sampler = "uniform"
    recompute: bool = False
    parts: bool = False
    """Micro-batches: two stand for any number, the third leaves everything as the second did."""


def generic_step(kind: Kind, chunks: int = 1) -> tuple[Configuration, Sizes]:
    """Return a configuration of so many chunks whose sizes can be told apart, and these sizes."""
    for configuration in _steps(kind, chunks):
        sizes = _step_sizes(configuration)
        if _generic(sizes):
            return configuration, sizes
    raise NotFactored(f"no generic sizes for {kind.loss}")


def generic_evaluation(precision: Precision, blocks: int, chunks: int) -> tuple[Configuration, EvaluationSizes, Sizes]:
    """Return a configuration and an evaluation batch of so many chunks of items, and their sizes."""
    for evaluation_batch, rest, pairs in product(EVALUATION_BATCHES, range(10_003, 10_203, 2), range(7001, 7041, 2)):
        catalog = (chunks - 1) * chunking.ranking_chunk_items(evaluation_batch, UNLIMITED) + rest
        configuration = Configuration(
            loss=DEFAULT_LOSS, catalog=catalog, batch_size=1, seq_len=SEQ_LEN,
            architecture=_architecture(blocks), precision=precision,
        )  # fmt: skip
        row = expressions.evaluation_row(configuration, evaluation_batch, pairs)
        sizes = _named(row, ["V", "D", "H", "L", "A", "U", "Q", *(["C", "c"] if chunks > 1 else [])])
        if _generic(sizes):
            return configuration, EvaluationSizes(users=evaluation_batch, seen_pairs=pairs), sizes
    raise NotFactored("no generic sizes for evaluation")


def _steps(kind: Kind, chunks: int) -> Iterator[Configuration]:
    """Yield candidates: the loss's tokens are those of so many chunks, the last of which is not full."""
    loss, parts = LOSSES[kind.loss], 2 if kind.parts else 1
    negatives = (loss.fixed_negatives or NEGATIVES) if loss.sampled else None
    group = TOKENS_PER_SET if loss.shares_negatives else 1
    extras = range(0, 40 * group, group // 5 + 1)
    for catalog, extra, batch in product(range(100_003, 104_000, 2), extras, BATCHES):
        full = _chunk_tokens(catalog, negatives, group)
        tokens = full // 3 + (chunks - 1) * full + extra if loss.chunked else 70_001 + extra
        yield Configuration(
            loss=kind.loss, catalog=catalog, batch_size=parts * batch, seq_len=SEQ_LEN, negatives=negatives,
            tokens_per_set=group, sampler=kind.sampler, valid_tokens=tokens, architecture=_architecture(kind.blocks),
            precision=kind.precision, micro_batches=parts, recompute=kind.recompute,
        )  # fmt: skip


def _chunk_tokens(catalog: int, negatives: int | None, group: int) -> int:
    """Return the tokens of a full chunk of a chunked loss."""
    if negatives is None:
        return chunking.softmax_chunk_tokens(UNLIMITED, catalog)
    return group * chunking.sampled_chunk_sets(UNLIMITED, negatives, DIM, group)


def _architecture(blocks: int) -> Architecture:
    return Architecture(dim=DIM, blocks=blocks, heads=HEADS)


def _step_sizes(configuration: Configuration) -> Sizes:
    row, loss = expressions.step_row(configuration), LOSSES[configuration.loss]
    single = expressions.chunks(configuration.loss, row) == 1
    names = ["V", "D", "H", "B", "L", "A", "M"]
    if loss.sampled and loss.fixed_negatives is None:
        names += ["n", "K"]
    if loss.shares_negatives:
        names += ["S", "G"] if single else ["S", "s", "P", "G"]
    full_softmax = loss.chunked and not loss.sampled
    if full_softmax and not single:
        names += ["T", "t"]
    sizes = _named(row, names)
    if full_softmax:
        sizes |= {"I last": Size("I", row["V"] % row["I"]), "I": Size("I", row["I"])}
    return sizes


def _named(row: dict[str, int], names: Iterable[str]) -> dict[str, Size]:
    return {name: Size(name, row[name]) for name in names}


def _generic(sizes: Sizes) -> bool:
    """Tell whether no signature divides another value. I is 2^16, has no signature, and is looked for last."""
    values = {label: size.value for label, size in sizes.items() if label != "I"}
    if min(values.values()) < 11:
        return False
    signatures = {label: largest_prime_factor(value) for label, value in values.items()}
    if min(signatures.values()) <= max(SMALL_PRIMES):
        return False
    return not any(
        other % signature == 0
        for label, signature in signatures.items()
        for other_label, other in values.items()
        if other_label != label and (label, other_label) not in CONTAINED
    )
