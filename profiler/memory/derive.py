"""Derives the closed form of a step's memory from the ledger: no hand-written formula, no fitted constant.

The step runs on meta tensors in generic sizes (`generic_sizes`), the bytes of its storages become expressions
(`symbols`), and the trace becomes a program of allocations (`program`). A chunked loss runs with two, three and four
chunks: what three have more is the body of the loop.

    python -m srsplan.profiler.memory.derive                      writes data/MODEL.zip beside this file, every model's
    python -m srsplan.profiler.memory.derive sasrec --missing     derives the programs that a file does not hold yet
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, pairwise, product
from multiprocessing import get_context
from typing import get_args

from srsplan.kernels.losses import LOSSES, Kernel, Sampler
from srsplan.models.config import Precision
from srsplan.models.kinds import DEFAULT_MODEL, MODEL_KINDS
from srsplan.profiler.memory import expressions
from srsplan.profiler.memory.files import read_programs, write_programs
from srsplan.profiler.memory.generic_sizes import Kind, generic_evaluation, generic_step, told_apart
from srsplan.profiler.memory.program import Code, Program, encode, looped
from srsplan.profiler.memory.simulate import Simulated, simulate_evaluation, simulate_step
from srsplan.profiler.memory.symbols import NotFactored, Sizes, symbol_of

BLOCKS = (1, 2, 3, 4)
"""Depths that programs are derived for."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Group = tuple[str, Precision, int, bool]
"""Model, precision, blocks, and whether there are many chunks: what one process derives in one go."""


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


def derive_evaluation(precision: Precision, blocks: int, many_chunks: bool, model: str = DEFAULT_MODEL) -> Program:
    """Return the program of an evaluation batch: `setup` is the model and the optimizer's states."""
    recorder = Recorder()

    def parts(chunks: int) -> list[Code]:
        configuration, batch, sizes = generic_evaluation(precision, blocks, chunks, model)
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


def derive_all(
    models: Sequence[str], known: Container[str] = (), report: Callable[[str], object] = lambda _: None
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the programs of models that are not `known`, a group at a time: the model, and JSON by `program_key`.

    One process runs on every core.
    """
    groups: list[Group] = list(product(models, PRECISIONS, BLOCKS, (False, True)))
    work = partial(_derived, known=known)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for number, (group, found) in enumerate(zip(groups, pool.map(work, groups), strict=True), start=1):
            model, precision, blocks, _ = group
            report(f"{number} of {len(groups)}: {model}, {precision}, {blocks} blocks, {len(found)} programs")
            yield model, found


def _derived(group: Group, known: Container[str]) -> dict[str, str]:
    return {
        key: json.dumps(derive().to_document(), separators=(",", ":"))
        for key, derive in _derivations(*group)
        if key not in known
    }


def _derivations(
    model: str, precision: Precision, blocks: int, many: bool
) -> Iterator[tuple[str, Callable[[], Program]]]:
    """Yield the keys of a group's programs, and what derives each."""
    evaluation = generic_evaluation(precision, blocks, 1, model)[0]
    key = expressions.program_key(expressions.EVALUATION, evaluation, many)
    yield key, partial(derive_evaluation, precision, blocks, many, model)
    for (loss, sampler, kernel), recompute, passes in product(_forms(precision, many), (False, True), (False, True)):
        kind = Kind(
            loss=loss, precision=precision, blocks=blocks, sampler=sampler, recompute=recompute, passes=passes,
            kernel=kernel, model=model,
        )  # fmt: skip
        with told_apart(kind, many):
            key = expressions.program_key(loss, generic_step(kind)[0], many, passes)
        yield key, partial(derive_step, kind, many)


def _forms(precision: Precision, many: bool) -> Iterator[tuple[str, Sampler, Kernel]]:
    """Yield every loss with its samplers and kernels; in fp32 no table is copied, so that `cce-` has one variant."""
    for loss, kernel in product(LOSSES.values(), get_args(Kernel)):
        if not loss.chunked and (many or kernel == "triton"):
            continue
        if kernel == "triton" and loss.sampled and many and precision == "fp32":
            continue
        yield from ((loss.name, sampler, kernel) for sampler in loss.samplers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the shipped files."""
    parser = ArgumentParser(prog="python -m srsplan.profiler.memory.derive", description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=[*MODEL_KINDS], help=f"of {', '.join(MODEL_KINDS)}; else all")
    parser.add_argument("--missing", action="store_true", help="keep the programs that a file holds")
    asked = parser.parse_args(arguments)
    models = list(dict.fromkeys(asked.models))
    if unknown := [model for model in models if model not in MODEL_KINDS]:
        parser.error(f"unknown model {unknown[0]!r}")
    programs = {model: read_programs(model) if asked.missing else {} for model in models}
    known = frozenset(chain.from_iterable(programs.values()))
    for model, found in derive_all(models, known, lambda line: sys.stderr.write(line + "\n")):
        programs[model] |= found
    for model, found in programs.items():
        write_programs(model, found)


if __name__ == "__main__":
    main()
