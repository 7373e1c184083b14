"""Derives the closed form of the memory of a step from the ledger: no hand-written formula, no fitted constant.

The step runs once on meta tensors with sizes chosen so that every variable carries a prime factor of its own (its
signature). Each storage's bytes then factor into an exact product of variables, and the trace becomes a program of
allocations (`program`). A chunked loss runs with two, three and four chunks: what three have more is the loop.

    python -m srsplan.profiler.memory.derive        writes data/programs.gz beside this file
"""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from itertools import product as combinations
from multiprocessing import get_context
from pathlib import Path
from typing import cast

from srsplan.kernels import chunking
from srsplan.kernels.losses import DEFAULT_LOSS, LOSSES, Sampler
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.ledger import GRANULE_BYTES, Allocation
from srsplan.profiler.memory.program import Code, Program, encode, looped
from srsplan.profiler.memory.simulate import EvaluationSizes, Simulated, simulate_evaluation, simulate_step

BLOCKS = (1, 2, 3, 4)
PRECISIONS = ("fp16", "bf16", "fp32")
SMALL_PRIMES = (2, 3, 5, 7)
LARGEST_COEFFICIENT = 1 << 14

SEQ_LEN = 409
"""Prime, and 13 x 32 when padded to 32."""


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


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a program is made for: everything that changes more than sizes."""

    loss: str
    precision: Precision
    blocks: int
    sampler: Sampler = "uniform"
    recompute: bool = False
    parts: bool = False
    """Micro-batches: two stand for any number, the third leaves everything as the second did."""


def generic_step(kind: Kind, chunks: int = 1) -> tuple[Configuration, dict[str, tuple[str, int]]]:
    """A configuration of so many chunks whose sizes can be told apart, and the table of its variables."""
    loss, parts = kind.loss, 2 if kind.parts else 1
    kind_of, sampled = LOSSES[loss], LOSSES[loss].sampled
    negatives = (LOSSES[loss].fixed_negatives or 61) if sampled else None
    group = 37 if LOSSES[loss].shares_negatives else 1
    architecture = Architecture(dim=8 * 11 * 29, blocks=kind.blocks, heads=11)
    batches = (1009, 1013, 1019, 1021)
    for catalog, extra, batch in combinations(
        range(100_003, 104_000, 2), range(0, 40 * group, group // 5 + 1), batches
    ):
        full = 0
        if kind_of.chunked and not sampled:
            full = chunking.softmax_chunk_tokens(10**9, catalog)
        if kind_of.chunked and sampled:
            full = group * chunking.sampled_chunk_sets(10**9, negatives or 1, architecture.dim, group)
        tokens = full // 3 + (chunks - 1) * full + extra if LOSSES[loss].chunked else 70_001 + extra
        configuration = Configuration(
            loss=loss, catalog=catalog, batch_size=parts * batch, seq_len=SEQ_LEN, negatives=negatives,
            tokens_per_set=group, sampler=kind.sampler, valid_tokens=tokens, architecture=architecture,
            precision=kind.precision,
            micro_batches=parts, recompute=kind.recompute,
        )  # fmt: skip
        sizes = _step_sizes(configuration)
        if _generic(sizes):
            return configuration, sizes
    raise NotFactored(f"no generic sizes for {loss}")


def _step_sizes(configuration: Configuration) -> dict[str, tuple[str, int]]:
    values = expressions.step_values([configuration])
    row = {name: int(array[0]) for name, array in values.items()}
    loss, single = LOSSES[configuration.loss], int(expressions.chunks(configuration.loss, values)[0]) == 1
    names = ["V", "D", "H", "B", "L", "A", "M"]
    if loss.sampled and loss.fixed_negatives is None:
        names += ["n", "K"]
    if loss.shares_negatives:
        names += ["S", "G"] if single else ["S", "s", "P", "G"]
    if loss.chunked and not loss.sampled:
        names += [] if single else ["T", "t"]
    sizes = {name: (name, row[name]) for name in names}
    if loss.chunked and not loss.sampled:
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
    precision: Precision, blocks: int, chunks: int
) -> tuple[Configuration, EvaluationSizes, dict[str, tuple[str, int]]]:
    """The same for an evaluation batch of so many chunks of items."""
    architecture = Architecture(dim=8 * 11 * 29, blocks=blocks, heads=11)
    for users, rest, pairs in combinations(
        (521, 523, 541, 547, 557, 563), range(100_003, 100_203, 2), range(7001, 7041, 2)
    ):
        catalog = (chunks - 1) * chunking.ranking_chunk_items(users, 10**9) + rest
        configuration = Configuration(
            loss=DEFAULT_LOSS,
            catalog=catalog,
            batch_size=1,
            seq_len=SEQ_LEN,
            architecture=architecture,
            precision=precision,
        )
        row = expressions.evaluation_values(configuration, users, pairs)
        names = ["V", "D", "H", "L", "A", "U", "Q", *(["C", "c"] if chunks > 1 else [])]
        sizes = {name: (name, int(row[name][0])) for name in names}
        if _generic(sizes):
            return configuration, EvaluationSizes(users=users, seen_pairs=pairs), sizes
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
    if powers.keys() == {"V"}:  # weights of a sampler
        return "negatives"
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


class Recorder:
    """Turns traces into code with one table of symbols."""

    def __init__(self) -> None:
        self.symbols: dict[tuple[str, str], int] = {}

    def parts(self, simulated: Simulated, sizes: Mapping[str, tuple[str, int]], marks: Sequence[int]) -> list[Code]:
        """The code between every two of the trace's events `marks`."""
        trace = simulated.trace
        numbers = {
            index: self.symbols.setdefault(symbolic(allocation, sizes), len(self.symbols))
            for index, allocation in enumerate(trace.allocations)
        }
        live: list[int] = []
        return [encode(trace.events[first:last], numbers, live) for first, last in pairwise(marks)]

    def program(self, setup: Code, first: Code, step: Code) -> Program:
        """With the symbols met so far."""
        return Program(tuple(self.symbols), setup, first, step)


def derive_step(kind: Kind, many_chunks: bool) -> Program:
    """The program of one loss, where all fits one chunk or where there are two or more."""
    recorder, parts = Recorder(), 2 if kind.parts else 1

    def pieces(chunks: int) -> list[Code]:
        """Set-up, then every micro-batch of four steps."""
        configuration, sizes = generic_step(kind, chunks)
        simulated = simulate_step(configuration, steps=4)
        starts = [simulated.trace.start_of("forward", number) for number in range(3 * parts + 1)]
        return recorder.parts(simulated, sizes, [0, *starts])

    found = [pieces(chunks) for chunks in ((2, 3, 4) if many_chunks else (1,))]
    setup, *batches = [looped(*each) if many_chunks else each[0] for each in zip(*found, strict=True)]
    first, step, again = ([*chain(*batches[at : at + parts])] for at in (0, parts, 2 * parts))
    if step != again:
        raise NotFactored(f"the steps of {kind} are not alike")
    return recorder.program(setup, first, step)


def derive_evaluation(precision: Precision, blocks: int, many_chunks: bool) -> Program:
    """The program of an evaluation batch: `setup` is the model and the optimizer's states."""
    recorder = Recorder()

    def parts(chunks: int) -> list[Code]:
        configuration, users, sizes = generic_evaluation(precision, blocks, chunks)
        simulated = simulate_evaluation(configuration, users)
        trace = simulated.trace
        setup, body = recorder.parts(simulated, sizes, [0, trace.start_of("batch"), trace.start_of("idle")])
        return [setup, [], [*body, *[-1] * (_kept(body))]]

    if not many_chunks:
        return recorder.program(*parts(1))
    return recorder.program(*(looped(*three) for three in zip(parts(2), parts(3), parts(4), strict=True)))


def _kept(code: Code) -> int:
    """How many storages a part leaves behind."""
    return sum(1 if each >= 0 else -1 for each in code)


def random_steps(
    loss: str, precision: Precision, blocks: int, count: int, seed: int = 0, options: bool = False
) -> list[Configuration]:
    """Configurations as users have them: sizes log-uniform over the ranges that the closed form is made for.

    With `options` also micro-batches, recomputation and samplers.
    """
    draw = random.Random(seed)

    def size(low: int, high: int) -> int:
        return round(low * math.exp(draw.random() * math.log(high / low)))

    def one() -> Configuration:
        catalog = size(1_000, 10_000_000)
        batch, length = size(4, 8192), size(4, 1024)
        parts, recompute = (draw.randint(1, 4), draw.random() < 0.5) if options else (1, False)
        limit = LOSSES[loss]
        negatives = min(size(16, 4096), catalog - 1) if limit.sampled else None
        return Configuration(
            loss=loss, catalog=catalog, batch_size=batch, seq_len=length,
            negatives=limit.fixed_negatives or negatives,
            tokens_per_set=draw.choice((1, 16, 32, 64, 128)) if limit.shares_negatives else 1,
            sampler=draw.choice(limit.samplers) if options else "uniform",
            valid_tokens=max(1, round(-(-batch // parts) * length * size(20, 1000) / 1000)),
            architecture=Architecture(dim=2 ** draw.randint(5, 9), heads=draw.choice((1, 2)), blocks=blocks),
            precision=precision, micro_batches=parts, recompute=recompute,
        )  # fmt: skip

    return [one() for _ in range(count)]


def few_chunks(configuration: Configuration) -> Configuration:
    """Fewer valid tokens where a chunked loss would run thousands of chunks: the peak is that of any chunk."""
    tokens = configuration.fullest_tokens
    loss = LOSSES[configuration.loss]
    if loss.chunked and not loss.sampled:
        tokens = min(tokens, 5 * chunking.softmax_chunk_tokens(tokens, configuration.catalog) + 3)
    if loss.chunked and configuration.negatives:
        group, dim = configuration.tokens_per_set, configuration.architecture.dim
        sets = chunking.sampled_chunk_sets(tokens, configuration.negatives, dim, group)
        tokens = min(tokens, 5 * sets * group + 3)
    return replace(configuration, valid_tokens=tokens)


Group = tuple[Precision, int, bool]
"""Precision, blocks, and whether there are many chunks."""


def derive_all(report: Callable[[str], object] = lambda _: None) -> Iterator[str]:
    """Every program as a line: its `expressions.program_key`, a blank, JSON. One process for every core."""
    groups = [(cast(Precision, each), *rest) for each, *rest in combinations(PRECISIONS, BLOCKS, (False, True))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for number, (group, lines) in enumerate(zip(groups, pool.map(_lines, groups), strict=True), start=1):
            report(f"{number} of {len(groups)}: {group[0]}, {group[1]} blocks, {len(lines)} programs")
            yield from lines


def _lines(group: Group) -> list[str]:
    return [
        f"{key} {json.dumps(program.to_document(), separators=(',', ':'))}\n" for key, program in _derivations(*group)
    ]


def _derivations(precision: Precision, blocks: int, many: bool) -> Iterator[tuple[str, Program]]:
    evaluation = generic_evaluation(precision, blocks, 1)[0]
    yield expressions.program_key("evaluation", evaluation, many), derive_evaluation(precision, blocks, many)
    pairs = [(loss.name, sampler) for loss in LOSSES.values() if loss.chunked or not many for sampler in loss.samplers]
    for (loss, sampler), recompute, parts in combinations(pairs, (False, True), (False, True)):
        kind = Kind(loss=loss, precision=precision, blocks=blocks, sampler=sampler, recompute=recompute, parts=parts)
        yield expressions.program_key(loss, generic_step(kind)[0], many), derive_step(kind, many)


def main() -> None:
    """Write the shipped file."""
    target = Path(__file__).resolve().parent / "data" / "programs.gz"
    text = "".join(derive_all(lambda line: sys.stderr.write(line + "\n")))
    target.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
