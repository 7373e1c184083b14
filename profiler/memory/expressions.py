"""Sizes as expressions in the knobs, evaluated for whole arrays of configurations at once. Imports no torch.

Arrays hold 64-bit integers where every result is below 2^62, else Python's own, which are exact at any size. For one
configuration plain integers do the same, several times as fast: `evaluate` and `chunks` take either.

An expression is a string, so that it ships as data and reads as a formula:

    "4*V*D"                          bytes as a coefficient times powers of variables
    "512"                            a constant
    "embedding_backward/11:M*K"      entry 11 of a scratch formula, for so many looked-up tokens
    "sort/1:M"                       entry 1 of what a sort of so many takes
    "flash_backward/1"               entry 1 of the attention's scratch

Variables: V catalog, D dim, H heads, M tokens of a pass, F its targets (M, or the masked ones), B its sequences, J = B
+ 1, N targets of the batch, L longest sequence, A = L padded to 32, n negatives, K = n + 1, G tokens per set, P = F
padded to whole sets, T tokens per chunk
of the full softmax and t of the last one, S sets per chunk of the sampled one and s of the last, I rows per block of
the table's gradient; of the full softmax's Triton kernel Y blocks of rows, W = F padded to whole ones of its backward,
Z spans of items, X splits of the catalog; of the sampled softmax's with negatives in blocks W the same, and E programs
of backward + 1; of the scalable cross-entropy b buckets, and those of a chunk, q where items and r where tokens are
looked through; for evaluation M tokens of its batch, U users ranked at once, J = U + 1, Q (user, item) pairs they have
seen, C items per chunk and c of the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from math import prod
from operator import mul

import numpy as np
from numpy.typing import NDArray

from srsplan.kernels import chunking
from srsplan.kernels.block_softmax.grid import BlockGrid, most_negatives
from srsplan.kernels.full_softmax.grid import SoftmaxGrid
from srsplan.kernels.launches.table import ASSUMED_CAPABILITY
from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
from srsplan.models.kinds import DEFAULT_MODEL
from srsplan.profiler.memory import workspaces as scratch
from srsplan.profiler.memory.workspaces import Size

Values = Mapping[str, NDArray[np.int64]]
"""By variable, one element per configuration. Arrays of Python integers (dtype object) where 64 bits are too few."""

Row = Mapping[str, int]
"""The same of one configuration."""

LARGEST_SAFE = float(2**62)
"""Half of what 64 bits hold: twice the error that floating-point bounds can have, and more."""

EVALUATION = "evaluation"
"""The name of the programs of an evaluation batch, beside those of the losses."""


def evaluate(expression: str, values: Mapping[str, Size]) -> Size:
    """Return the bytes of an expression for every configuration of `values`, or for one."""
    if "/" not in expression:
        return _product(expression, values)
    name, _, rest = expression.partition("/")
    if name == "cublas":
        return int(rest) + 0 * values["V"]
    entry, _, tokens = rest.partition(":")
    if name == "embedding_backward":
        return _embedding(int(entry), _product(tokens, values), values)
    if name == "sort":
        return scratch.sort(_product(tokens, values))[int(entry)]
    head_dim = values["D"] // values["H"]
    if name == "flash_backward":
        return scratch.flash_backward(values["M"], values["B"], values["H"], head_dim)[int(entry)]
    if name == "efficient_backward":
        return scratch.efficient_backward(values["M"], values["H"], head_dim)[int(entry)]
    raise ValueError(f"unknown formula in {expression!r}")


def product(coefficient: int, powers: Mapping[str, int]) -> str:
    """Return the expression of a coefficient times powers: product(4, {"V": 1, "D": 1}) is "4*V*D"."""
    factors = [name for name in sorted(powers) for _ in range(powers[name])]
    return "*".join([str(coefficient), *factors] if coefficient != 1 or not factors else factors)


def exact(values: Values) -> Values:
    """Return the same values as Python integers, of which no product overflows."""
    return {name: array.astype(object) for name, array in values.items()}


def largest(values: Values) -> Values | None:
    """Return the largest of every variable in floating point, which bounds every expression.

    None where 64 bits are too few for the variables themselves.
    """
    if any(array.dtype == object for array in values.values()):
        return None
    return {name: np.array([array.max()], dtype=np.float64) for name, array in values.items()}


def variables(expression: str) -> Counter[str]:
    """Count how often each variable stands in an expression as a factor."""
    factors = expression.rpartition(":")[2] if "/" in expression else expression
    return Counter(factor for factor in factors.split("*") if factor and not factor[0].isdigit() and "/" not in factor)


def attention_rows(seq_len: int) -> int:
    """Return the number of positions that memory-efficient (fp32) attention keeps row sums for."""
    return scratch.round_up(seq_len, 32)


def step_values(configurations: Sequence[Configuration]) -> dict[str, NDArray[np.int64]]:
    """Return the variables of training steps, one array element per configuration."""
    return _columns([step_row(each) for each in configurations])


def pass_values(configuration: Configuration, sizes: Sequence[tuple[int, int]]) -> dict[str, NDArray[np.int64]]:
    """Return the variables of passes of one configuration, each of so many (tokens, sequences)."""
    return _columns([pass_row(configuration, *each) for each in sizes])


def evaluation_row(configuration: Configuration, users: int, seen_pairs: int) -> dict[str, int]:
    """Return the variables of one evaluation batch."""
    chunk = chunking.ranking_chunk_items(users, configuration.catalog)
    last = _last(configuration.catalog, chunk)
    row = pass_row(configuration, evaluation_tokens(configuration, users), users)
    chunks = -(-configuration.catalog // chunk)
    return row | {"U": users, "Q": seen_pairs, "C": chunk, "c": last, "chunks": chunks}


def evaluation_values(configuration: Configuration, users: int, seen_pairs: int) -> dict[str, NDArray[np.int64]]:
    """Return the same as arrays of one element."""
    return _columns([evaluation_row(configuration, users, seen_pairs)])


def evaluation_tokens(configuration: Configuration, users: int) -> int:
    """Return the tokens of an evaluation batch of so many users, at most: those of a pass, and one history at least."""
    return min(users * configuration.seq_len, max(configuration.tokens, configuration.seq_len))


def chunks(values: Mapping[str, Size]) -> Size:
    """Return how many chunks a step of a chunked loss runs, or an evaluation batch; 1 for the other losses.

    The Triton kernels have no chunks, but two ways to run. 2 stands for the one that takes more memory: the catalog is
    split, or a copy of the table is made.
    """
    return values["chunks"]


def program_key(loss: str, configuration: Configuration, many_chunks: bool, several_passes: bool | None = None) -> str:
    """Return the key of a program: `loss` is that of a step, or "evaluation", which knows no options of training.

    The configuration says whether there are several passes, where nobody else does.
    """
    model = "" if configuration.model == DEFAULT_MODEL else f"{configuration.model}/"
    chunks = "many" if many_chunks else "one"
    key = f"{model}{loss}/{configuration.precision}/{configuration.architecture.blocks}/{chunks}"
    if loss == EVALUATION:
        return key
    key += "" if configuration.sampler == "uniform" else f"/{configuration.sampler}"
    several = configuration.several_passes if several_passes is None else several_passes
    triton = configuration.kernel == "triton" and LOSSES[loss].chunked
    return key + "/recompute" * configuration.recompute + "/passes" * several + "/triton" * triton


def _last(total: int, chunk: int) -> int:
    """Return the size of the last chunk."""
    return (total - 1) % chunk + 1


def _columns(rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
    return {name: integers([row[name] for row in rows]) for name in rows[0]}


def step_row(configuration: Configuration) -> dict[str, int]:
    """Return the variables of a training step: those of its fullest pass."""
    return pass_row(configuration, configuration.tokens, configuration.sequences)


def pass_row(configuration: Configuration, tokens: int, sequences: int) -> dict[str, int]:
    """Return the variables of a pass of so many tokens and sequences."""
    catalog, dim = configuration.catalog, configuration.architecture.dim
    negatives, group = _negatives(configuration), configuration.tokens_per_set
    targets = configuration.targets_of(tokens, sequences)
    sets = chunking.call_sets(targets, group)
    chunk = chunking.softmax_chunk_tokens(targets, catalog)
    set_chunk = chunking.sampled_chunk_sets(targets, max(1, negatives), dim, group)
    row = {
        "V": catalog,
        "D": dim,
        "H": configuration.architecture.heads,
        "B": sequences,
        "J": sequences + 1,
        "N": configuration.batch_targets,
        "L": configuration.seq_len,
        "A": attention_rows(configuration.seq_len),
        "M": tokens,
        "F": targets,
        "n": negatives,
        "K": negatives + 1,
        "G": group,
        "P": sets * group,
        "sets": sets,
        "T": chunk,
        "t": _last(targets, chunk),
        "S": set_chunk,
        "s": _last(sets, set_chunk),
        "I": min(catalog, chunking.ITEM_ROWS),
    }
    if LOSSES[configuration.loss].bucketed:
        buckets = chunking.buckets(targets)
        row |= {
            "b": buckets,
            "q": chunking.bucket_chunk(buckets, catalog),
            "r": chunking.bucket_chunk(buckets, targets),
        }
    return row | _variant(configuration, row)


def _negatives(configuration: Configuration) -> int:
    """Return the negatives of a set: uniform ones of `cce-` are at most the items that blocks hold."""
    blocks = LOSSES[configuration.loss].shares_negatives and configuration.sampler == "uniform"
    asked = configuration.drawn_negatives or 0
    return min(asked, most_negatives(configuration.catalog)) if blocks else asked


def _variant(configuration: Configuration, row: Mapping[str, int]) -> dict[str, int]:
    """Return how many chunks there are, and for the Triton kernels how they run."""
    loss = LOSSES[configuration.loss]
    if not loss.chunked:
        return {"chunks": 1}
    if configuration.kernel == "triton":
        return _triton_variant(configuration, row)
    return {"chunks": -(-row["sets"] // row["S"]) if loss.sampled else -(-row["F"] // row["T"])}


def _triton_variant(configuration: Configuration, row: Mapping[str, int]) -> dict[str, int]:
    half = configuration.precision != "fp32"
    if LOSSES[configuration.loss].sampled:
        blocks = BlockGrid(tokens=row["F"], catalog=row["V"], dim=row["D"], fp32=not half)
        pays = half and chunking.table_copy_pays(row["F"], row["G"], row["n"], row["V"])
        return {"chunks": 1 + pays, "W": blocks.padded, "E": blocks.programs + 1}
    grid = SoftmaxGrid(tokens=row["F"], catalog=row["V"], dim=row["D"], fp32=not half, capability=ASSUMED_CAPABILITY)
    return {"chunks": 1 + (grid.splits > 1), "X": grid.splits, "Y": grid.blocks, "Z": grid.spans, "W": grid.padded}


def integers(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return numbers as 64-bit integers, or as Python's own where one of them is larger."""
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        return np.array(numbers, dtype=object)


def _product(expression: str, values: Mapping[str, Size]) -> Size:
    number, names = _factors(expression)
    return reduce(mul, (values[name] for name in names), number + 0 * values["V"])


@cache
def _factors(expression: str) -> tuple[int, tuple[str, ...]]:
    """Return the number and the variables of a product."""
    factors = expression.split("*")
    number = prod(int(factor) for factor in factors if factor[0].isdigit())
    return number, tuple(factor for factor in factors if not factor[0].isdigit())


def _embedding(entry: int, tokens: Size, values: Mapping[str, Size]) -> Size:
    before: tuple[Size, ...] = scratch.embedding_backward_before(tokens)
    after: tuple[tuple[Size, bool], ...] = scratch.embedding_backward_after(tokens, values["V"], values["D"])
    size: Size = before[entry] if entry < len(before) else after[entry - len(before)][0]
    return size * (tokens > scratch.SORTED_LOOKUP)
