"""`srsplan estimate`: the memory of one given configuration."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, cast

import typer

from srsplan.kernels.losses import Sampler
from srsplan.models.config import Architecture, Configuration, Precision, find_loss
from srsplan.planner import plan
from srsplan.planner import step_time as timing
from srsplan.planner.budget import Budget, assumed_gpu, make_budget
from srsplan.planner.cli import console, options
from srsplan.planner.cli import screens as report
from srsplan.planner.search import TOKENS_PER_SET, Search, Space
from srsplan.planner.units import parse_bytes, parse_count
from srsplan.planner.workload import MeanLength, Workload, WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.detect import resolve_gpu

REFERENCE_GPU = "h200"


def estimate_command(
    loss: Annotated[str, typer.Option("--loss", help="ce, ce-, cce, cce- or bce.")],
    catalog: options.Catalog,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Sequences per step.")],
    seq_len: Annotated[int, typer.Option("--seq-len", help="Positions per sequence.")],
    negatives: Annotated[
        int | None, typer.Option("--negatives", help="Negatives per set; sampled losses only.")
    ] = None,
    tokens_per_set: Annotated[
        int | None, typer.Option("--tokens-per-set", help="Tokens that share negatives; cce- only, default 32.")
    ] = None,
    sampler: options.SamplerOption = "uniform",
    dim: options.Dim = 256,
    blocks: options.Blocks = 2,
    heads: options.Heads = 2,
    precision: options.PrecisionOption = "fp16",
    micro_batches: options.MicroBatches = 1,
    recompute: options.Recompute = False,
    gpus: options.Gpus = 1,
    mean_length: options.MeanLength = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The card that times are for, and whose capacity counts.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Say whether it fits so much: 40GB.")] = None,
    json: options.Json = False,
) -> None:
    """The memory and step time of one configuration, with the breakdown of its peak."""
    kind = find_loss(loss)
    workload = WorstCase() if mean_length is None else MeanLength(mean_length)
    if tokens_per_set is None:
        tokens_per_set = TOKENS_PER_SET if kind.shares_negatives else 1
    configuration = Configuration(
        loss=loss,
        catalog=parse_count(catalog, "--catalog"),
        batch_size=batch_size,
        seq_len=seq_len,
        negatives=kind.fixed_negatives if negatives is None else negatives,
        tokens_per_set=tokens_per_set,
        sampler=cast(Sampler, sampler),
        architecture=Architecture(dim=dim, blocks=blocks, heads=heads),
        precision=cast(Precision, precision),
        micro_batches=micro_batches,
        recompute=recompute,
    )
    valid = workload.valid_tokens(configuration.micro_batch_size, seq_len)
    configuration = replace(configuration, valid_tokens=min(valid, configuration.tokens))
    card, limit = _card(gpu, budget)
    search = _search(configuration, workload, card, limit)
    choice = search.predict(configuration)
    several, cap = search.on_several(choice, gpus), search.smallest_cap(choice)
    if json:
        entry = plan.choice_entry(1, choice, limit, timing.BASIS).model_dump(exclude={"rank", "why"})
        document = {"catalog": configuration.catalog, "dim": dim, "gpu": card.name, **entry}
        more = {"smallest_cap_bytes": cap, "several_gpus": [asdict(layout) for layout in several]}
        console.print_json({**document, **more})
        return
    notes = {
        "configuration": f"{report.knobs_of(configuration)}, {configuration.precision}",
        **({} if sampler == "uniform" else {"sampler": sampler}),
        "catalog": report.catalog_line(configuration.catalog, configuration.architecture.dim),
        "padding": workload.basis,
        "card": f"{card.title}; step {timing.BASIS}",
    }
    console.out.print(report.estimate_screen(choice, notes, limit, cap, several))


def _search(configuration: Configuration, workload: Workload, card: Gpu, limit: Budget | None) -> Search:
    """Says of this one configuration what recommend would."""
    space = Space(
        catalog=configuration.catalog,
        losses=(configuration.loss,),
        architecture=configuration.architecture,
        precision=configuration.precision,
        workload=workload,
    )
    return Search(space, limit or make_budget(None, card), card, MemoryModel())


def _card(gpu: str | None, budget: str | None) -> tuple[Gpu, Budget | None]:
    """The card for times, and a budget where one was asked for."""
    if budget is None:
        card = resolve_gpu(gpu or REFERENCE_GPU)
        return card, None if gpu is None else make_budget(None, card)
    total = parse_bytes(budget, "--budget")
    card = resolve_gpu(gpu) if gpu is not None else assumed_gpu(total)
    return card, make_budget(total, card)
