"""Sizes by which every variable of a step can be told from every other: each has a prime factor of its own.

Candidates are tried in a fixed order until one is generic, so the same sizes are found every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from unittest.mock import patch

from srsplan.kernels import chunking
from srsplan.kernels.full_softmax.grid import SoftmaxGrid
from srsplan.kernels.losses import ADAPTIVE, CCE, DEFAULT_LOSS, LOSSES, Kernel, Sampler
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.kinds import DEFAULT_MODEL, MODEL_KINDS
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.simulate import EvaluationSizes
from srsplan.profiler.memory.symbols import SMALL_PRIMES, NotFactored, Size, Sizes, largest_prime_factor

GENERIC_MASK_SHARE = 0.8
"""Close to 1, so that sequences of the usual number hold the tokens."""

LONG_CHUNK = 1 << 29
"""The logits of a chunk of the full softmax: 5,300 tokens or so."""

UNLIMITED = 10**9
"""So many tokens, or items, that a chunk is as large as it gets."""

SEQ_LEN = 409
"""Prime, and 13 x 32 when padded to 32."""

DIM, HEADS = 8 * 11 * 29, 11
TRITON_SEQ_LEN = 541
"""Prime, and 17 x 32 when padded to 32."""
TRITON_HEADS = {"fp16": 23, "bf16": 23, "fp32": 11}
"""The hidden size is 16 times as much: small enough for the kernels, in fp32 and in the widest launches of 16 bit.
Heads and hidden size share their prime: `factor` looks for the hidden size first, and what stands beside heads alone is
odd."""
SPLITS = 13
NEGATIVES, TOKENS_PER_SET = 61, 37
CHUNK_SETS = 103
SMALL_CHUNK = 1 << 24
"""Elements of a chunk by which a few of many buckets are looked at, and not all of them."""

CONTAINED = {("H", "D"), ("D", "H"), ("G", "P"), ("L", "N")}
"""(factor, product): D is a multiple of H, P of G and N of L. `factor` looks for the products first."""

BATCH_SIZE = 7919
PASS_SEQUENCES = (157, 163, 193, 211, 313, 317, 331, 337)
LONG_PASS_SEQUENCES = (457, 491, 523)
"""Enough for the tokens from which on a copy of the table pays."""
EVALUATION_TOKENS = 30_011
EVALUATION_BATCHES = (521, 523, 541, 547, 557, 563, 569, 571, 577, 587, 593, 599)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Key of a program: everything about a training that changes more than sizes."""

    loss: str
    precision: Precision
    blocks: int
    sampler: Sampler = "uniform"
    recompute: bool = False
    kernel: Kernel = "chunked"
    model: str = DEFAULT_MODEL
    passes: bool = False
    """Several passes: two stand for any number, the third leaves everything as the second did."""


def generic_step(kind: Kind, chunks: int = 1) -> tuple[Configuration, Sizes]:
    """Return a configuration of so many chunks whose sizes can be told apart, and these sizes."""
    for configuration in _steps(kind, chunks):
        sizes = _step_sizes(configuration)
        if _generic(sizes):
            return configuration, sizes
    raise NotFactored(f"no generic sizes for {kind.loss}")


def generic_evaluation(
    precision: Precision, blocks: int, chunks: int, model: str = DEFAULT_MODEL
) -> tuple[Configuration, EvaluationSizes, Sizes]:
    """Return a configuration and an evaluation batch of so many chunks of items, and their sizes."""
    for evaluation_batch, rest, pairs in product(EVALUATION_BATCHES, range(10_003, 10_203, 2), range(7001, 7041, 2)):
        catalog = (chunks - 1) * chunking.ranking_chunk_items(evaluation_batch, UNLIMITED) + rest
        configuration = Configuration(
            loss=DEFAULT_LOSS, catalog=catalog, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, pass_tokens=EVALUATION_TOKENS,
            architecture=_architecture(blocks), precision=precision, model=model,
        )  # fmt: skip
        row = expressions.evaluation_row(configuration, evaluation_batch, pairs)
        sizes = _named(row, ["V", "D", "H", "M", "L", "A", "U", "J", "Q", *(["C", "c"] if chunks > 1 else [])])
        if _generic(sizes):
            return configuration, EvaluationSizes(users=evaluation_batch, seen_pairs=pairs), sizes
    raise NotFactored("no generic sizes for evaluation")


@contextmanager
def told_apart(kind: Kind, many_chunks: bool) -> Iterator[None]:
    """Cut work into numbers of pieces that can be told apart from all sizes, where sizes alone do not do it.

    The full softmax's Triton kernel splits the catalog; chunks of the other form are so long that every pass looks up
    more than is added without sorting. Windows of one set let every pass of a batch touch as many sets as a pass that
    begins with a window, though it begins in the middle of one. Scores that thresholds are found in are those of
    CHUNK_SETS sets: fewer than a pass has.
    """
    loss, sizes = LOSSES[kind.loss], {"SETS_PER_WINDOW": 1, "LARGEST_TOKEN_CHUNK": UNLIMITED}
    if loss is CCE and kind.kernel == "chunked":
        sizes["CHUNK_ELEMENTS"] = LONG_CHUNK
    elif loss.bucketed:
        sizes["CHUNK_ELEMENTS"] = SMALL_CHUNK
    with ExitStack() as patched:
        for name, size in sizes.items():
            patched.enter_context(patch.object(chunking, name, size))
        if _cuts_scores(kind):
            patched.enter_context(patch.object(chunking, "sampled_chunk_sets", lambda *_: CHUNK_SETS))
        if kind.kernel == "triton" and many_chunks:
            patched.enter_context(patch.object(SoftmaxGrid, "wanted_splits", lambda _: SPLITS))
        yield


def _cuts_scores(kind: Kind) -> bool:
    """Tell whether a kernel's scores are looked at some sets at a time, in buffers that all chunks share."""
    return kind.kernel == "triton" and kind.sampler in ADAPTIVE


def _steps(kind: Kind, chunks: int) -> Iterator[Configuration]:
    """Yield candidates: the loss's tokens are those of so many chunks, the last of which is not full."""
    loss, triton = LOSSES[kind.loss], kind.kernel == "triton"
    negatives = NEGATIVES if loss.sampled else None
    group = TOKENS_PER_SET if loss.shares_negatives else 1
    extras, catalogs = range(0, 40 * group, group // 5 + 1), range(101_377 if triton else 100_003, 104_000, 2)
    sequences_of = LONG_PASS_SEQUENCES if triton and loss.sampled and chunks > 1 else PASS_SEQUENCES
    for catalog, extra, sequences in product(catalogs, extras, sequences_of):
        targets = _targets(kind, catalog, negatives, group, chunks) + extra
        targets += (100 * extra + targets + 1) % 2 + 100 * extra if triton else 0
        if not 0 < targets % group <= group // 2 and group > 1:
            continue  # the second pass would touch one set more than the first
        masked = MODEL_KINDS[kind.model].masked
        tokens = _tokens_with(targets, sequences) | triton if masked else targets
        if tokens < SEQ_LEN and masked:
            continue
        found = Configuration(
            loss=kind.loss, catalog=catalog, batch_size=BATCH_SIZE, seq_len=TRITON_SEQ_LEN if triton else SEQ_LEN,
            negatives=negatives, tokens_per_set=group, sampler=kind.sampler, kernel=kind.kernel,
            candidates=negatives if kind.sampler in ADAPTIVE else None,
            architecture=_architecture(kind.blocks, TRITON_HEADS[kind.precision] if triton else None),
            precision=kind.precision, model=kind.model, mask_share=GENERIC_MASK_SHARE if masked else None,
            pass_tokens=tokens, pass_sequences=sequences, recompute=kind.recompute,
        )  # fmt: skip
        if found.targets == targets:
            yield found


def _tokens_with(targets: int, sequences: int) -> int:
    """Return tokens of which, in so many sequences, at most so many are masked."""
    return int((targets - sequences * max(0.5, 1 - GENERIC_MASK_SHARE)) / GENERIC_MASK_SHARE) + 1


def _targets(kind: Kind, catalog: int, negatives: int | None, group: int, chunks: int) -> int:
    """Return the fewest targets of candidates; a table's copy pays from COPY_READS x `catalog` drawn rows on."""
    loss = LOSSES[kind.loss]
    if kind.kernel == "triton" and loss.sampled:
        return (chunks - 1) * chunking.COPY_READS * catalog * group // NEGATIVES + 20_011
    if kind.kernel == "triton" or not loss.chunked:
        return 70_001
    full = _chunk_tokens(catalog, negatives, group)
    return 2 * full // 3 + (chunks - 1) * full


def _chunk_tokens(catalog: int, negatives: int | None, group: int) -> int:
    """Return the tokens of a full chunk of a chunked loss."""
    if negatives is None:
        return chunking.softmax_chunk_tokens(UNLIMITED, catalog)
    return group * chunking.sampled_chunk_sets(UNLIMITED, negatives, DIM, group)


def _architecture(blocks: int, triton_heads: int | None = None) -> Architecture:
    if triton_heads is not None:
        return Architecture(dim=16 * triton_heads, blocks=blocks, heads=triton_heads)
    return Architecture(dim=DIM, blocks=blocks, heads=HEADS)


def _step_sizes(configuration: Configuration) -> Sizes:
    row = expressions.step_row(configuration)
    single = expressions.chunks(row) == 1
    names = ["A", "V", "D", "N", "H", "B", "J", "L", "M", *_loss_names(configuration, single)]
    names += ["F"] if configuration.kind.masked else []
    sizes = _named(row, names)
    if configuration.kernel == "chunked" and LOSSES[configuration.loss] is CCE:
        sizes |= {"I last": Size("I", row["V"] % row["I"]), "I": Size("I", row["I"])}
    return sizes


def _loss_names(configuration: Configuration, single: bool) -> list[str]:
    """Return the variables that only this loss has."""
    loss, triton = LOSSES[configuration.loss], configuration.kernel == "triton"
    if not loss.sampled:
        if triton:
            return ["W", "Y", "Z"] if single else ["W", "X", "Y", "Z"]
        return ["T", "t"] if loss.chunked and not single else []
    names = ["n", "K"]
    if loss.bucketed:
        names += ["b", "q", "r"]
    if triton and configuration.sampler in ADAPTIVE:
        names += ["S", "P", "G"]
    if triton and configuration.sampler == "uniform":
        names += ["W", "E"]
    if loss.shares_negatives and not triton:
        names += ["S", "G"] if single else ["S", "s", "P", "G"]
    return names


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
