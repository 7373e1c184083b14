"""The runs of `srsplan train`: all orders are checked before the first is trained."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import typer

from srsplan.models.training import loggers, pace
from srsplan.models.training.callbacks import Together
from srsplan.models.training.progress import Progress
from srsplan.models.training.retries import out_of_memory_explained
from srsplan.models.training.run import Order, Prepared, RunData, finish, opened, read_data
from srsplan.models.units import format_duration, format_ms
from srsplan.planner.automatic_kernel import check_here
from srsplan.planner.cli import console, data_progress
from srsplan.planner.cli.options import words_of
from srsplan.planner.cli.train_options import TrainOptions
from srsplan.planner.cli.train_orders import RankedOrder, checked, orders_of
from srsplan.planner.cli.train_screens import ProgressBars, counted, introduce, memory_lines
from srsplan.planner.smaller_run import LONG_SECONDS, smaller_run
from srsplan.profiler.probes.kernel_check import KernelCheck

INTERRUPTED = 130


def train_all(options: TrainOptions, check: KernelCheck | None = None) -> list[dict[str, Any]]:
    """Train every rank that was asked for, one after another; return their documents.

    `check` is that of the card's kernels, for `--kernel auto`; the card that is here without one.
    """
    orders = orders_of(options)
    try:
        with data_progress.shown():
            data = read_data(orders[0].order)
        if check is None and any(each.automatic for each in orders):
            check = check_here(orders[0].order.device)
        ready = [checked(each, data, check) for each in orders]
        return [_train(options, each, data, notes) for each, notes in ready]
    except KeyboardInterrupt:
        console.err.print("stopped before training began")
        raise typer.Exit(INTERRUPTED) from None


def _train(options: TrainOptions, each: RankedOrder, data: RunData, notes: tuple[str, ...]) -> dict[str, Any]:
    order = each.order
    with out_of_memory_explained(order.configuration):  # the model's tables and the test may run out as well
        if order.device.type == "cpu" and not order.resume:
            _say_pace(options, each, data)
        with opened(order, data, notes) as prepared:
            introduce(prepared)
            document = _finish(options, prepared)
    if document["stopped_early"]:
        stale = counted(prepared.trainer.progress.stale, "evaluation")
        console.err.print(f"stopped early: {stale} without a better NDCG@10")
    for line in memory_lines(prepared.order, prepared.kernel.implementation, document):
        console.err.print(line, markup=False, soft_wrap=True)
    return {"rank": each.rank, **document} if order.planned else document


def _finish(options: TrainOptions, prepared: Prepared) -> dict[str, Any]:
    trainer = prepared.trainer
    try:
        with (
            ProgressBars(trainer.settings.epochs, trainer.progress.epoch, trainer.progress.best) as bars,
            loggers.opened(loggers.parse_names(options.log), _logged(prepared)) as others,
        ):
            return finish(prepared, Together(bars, *others))
    except KeyboardInterrupt:
        _say_stopped(options, prepared.order, trainer.progress)
        raise typer.Exit(INTERRUPTED) from None


def _logged(prepared: Prepared) -> loggers.Logged:
    """Return what a logger is told of a run: the sizes of its configuration beside the other options."""
    order = prepared.order
    configuration = order.configuration.to_dict()
    sizes = configuration.pop("architecture")
    return loggers.Logged(
        folder=order.folder,
        first_epoch=prepared.trainer.progress.epoch + 1,
        options={"data": str(order.data.path), **configuration, **sizes, **asdict(order.settings)},
    )


def _say_stopped(options: TrainOptions, order: Order, progress: Progress) -> None:
    """Say what is saved and which command goes on; before the first checkpoint that command begins again."""
    again = console.command(words_of("train", replace(options, resume=True, overwrite=False)))
    folder = console.markup(order.folder)
    if progress.seconds and progress.epoch:
        saved = f"{counted(progress.epoch, 'epoch')} {'is' if progress.epoch == 1 else 'are'} saved"
        console.err.print(f"stopped; {saved} in {folder}, and this goes on:", soft_wrap=True)
    else:
        console.err.print(
            f"stopped in the first epoch: nothing is saved in {folder} yet. This starts it again:", soft_wrap=True
        )
    console.err.print(again, markup=False, soft_wrap=True)


def _say_pace(options: TrainOptions, each: RankedOrder, data: RunData) -> None:
    """Say how long it will take, before it begins; offer a smaller run where that is long."""
    order, epochs = each.order, each.order.settings.epochs
    console.err.print("measuring how long this takes on this CPU", style="dim")
    found = pace.measure(order, data)
    seconds = found.run_seconds(epochs)
    told = f"an epoch takes about {format_ms(1000 * found.epoch_seconds)}, and {counted(epochs, 'epoch')} about"
    measured = f"{counted(found.steps, 'step')} measured, {format_ms(1000 * found.step_seconds)} each"
    patience = counted(options.patience, "evaluation")
    console.err.print(
        f"on this CPU {told} {format_ms(1000 * seconds)} ({measured}); training ends earlier after {patience} without "
        "a better one",
        soft_wrap=True,
    )
    if seconds <= LONG_SECONDS:
        return
    smaller = smaller_run(order, data, found)
    sizes = smaller.configuration.architecture
    changed = replace(
        options, rank=str(each.rank), dim=sizes.dim, heads=sizes.heads, seq_len=smaller.configuration.seq_len,
        epochs=smaller.epochs, output=order.folder.with_name(order.folder.name + "-small"), overwrite=False,
    )  # fmt: skip
    console.err.print(f"a smaller run takes about {format_duration(smaller.seconds)} here:", soft_wrap=True)
    console.err.print(console.command(words_of("train", changed)), markup=False, soft_wrap=True, style="bold")
