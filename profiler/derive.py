"""Derives the closed form of the memory of a step from the ledger: no hand-written formula, no fitted constant.

The step runs once on meta tensors with sizes chosen so that every variable carries a prime factor of its own (its
signature). Each storage's bytes then factor into an exact product of variables, and every instant of the trace into a
sum of such products. Instants that are never the largest over many random configurations are dropped; the rest is
the closed form: the allocated peak is their maximum.

    python -m srsplan.profiler.derive        writes planner/data/closed_form.json
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product as combinations
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from srsplan.kernels import chunking
from srsplan.models.config import LOSSES, Architecture, Configuration, Precision
from srsplan.profiler import expressions
from srsplan.profiler.allocator import replay
from srsplan.profiler.ledger import GRANULE_BYTES, Allocation
from srsplan.profiler.simulate import EvaluationSizes, Simulated, simulate_evaluation, simulate_step

VERSION = 1
BLOCKS = (1, 2, 3, 4)
PRECISIONS = ("fp16", "bf16", "fp32")
SMALL_PRIMES = (2, 3, 5, 7)
LARGEST_COEFFICIENT = 1 << 14
SAMPLES = 4000
RATIO_SAMPLES = 120
SMALLEST_RATIO_BYTES, LARGEST_RATIO_BYTES = 500 << 20, 180 << 30
SLACK_BYTES = 64 << 20
"""Of the small pool and of pages half used: reserved = ratio x allocated + this."""

SEQ_LEN = 409
"""Prime, and 13 x 32 when padded to 32."""

Instant = Counter[tuple[str, str]]
"""Live storages of one instant: (tag, expression) -> how many."""


class NotFactored(ValueError):
    """A storage's bytes are no product of the variables: the sizes chosen are not generic, or a variable is missing."""


def largest_prime_factor(number: int) -> int:
    """The signature of a size; 1 has none and gives 1."""
    factor, rest, largest = 2, number, 1
    while factor * factor <= rest:
        if rest % factor:
            factor += 1
        else:
            rest, largest = rest // factor, factor
    return max(largest, rest)


def factor(size: int, sizes: Mapping[str, tuple[str, int]]) -> str:
    """The expression of a size in bytes; `sizes` maps a label to (variable, value), several labels to one variable.

    Raises NotFactored where a large factor is left over.
    """
    powers: Counter[str] = Counter()
    rest = size
    for variable, value in sizes.values():
        signature = largest_prime_factor(value)
        while rest % signature == 0 and rest % value == 0:
            powers[variable] += 1
            rest //= value
    left = rest
    for prime in SMALL_PRIMES:
        while left % prime == 0:
            left //= prime
    if left != 1 or rest > LARGEST_COEFFICIENT:
        raise NotFactored(f"{size} bytes leave {rest}")
    return expressions.product(rest, powers)


def generic_step(loss: str, precision: Precision, blocks: int) -> tuple[Configuration, dict[str, tuple[str, int]]]:
    """A configuration whose sizes can be told apart, and the table of its variables."""
    sampled = LOSSES[loss].sampled
    negatives = (LOSSES[loss].fixed_negatives or 61) if sampled else None
    group = 37 if LOSSES[loss].shares_negatives else 1
    architecture = Architecture(dim=8 * 11 * 29, blocks=blocks, heads=11)
    batches = (1009, 1013, 1019, 1021)
    for catalog, tokens, batch in combinations(range(100_003, 104_000, 2), range(70_001, 70_041), batches):
        # two chunks exactly, so that the last one's size can be told from the others'
        short = {"cce": tokens - 69_150, "cce-": tokens - 46_991}.get(loss, tokens)
        configuration = Configuration(
            loss=loss, catalog=catalog, batch_size=batch, seq_len=SEQ_LEN, negatives=negatives, tokens_per_set=group,
            valid_tokens=short, architecture=architecture, precision=precision,
        )  # fmt: skip
        sizes = _step_sizes(configuration)
        if _generic(sizes):
            return configuration, sizes
    raise NotFactored(f"no generic sizes for {loss}")


def _step_sizes(configuration: Configuration) -> dict[str, tuple[str, int]]:
    row = {name: int(array[0]) for name, array in expressions.step_values([configuration]).items()}
    loss = LOSSES[configuration.loss]
    names = ["V", "D", "H", "B", "L", "A", "M"]
    if loss.sampled and loss.fixed_negatives is None:
        names += ["n", "K"]
    sizes = {name: (name, row[name]) for name in names}
    if loss.shares_negatives:
        sets = row["P"] // row["G"]
        sizes |= {"S": ("S", row["S"]), "S last": ("S", sets - row["S"])}
        sizes |= {"P": ("P", row["P"]), "G": ("G", row["G"])}
    if configuration.loss == "cce":
        sizes |= {"T": ("T", row["T"]), "T last": ("T", row["M"] - row["T"])}
        sizes |= {"I last": ("I", row["V"] % row["I"]), "I": ("I", row["I"])}
    return sizes


def _generic(sizes: Mapping[str, tuple[str, int]]) -> bool:
    """Every signature divides no other value. H divides D, G divides P: they are looked for later. I is 2^16."""
    values = {label: value for label, (_, value) in sizes.items() if label != "I"}
    if min(values.values()) < 11:
        return False
    signatures = {label: largest_prime_factor(value) for label, value in values.items()}
    if min(signatures.values()) <= max(SMALL_PRIMES):
        return False
    return not any(
        other % signature == 0
        for label, signature in signatures.items()
        for other_label, other in values.items()
        if other_label != label and (label, other_label) not in (("H", "D"), ("G", "P"))
    )


def generic_evaluation(
    precision: Precision, blocks: int
) -> tuple[Configuration, EvaluationSizes, dict[str, tuple[str, int]]]:
    """The same for an evaluation batch of two chunks of items."""
    architecture = Architecture(dim=8 * 11 * 29, blocks=blocks, heads=11)
    for users, rest, pairs in combinations(
        (521, 523, 541, 547, 557, 563), range(100_003, 100_203, 2), range(7001, 7041, 2)
    ):
        chunk = chunking.ranking_chunk_items(users, chunking.CHUNK_ELEMENTS)
        configuration = Configuration(
            loss="cce",
            catalog=chunk + rest,
            batch_size=1,
            seq_len=SEQ_LEN,
            architecture=architecture,
            precision=precision,
        )
        sizes = {
            "V": configuration.catalog,
            "D": architecture.dim,
            "H": 11,
            "L": SEQ_LEN,
            "A": expressions.attention_rows(SEQ_LEN),
            "U": users,
            "Q": pairs,
            "C": chunk,
        }
        table = {name: (name, value) for name, value in sizes.items()} | {"C last": ("C", rest)}
        if _generic(table):
            return configuration, EvaluationSizes(users=users, seen_pairs=pairs), table
    raise NotFactored("no generic sizes for evaluation")


def symbolic(allocation: Allocation, sizes: Mapping[str, tuple[str, int]]) -> tuple[str, str]:
    """(tag, expression) of one storage."""
    name, _, rest = allocation.operator.partition("/")
    if name == "cublas":
        return "workspace", f"cublas/{allocation.requested_bytes}"
    if name == "attention_backward":
        return "workspace", allocation.operator
    if name == "embedding_backward":
        entry, _, tokens = rest.partition("/")
        return "workspace", f"{name}/{entry}:{factor(int(tokens), sizes)}"
    if allocation.requested_bytes <= GRANULE_BYTES:
        return _tag(allocation, Counter()), str(GRANULE_BYTES)
    expression = factor(allocation.requested_bytes, sizes)
    return _tag(allocation, expressions.variables(expression)), expression


def _tag(allocation: Allocation, powers: Counter[str]) -> str:
    """Who holds a storage, from where it was made and what its size depends on."""
    if allocation.phase == "build":
        return "table" if powers["V"] else "model"
    if allocation.phase in ("batch", "optimizer"):
        return allocation.phase
    if powers["V"] and powers["D"]:
        return "gradient" if allocation.dtype == "torch.float32" else "table copy"
    if powers["I"]:
        return "workspace"
    if powers["V"] or powers["C"]:
        return "logits"
    if powers["n"] or powers["K"]:
        return "negatives"
    if allocation.phase == "backward" and not powers & Counter("BLAMTSGP"):
        return "gradient"
    return "activation"


def instants(simulated: Simulated, sizes: Mapping[str, tuple[str, int]]) -> list[Instant]:
    """Every local maximum of the steady part: the live storages before a free."""
    trace = simulated.trace
    symbols = [symbolic(allocation, sizes) for allocation in trace.allocations]
    live: Instant = Counter()
    found: dict[frozenset[tuple[tuple[str, str], int]], Instant] = {}
    for position, event in enumerate(trace.events):
        if event >= 0:
            live[symbols[event]] += 1
        else:
            live[symbols[~event]] -= 1
        falls = position + 1 == len(trace.events) or trace.events[position + 1] < 0
        if event >= 0 and falls and position >= simulated.first_event:
            snapshot = +live
            found[frozenset(snapshot.items())] = snapshot
    return list(found.values())


def totals(forms: Iterable[Instant], values: expressions.Values) -> NDArray[np.int64]:
    """Allocated bytes of every instant (rows) for every configuration (columns)."""
    cache: dict[str, NDArray[np.int64]] = {}

    def rounded(expression: str) -> NDArray[np.int64]:
        if expression not in cache:
            size = expressions.evaluate(expression, values)
            cache[expression] = -(-size // GRANULE_BYTES) * GRANULE_BYTES
        return cache[expression]

    return np.stack([sum(count * rounded(text) for (_, text), count in form.items()) for form in forms])


def decisive(forms: list[Instant], values: expressions.Values) -> list[Instant]:
    """The instants that are the largest somewhere, fewest first that are within 0.01% of the maximum everywhere."""
    table = totals(forms, values)
    peak = table.max(0)
    chosen: list[int] = []
    covered = np.zeros(peak.shape, dtype=bool)
    while not covered.all():
        wins = (table >= peak * (1 - 1e-4)) & ~covered
        best = int(wins.sum(1).argmax())
        chosen.append(best)
        covered |= wins[best]
    return [forms[index] for index in chosen]


def random_steps(loss: str, precision: Precision, blocks: int, count: int, seed: int = 0) -> list[Configuration]:
    """Configurations as users have them: sizes log-uniform over the ranges that the closed form is made for."""
    draw = random.Random(seed)

    def size(low: int, high: int) -> int:
        return round(low * math.exp(draw.random() * math.log(high / low)))

    def one() -> Configuration:
        catalog = size(1_000, 10_000_000)
        batch, length = size(4, 8192), size(4, 1024)
        limit = LOSSES[loss]
        negatives = min(size(16, 4096), catalog - 1) if limit.sampled else None
        return Configuration(
            loss=loss, catalog=catalog, batch_size=batch, seq_len=length,
            negatives=limit.fixed_negatives or negatives,
            tokens_per_set=draw.choice((1, 16, 32, 64, 128)) if limit.shares_negatives else 1,
            valid_tokens=max(1, round(batch * length * size(20, 1000) / 1000)),
            architecture=Architecture(dim=2 ** draw.randint(5, 9), heads=draw.choice((1, 2)), blocks=blocks),
            precision=precision,
        )  # fmt: skip

    return [one() for _ in range(count)]


def derive_step(loss: str, precision: Precision, blocks: int) -> list[Instant]:
    """The closed form of one loss."""
    configuration, sizes = generic_step(loss, precision, blocks)
    found = instants(simulate_step(configuration), sizes)
    return decisive(found, expressions.step_values(random_steps(loss, precision, blocks, SAMPLES)))


def few_chunks(configuration: Configuration) -> Configuration:
    """Fewer valid tokens where a chunked loss would run thousands of chunks: the peak is that of any chunk."""
    tokens = configuration.fullest_tokens
    if configuration.loss == "cce":
        tokens = min(tokens, 5 * chunking.softmax_chunk_tokens(tokens, configuration.catalog) + 3)
    if configuration.loss == "cce-" and configuration.negatives:
        group, dim = configuration.tokens_per_set, configuration.architecture.dim
        sets = chunking.sampled_chunk_sets(tokens, configuration.negatives, dim, group)
        tokens = min(tokens, 5 * sets * group + 3)
    return replace(configuration, valid_tokens=tokens)


def derive_ratios(loss: str, precision: Precision) -> dict[str, float]:
    """Reserved over allocated peak with expandable segments, median and largest of random configurations.

    Not a formula: fragmentation has none. The allocator's model replays three steps of each configuration.
    """
    found = []
    for configuration in map(few_chunks, random_steps(loss, precision, 2, RATIO_SAMPLES, seed=11)):
        simulated = simulate_step(configuration, steps=3)
        allocated = simulated.allocated_bytes
        if SMALLEST_RATIO_BYTES <= allocated <= LARGEST_RATIO_BYTES:
            sizes = [allocation.requested_bytes for allocation in simulated.trace.allocations]
            found.append((replay(sizes, simulated.trace.events).reserved_bytes - SLACK_BYTES) / allocated)
    return {"median": round(median(found), 4), "largest": round(max(found), 4), "samples": len(found)}


def derive_evaluation(precision: Precision, blocks: int) -> list[Instant]:
    """The closed form of evaluation."""
    configuration, sizes, table = generic_evaluation(precision, blocks)
    found = instants(simulate_evaluation(configuration, sizes), table)
    samples = random_steps("cce", precision, blocks, SAMPLES // 10, seed=1)
    draw = random.Random(2)
    users = [2 ** draw.randrange(4, 12) for _ in samples]
    rows = [
        expressions.evaluation_values(each, count, count * each.seq_len * draw.randrange(1, 4))
        for each, count in zip(samples, users, strict=True)
    ]
    return decisive(found, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def derive_all(report: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Every closed form as one JSON document: forms."loss/precision/blocks" -> instants -> [tag, expression, count]."""
    import torch

    forms: dict[str, list[list[list[str | int]]]] = {}
    for key, derived in _derivations():
        report(f"{key}: {len(derived)} instants")
        forms[key] = [[[tag, text, count] for (tag, text), count in sorted(form.items())] for form in derived]
    ratios = {}
    for loss, precision in combinations(LOSSES, ("fp16", "fp32")):
        ratios[f"{loss}/{precision}"] = derive_ratios(loss, cast(Precision, precision))
        report(f"{loss}/{precision}: {ratios[f'{loss}/{precision}']}")
    document = {"version": VERSION, "torch": torch.__version__.partition("+")[0], "slack_bytes": SLACK_BYTES}
    return {**document, "ratios": ratios, "forms": forms}


def _derivations() -> Iterator[tuple[str, list[Instant]]]:
    for precision, blocks in combinations(PRECISIONS, BLOCKS):
        kind = cast(Precision, precision)
        for loss in LOSSES:
            yield f"{loss}/{precision}/{blocks}", derive_step(loss, kind, blocks)
        yield f"evaluation/{precision}/{blocks}", derive_evaluation(kind, blocks)


def main() -> None:
    """Write the shipped file."""
    target = Path(__file__).resolve().parents[1] / "planner" / "data" / "closed_form.json"
    document = derive_all(lambda line: sys.stderr.write(line + "\n"))
    target.write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
