"""`srsplan recommend`: from a catalog and a budget to the configurations to try."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from srsplan.kernels.losses import LOSSES, Sampler
from srsplan.models.config import Architecture, Configuration, Precision, find_loss
from srsplan.models.errors import InputError, NothingFits
from srsplan.planner import plan
from srsplan.planner import step_time as timing
from srsplan.planner.budget import DEFAULT_MARGIN, Budget, assumed_gpu, make_budget
from srsplan.planner.calibration import Fit, model_of
from srsplan.planner.cli import console, options
from srsplan.planner.cli import screens as report
from srsplan.planner.search import Order, Outcome, Search, Space
from srsplan.planner.units import format_gib, parse_bytes, parse_count
from srsplan.planner.workload import MeanLength, Workload, WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.detect import resolve_gpu

DATA_OPTION = typer.Option("--data", help="Interactions: their catalog, users and real lengths are used.")
RUNS_OPTION = typer.Option("--runs", help="A run table: a forest fitted on it re-ranks what fits.")
PROFILE_OPTION = typer.Option("--profile", help="Probes of `srsplan profile`, to correct the memory model.")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked, understood."""

    space: Space
    budget: Budget
    gpu: Gpu
    data: Path | None
    notes: dict[str, str]
    check: bool
    gpus: int


def recommend_command(
    catalog: Annotated[str | None, typer.Option("--catalog", help="Number of items: 1.6M, 300K, 1_600_000.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Memory to plan for: 40GB, 40GiB.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="A card of `srsplan gpus`, or auto.")] = None,
    data: Annotated[Path | None, DATA_OPTION] = None,
    mean_length: options.MeanLength = None,
    dim: options.Dim = 256,
    blocks: options.Blocks = 2,
    heads: options.Heads = 2,
    precision: options.PrecisionOption = "fp16",
    sampler: options.SamplerOption = "uniform",
    recompute: options.Recompute = False,
    gpus: options.Gpus = 1,
    loss: Annotated[list[str] | None, typer.Option("--loss", help="Only this loss; may be repeated.")] = None,
    margin: Annotated[float, typer.Option("--margin", help="Share of the budget to keep free.")] = DEFAULT_MARGIN,
    user_column: options.UserColumn = None,
    item_column: options.ItemColumn = None,
    timestamp_column: options.TimestampColumn = None,
    split: options.Split = "auto",
    runs: Annotated[Path | None, RUNS_OPTION] = None,
    profile: Annotated[Path | None, PROFILE_OPTION] = None,
    check: Annotated[bool, typer.Option("--check", help="Try the first choice, on the card or simulated.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the plan goes.")] = plan.DEFAULT_PATH,
    json: options.Json = False,
) -> None:
    """Which loss, batch size, sequence length and negatives fit a budget, which to try first, and why."""
    architecture = Architecture(dim=dim, blocks=blocks, heads=heads)
    notes: dict[str, str] = {}
    fit = _fit(profile, notes)
    card, limit = _card(gpu, budget, margin)
    if fit.context_bytes is not None:
        limit = replace(limit, context_bytes=fit.context_bytes, context_basis="measured")
    columns = {"user": user_column, "item": item_column, "timestamp": timestamp_column}
    items, workload, data_notes = _workload(catalog, mean_length, data, columns, split)
    space = Space(
        catalog=items,
        losses=tuple(find_loss(name).name for name in loss or LOSSES),
        architecture=architecture,
        precision=cast(Precision, precision),
        workload=workload,
        recompute=recompute,
        sampler=cast(Sampler, sampler),
    )
    notes = {
        "catalog": report.catalog_line(items, dim),
        "budget": limit.describe(),
        "card": card.title + (", the smallest that holds the budget; --gpu names yours" if gpu is None else ""),
        **({"data": "\n".join(data_notes)} if data_notes else {}),
        "padding": workload.basis,
        **({} if sampler == "uniform" else {"sampler": f"{sampler}, of the losses ce- and cce-"}),
        **({"recompute": "blocks run forward once more in backward"} if recompute else {}),
        **notes,
    }
    question = Question(space=space, budget=limit, gpu=card, data=data, notes=notes, check=check, gpus=gpus)
    _answer(question, fit, _order(runs, items, notes), output, json)


def _answer(question: Question, fit: Fit, order: Order | None, output: Path, json: bool) -> None:
    _check_floor(question)
    search = Search(question.space, question.budget, question.gpu, fit.model, fit.rates)
    outcome = search.run(order)
    if question.check and outcome.choices:
        outcome = _checked(outcome, question)
    if not outcome.choices:
        raise _nothing_fits(outcome, question)
    command = _next_command(output, question)
    inputs = plan.Inputs(
        catalog=question.space.catalog,
        gpu=question.gpu.name,
        dim=question.space.architecture.dim,
        blocks=question.space.architecture.blocks,
        heads=question.space.architecture.heads,
        precision=question.space.precision,
        recompute=question.space.recompute,
        data=None if question.data is None else str(question.data),
        users=question.space.workload.users,
        padding=question.space.workload.basis,
        order=question.notes.get("order", "largest min(batch size, negatives) that fits"),
    )
    several = search.on_several(outcome.choices[0], question.gpus)
    document = plan.make_plan(inputs, question.budget, outcome, fit.step_basis, command, several)
    plan.write_plan(document, output)
    if json:
        console.print_json(document.model_dump())
        return
    console.out.print(report.recommendation(outcome, question.budget, question.notes, fit.step_basis, several))
    console.out.print(f"\nplan written to {output}; next:\n  [bold]{command}[/]", soft_wrap=True)


def _checked(outcome: Outcome, question: Question) -> Outcome:
    """The outcome whose first choice was tried; what was tried and failed is told."""
    from srsplan.planner.confirm import confirm_outcome

    outcome, dropped = confirm_outcome(outcome, question.budget, question.gpu)
    if outcome.choices and outcome.choices[0].confirmed is not None:
        found = outcome.choices[0].confirmed
        dropped.append(f"#1 runs within {format_gib(found.reserved_bytes)} reserved ({found.basis})")
    question.notes["checked"] = "\n".join(dropped)
    return outcome


def _card(gpu: str | None, budget: str | None, margin: float) -> tuple[Gpu, Budget]:
    if gpu is None and budget is None:
        raise InputError(
            "neither --budget nor --gpu is given", "say --budget 40GB, or --gpu a100-40gb for all of a card"
        )
    total = None if budget is None else parse_bytes(budget, "--budget")
    card = resolve_gpu(gpu) if gpu is not None else assumed_gpu(total or 0)
    return card, make_budget(total, card, margin)


def _workload(
    catalog: str | None, mean_length: float | None, data: Path | None, columns: dict[str, str | None], split: str
) -> tuple[int, Workload, tuple[str, ...]]:
    if data is not None:
        from srsplan.models.data.formats import Columns
        from srsplan.models.data.options import DataOptions
        from srsplan.planner.datasets import workload_of

        chosen = DataOptions(path=data, columns=Columns(**columns), strategy=cast(Any, split))
        items, workload, notes = workload_of(chosen)
        return (items if catalog is None else max(items, parse_count(catalog, "--catalog"))), workload, notes
    if catalog is None:
        raise InputError("neither --catalog nor --data is given", "say --catalog 1.6M, or --data interactions.parquet")
    items = parse_count(catalog, "--catalog")
    return items, WorstCase() if mean_length is None else MeanLength(mean_length), ()


def _order(runs: Path | None, catalog: int, notes: dict[str, str]) -> Order | None:
    if runs is None:
        return None
    from srsplan.planner.analysis.quality import QualityModel
    from srsplan.planner.analysis.run_tables import load_runs

    model = QualityModel.fit(load_runs(runs))
    notes["order"] = f"{model.trust} Its rank and that of min(bs, ns) are averaged."

    def order(configurations: list[Configuration]) -> list[int]:
        knobs = [(each.batch_size, each.seq_len, each.negatives) for each in configurations]
        return model.rerank(knobs, catalog).order

    return cast(Order, order)


def _fit(profile: Path | None, notes: dict[str, str]) -> Fit:
    if profile is None:
        return Fit(MemoryModel(), timing.Rates(), timing.BASIS, "")
    fit = model_of(profile)
    notes["profile"] = fit.sentence
    return fit


def _check_floor(question: Question) -> None:
    """Below the table, its gradient and the moments no search is needed."""
    catalog, dim, limit = question.space.catalog, question.space.architecture.dim, question.budget
    floor = 16 * catalog * dim
    if floor > limit.usable_bytes:
        smaller = limit.usable_bytes // (16 * catalog) // 8 * 8
        raise InputError(
            f"the budget leaves {format_gib(limit.usable_bytes)}, below the fixed floor of {format_gib(floor)}: the "
            f"item table of {catalog:,} x {dim}, its gradient and Adam's moments",
            f"--budget at least {format_gib(int(floor * 1.25) + limit.bytes - limit.usable_bytes).replace(' ', '')}"
            + (f", or --dim {smaller} or less" if smaller >= 8 else ", or a smaller catalog"),
        )


def _nothing_fits(outcome: Outcome, question: Question) -> NothingFits:
    if not outcome.near_misses:
        return NothingFits("nothing fits: no configuration can be built from these knobs", "allow more losses")
    miss = outcome.near_misses[0]
    return NothingFits(
        f"nothing fits: of {outcome.considered} configurations the nearest, {report.knobs_of(miss.configuration)}, "
        f"takes at most {format_gib(miss.memory.upper_bytes)} and {format_gib(miss.over_bytes)} of it are missing",
        f"raise the budget by {format_gib(miss.over_bytes)}, or lower --dim {question.space.architecture.dim}",
    )


def _next_command(output: Path, question: Question) -> str:
    parts = ["srsplan", "train", "--plan", str(output), "--data", str(question.data or "INTERACTIONS")]
    return shlex.join(parts)
