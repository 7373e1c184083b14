"""Sizes as expressions in the knobs, evaluated for whole arrays of configurations at once. Imports no torch.

Arrays hold 64-bit integers where every result is below 2^62, else Python's own, which are exact at any size. For one
configuration plain integers do the same, several times as fast: `evaluate` and `chunks` take either.

An expression is a string, so that it ships as data and reads as a formula:

    "4*V*D"                          bytes as a coefficient times powers of variables
    "512"                            a constant
    "embedding_backward/11:M*K"      entry 11 of a scratch formula, for so many looked-up tokens
    "attention_backward/1"           entry 1 of the attention's scratch

Variables: V catalog, D dim, H heads, B batch size, L sequence length, A = L padded to 32, M valid tokens,
n negatives, K = n + 1, G tokens per set, P = M padded to whole sets, T tokens per chunk of the full softmax and t of
the last one, S sets per chunk of the sampled one and s of the last, I rows per block of the table's gradient; for
evaluation U users ranked at once, Q (user, item) pairs they have seen, C items per chunk and c of the last.
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
from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Configuration
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
    if name == "attention_backward":
        sizes = scratch.attention_backward(values["B"], values["H"], values["L"], values["D"] // values["H"])
        return sizes[int(entry)]
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
    rows = [step_row(configuration) for configuration in configurations]
    return {name: _integers([row[name] for row in rows]) for name in rows[0]}


def evaluation_row(configuration: Configuration, users: int, seen_pairs: int) -> dict[str, int]:
    """Return the variables of one evaluation batch."""
    chunk = chunking.ranking_chunk_items(users, configuration.catalog)
    last = _last(configuration.catalog, chunk)
    return step_row(configuration) | {"U": users, "Q": seen_pairs, "C": chunk, "c": last}


def evaluation_values(configuration: Configuration, users: int, seen_pairs: int) -> dict[str, NDArray[np.int64]]:
    """Return the same as arrays of one element."""
    return {name: _integers([value]) for name, value in evaluation_row(configuration, users, seen_pairs).items()}


def chunks(loss: str, values: Mapping[str, Size]) -> Size:
    """Return how many chunks a step of a chunked loss runs, or an evaluation batch; 1 for the other losses."""
    if loss == EVALUATION:
        total, chunk = "V", "C"
    elif not LOSSES[loss].chunked:
        total, chunk = "V", "V"
    else:
        total, chunk = ("sets", "S") if LOSSES[loss].sampled else ("M", "T")
    return -(-values[total] // values[chunk])


def program_key(loss: str, configuration: Configuration, many_chunks: bool) -> str:
    """Return the key of a program: `loss` is that of a step, or "evaluation", which knows no options of training."""
    key = f"{loss}/{configuration.precision}/{configuration.architecture.blocks}/{'many' if many_chunks else 'one'}"
    if loss == EVALUATION:
        return key
    key += "" if configuration.sampler == "uniform" else f"/{configuration.sampler}"
    return key + "/recompute" * configuration.recompute + "/parts" * (configuration.micro_batches > 1)


def _last(total: int, chunk: int) -> int:
    """Return the size of the last chunk."""
    return (total - 1) % chunk + 1


def step_row(configuration: Configuration) -> dict[str, int]:
    """Return the variables of a training step."""
    catalog, tokens, dim = configuration.catalog, configuration.fullest_tokens, configuration.architecture.dim
    negatives, group = configuration.negatives or 0, configuration.tokens_per_set
    sets = chunking.set_count(tokens, group)
    chunk = chunking.softmax_chunk_tokens(tokens, catalog)
    set_chunk = chunking.sampled_chunk_sets(tokens, max(1, negatives), dim, group)
    return {
        "V": catalog,
        "D": dim,
        "H": configuration.architecture.heads,
        "B": configuration.micro_batch_size,
        "L": configuration.seq_len,
        "A": attention_rows(configuration.seq_len),
        "M": tokens,
        "n": negatives,
        "K": negatives + 1,
        "G": group,
        "P": sets * group,
        "sets": sets,
        "T": chunk,
        "t": _last(tokens, chunk),
        "S": set_chunk,
        "s": _last(sets, set_chunk),
        "I": min(catalog, chunking.ITEM_ROWS),
    }


def _integers(numbers: Sequence[int]) -> NDArray[np.int64]:
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
