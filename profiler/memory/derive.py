"""Derives the closed form of a step's memory from the ledger: no hand-written formula, no fitted constant.

The step runs on meta tensors in generic sizes (`generic_sizes`), the bytes of its storages become expressions
(`symbols`), and the trace becomes a program of allocations (`program`). A chunked loss runs with two, three and four
chunks: what three have more is the body of the loop.

    python -m srsplan.profiler.memory.derive        writes data/programs.gz beside this file
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

from srsplan.kernels.losses import LOSSES, Kernel, Sampler
from srsplan.models.config import Precision
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.generic_sizes import Kind, generic_evaluation, generic_step, told_apart
from srsplan.profiler.memory.program import Code, Program, encode, looped
from srsplan.profiler.memory.simulate import Simulated, simulate_evaluation, simulate_step
from srsplan.profiler.memory.symbols import NotFactored, Sizes, symbol_of

BLOCKS = (1, 2, 3, 4)
"""Depths that programs are derived for."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Group = tuple[Precision, int, bool]
"""Precision, blocks, and whether there are many chunks: what one process derives in one go."""


class Recorder:
    """Turns traces into code with one table of symbols."""

    def __init__(self) -> None:
        self.symbols: dict[tuple[str, str], int] = {}

    def parts(self, simulated: Simulated, sizes: Sizes, marks: Sequence[int]) -> list[Code]:
        """Return the code between every two of the trace's events `marks`."""
        trace = simulated.trace
        numbers = {
            index: self.symbols.setdefault(symbol_of(allocation, sizes), len(self.symbols))
            for index, allocation in enumerate(trace.allocations)
        }
        live: list[int] = []
        return [encode(trace.events[first:last], numbers, live) for first, last in pairwise(marks)]

    def program(self, setup: Code, first: Code, step: Code) -> Program:
        """Return a program over the symbols met so far."""
        return Program(tuple(self.symbols), setup, first, step)


def derive_step(kind: Kind, many_chunks: bool) -> Program:
    """Return the program of one loss, where all fits one chunk or where there are two or more."""
    recorder, passes, triton = Recorder(), 1 + kind.passes, kind.kernel == "triton"

    def pieces(chunks: int) -> list[Code]:
        """Return the set-up, then every pass of four steps."""
        configuration, sizes = generic_step(kind, chunks)
        simulated = simulate_step(configuration, steps=4, passes=passes)
        starts = [simulated.trace.start_of("forward", number) for number in range(3 * passes + 1)]
        return recorder.parts(simulated, sizes, [0, *starts])

    counts = ((2,) if triton else (2, 3, 4)) if many_chunks else (1,)
    with told_apart(kind, many_chunks):
        found = [pieces(chunks) for chunks in counts]
    setup, *batches = [looped(*each) if len(each) == 3 else each[0] for each in zip(*found, strict=True)]
    first, step, again = ([*chain(*batches[at : at + passes])] for at in (0, passes, 2 * passes))
    if step != again:
        raise NotFactored(f"the steps of {kind} are not alike")
    return recorder.program(setup, first, step)


def derive_evaluation(precision: Precision, blocks: int, many_chunks: bool) -> Program:
    """Return the program of an evaluation batch: `setup` is the model and the optimizer's states."""
    recorder = Recorder()

    def parts(chunks: int) -> list[Code]:
        configuration, batch, sizes = generic_evaluation(precision, blocks, chunks)
        simulated = simulate_evaluation(configuration, batch)
        trace = simulated.trace
        setup, body = recorder.parts(simulated, sizes, [0, trace.start_of("batch"), trace.start_of("idle")])
        return [setup, [], [*body, *[-1] * _kept(body)]]

    if not many_chunks:
        return recorder.program(*parts(1))
    return recorder.program(*(looped(*three) for three in zip(parts(2), parts(3), parts(4), strict=True)))


def _kept(code: Code) -> int:
    """Count the storages that a part leaves behind."""
    return sum(1 if each >= 0 else -1 for each in code)


def derive_all(report: Callable[[str], object] = lambda _: None) -> Iterator[str]:
    """Yield every program as a line: its `expressions.program_key`, a blank, JSON. One process runs on every core."""
    groups: list[Group] = list(product(PRECISIONS, BLOCKS, (False, True)))
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
    for (loss, sampler, kernel), recompute, passes in product(_forms(precision, many), (False, True), (False, True)):
        kind = Kind(
            loss=loss, precision=precision, blocks=blocks, sampler=sampler, recompute=recompute, passes=passes,
            kernel=kernel,
        )  # fmt: skip
        with told_apart(kind, many):
            key = expressions.program_key(loss, generic_step(kind)[0], many, passes)
        yield key, derive_step(kind, many)


def _forms(precision: Precision, many: bool) -> Iterator[tuple[str, Sampler, Kernel]]:
    """Yield every loss with its samplers and kernels; in fp32 no table is copied, so that `cce-` has one variant."""
    for loss, kernel in product(LOSSES.values(), get_args(Kernel)):
        if not loss.chunked and (many or kernel == "triton"):
            continue
        if kernel == "triton" and loss.sampled and many and precision == "fp32":
            continue
        yield from ((loss.name, sampler, kernel) for sampler in loss.samplers)


def main() -> None:
    """Write the shipped file."""
    target = Path(__file__).resolve().parent / "data" / "programs.gz"
    text = "".join(derive_all(lambda line: sys.stderr.write(line + "\n")))
    target.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
