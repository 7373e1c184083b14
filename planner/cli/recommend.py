"""`srsplan recommend`: from a catalog and a budget to the configurations to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srsplan.models.errors import InputError
from srsplan.planner.cli import console, data_progress, options
from srsplan.planner.plan import DEFAULT_PATH

if TYPE_CHECKING:
    from srsplan.planner.plan.document import Plan

DEFAULT_MARGIN = 0.02
EPOCHS = 50
"""As in planner.time_limit, which is not imported before it is needed."""
DATA_OPTION = typer.Option("--data", help="Interactions: their catalog, users and real lengths are used.")
RUNS_OPTION = typer.Option("--runs", help="A run table: a forest fitted on it re-ranks what fits.")
PROFILE_OPTION = typer.Option("--profile", help="Probes of `srsplan profile`, to correct the memory model.")
RECOMPUTE_OPTION = typer.Option(
    "--recompute/--no-recompute", help="Activation checkpointing, or not; else where it makes a step faster."
)
MAX_BATCH_OPTION = typer.Option("--max-batch-size", help="Largest batch; else 1,024, where the evidence ends.")
OVERWRITE_OPTION = typer.Option("--overwrite", help="Replace a plan that was edited; other files never.")


def recommend_command(
    catalog: Annotated[str | None, typer.Option("--catalog", help="Number of items: 1.6M, 300K, 1_600_000.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Memory to plan for: 40GB, 40GiB.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="A card of `srsplan gpus`, or auto.")] = None,
    data: Annotated[Path | None, DATA_OPTION] = None,
    mean_length: options.MeanLength = None,
    users: Annotated[str | None, typer.Option("--users", help="Number of users, where there is no --data.")] = None,
    model: options.ModelOption = "sasrec",
    mask_share: options.MaskShare = None,
    dim: options.Dim = 256,
    blocks: options.Blocks = 2,
    heads: options.Heads = 2,
    precision: options.PrecisionOption = "fp16",
    sampler: options.SamplerOption = "uniform",
    recompute: Annotated[bool | None, RECOMPUTE_OPTION] = None,
    ema: options.Ema = None,
    kernel: options.KernelOption = "chunked",
    gpus: options.Gpus = 1,
    loss: Annotated[list[str] | None, typer.Option("--loss", help="Only this loss; may be repeated.")] = None,
    margin: Annotated[float, typer.Option("--margin", help="Share of the budget to keep free.")] = DEFAULT_MARGIN,
    max_batch_size: Annotated[int | None, MAX_BATCH_OPTION] = None,
    epoch_time: Annotated[str | None, typer.Option("--epoch-time", help="How long an epoch may take: 30min.")] = None,
    total_time: Annotated[str | None, typer.Option("--total-time", help="How long --epochs may take: 12h.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs that --total-time is for.")] = EPOCHS,
    user_column: options.UserColumn = None,
    item_column: options.ItemColumn = None,
    timestamp_column: options.TimestampColumn = None,
    split: options.Split = "auto",
    runs: Annotated[Path | None, RUNS_OPTION] = None,
    profile: Annotated[Path | None, PROFILE_OPTION] = None,
    check: Annotated[bool, typer.Option("--check", help="Try the first choice, on the card or simulated.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the plan goes.")] = DEFAULT_PATH,
    overwrite: Annotated[bool, OVERWRITE_OPTION] = False,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Write no plan, only print the answer.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Print all losses and details.")] = False,
    json: options.Json = False,
) -> None:
    """Which loss, batch size, sequence length and negatives fit a budget, which to try first, and why."""
    from srsplan.planner import api

    with data_progress.shown():
        plan = api.plan(
            catalog=catalog, budget=budget, gpu=gpu, data=data, mean_length=mean_length, users=users, model=model,
            mask_share=mask_share, dim=dim,
            blocks=blocks, heads=heads, precision=precision, sampler=sampler, recompute=recompute, kernel=kernel,
            gpus=gpus, losses=loss, every_loss=everything or json, margin=margin, max_batch_size=max_batch_size,
            epoch_time=epoch_time, total_time=total_time, epochs=epochs, user_column=user_column,
            item_column=item_column, timestamp_column=timestamp_column, split=split, runs=runs, profile=profile,
            check=check, ema=ema,
        )  # fmt: skip
    _tell(plan, None if no_plan else output, overwrite, everything=everything, json=json)


def _tell(plan: Plan, output: Path | None, overwrite: bool, *, everything: bool, json: bool) -> None:
    """Print the answer, and only then write the plan: where it cannot be written there is an answer all the same."""
    from srsplan.planner import commands
    from srsplan.planner.plan import file

    problem = None if output is None else _problem(output, overwrite)
    written = None if problem else output
    command = commands.train_from_plan(plan, written) if written else commands.train_without_plan(plan)
    plan = plan.model_copy(update={"next_command": command})
    if json:
        console.print_json(plan.model_dump())
    else:
        from srsplan.planner.cli import screens

        console.out.print(screens.recommendation(plan, everything))
    if written is not None:
        file.write_plan(plan, written, overwrite)
    if not json:
        where = f"plan written to {console.markup(written)}; next" if written else "next"
        console.out.print(f"\n{where}:\n  [bold]{console.markup(command)}[/]", soft_wrap=True)
    if problem is not None:
        raise problem


def _problem(output: Path, overwrite: bool) -> InputError | None:
    """Return the reason why the plan cannot be written to `output`; None where it can."""
    from srsplan.planner.plan import file

    try:
        file.check_target(output, overwrite)
    except InputError as error:
        return error
    return None
