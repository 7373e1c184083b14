"""Orders from the options of `srsplan train`: which configurations are trained, how, and into which folders."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast, get_args

import torch

from srsplan.kernels.dispatch import Implementation, refuse_triton
from srsplan.kernels.losses import LOSSES, Kernel
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.data.formats import Columns
from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.data.splits import Strategy
from srsplan.models.errors import InputError, NothingFits
from srsplan.models.kinds import DEFAULT_MODEL
from srsplan.models.training import loggers
from srsplan.models.training.device import find_device
from srsplan.models.training.folder import RunFolder
from srsplan.models.training.run import Order, RunData, fitted, use_expandable_segments
from srsplan.models.training.settings import Settings
from srsplan.models.training.step import DTYPES, OPTIMIZERS
from srsplan.planner.automatic_kernel import automatic_kernel
from srsplan.planner.budget import CONTEXT_BYTES
from srsplan.planner.cli import console
from srsplan.planner.cli.train_options import TrainOptions
from srsplan.planner.plan import DEFAULT_PATH
from srsplan.planner.pricing import Limits, batch_of_all, check_memory, check_model_fits, replanned, usual_pass
from srsplan.planner.train_configuration import (
    EVALUATION_BATCH,
    PlannedChoice,
    Value,
    changed,
    parse_ranks,
    planned_choices,
)
from srsplan.planner.workload import FromData
from srsplan.profiler.probes.kernel_check import KernelCheck


@dataclass(frozen=True, kw_only=True)
class RankedOrder:
    """One training that was asked for."""

    rank: int
    """The rank in the plan; 1 where there is none."""
    order: Order
    planned_precision: Precision
    """The precision that the configuration is for, where a CPU trains it in fp32."""
    planned_kernel: Kernel
    """The kernel that the plan is for, where another one runs."""
    notes: tuple[str, ...]
    """Sentences on what was decided otherwise than the plan says."""
    limits: Limits
    automatic: bool = False
    """True where the kernel is to be chosen by a check on the card."""


def orders_of(options: TrainOptions) -> list[RankedOrder]:
    """Return one order for each rank; InputError for anything that can be told to be wrong without the data."""
    if options.resume and options.overwrite:
        raise InputError("--resume and --overwrite contradict each other", "give the one that is meant")
    loggers.parse_names(options.log)
    ranks = parse_ranks(options.rank)
    choices = _choices(options, ranks)
    use_expandable_segments()
    return [_order(options, rank, choice, several=len(ranks) > 1) for rank, choice in zip(ranks, choices, strict=True)]


def checked(each: RankedOrder, data: RunData, check: KernelCheck | None = None) -> tuple[RankedOrder, tuple[str, ...]]:
    """Return the order fitted to the data, and warnings about its memory; an error where it cannot be carried out.

    With a `check` of the card's kernels an automatic order gets the faster one that is right.
    """
    order = fitted(each.order, data)
    RunFolder(order.folder).check(order.resume, order.overwrite)
    check_model_fits(order.configuration, each.limits.device_bytes)
    workload = FromData(
        order.data.path,
        data.split.train.lengths,
        data.split.test.histories.lengths,
        masked=order.configuration.kind.masked,
    )
    if each.automatic and check is not None:
        order, told = _with_automatic_kernel(each, order, workload, check)
    else:
        if each.automatic:
            reason = f"the Triton kernels run on CUDA; same loss and gradients on {order.device.type}"
            order = replace(order, kernel_reason=reason)
        order, told = _priced(each, order, workload)
    notes = each.notes + told
    planned = each.order.configuration.catalog
    if order.planned and data.split.catalog < planned:
        notes += (f"the plan is for {planned:,} items, the data have {data.split.catalog:,}: less memory is needed",)
    return replace(each, order=order), notes


def _priced(each: RankedOrder, order: Order, workload: FromData) -> tuple[Order, tuple[str, ...]]:
    """Return the order in passes that fit, and what is to be said about its memory; NothingFits where none does."""
    configuration, notes = _in_passes(each, order, workload)
    notes += batch_of_all(configuration, workload)
    notes += check_memory(configuration, order.settings.evaluation_batch, workload, each.limits)
    return replace(order, configuration=replace(configuration, precision=order.configuration.precision)), notes


def _with_automatic_kernel(
    each: RankedOrder, order: Order, workload: FromData, check: KernelCheck
) -> tuple[Order, tuple[str, ...]]:
    """Return the order with the kernel that the check speaks for, priced for it.

    Where only the chunked form has a pass that fits, it is taken, however fast the other one is.
    """
    configuration, _ = _in_passes(each, order, workload)
    timed = replace(configuration, precision=order.configuration.precision)
    found = automatic_kernel(timed, check, lambda sentence: console.err.print(sentence, style="dim", soft_wrap=True))
    warnings = (found.warning,) if found.warning else ()
    if not order.planned:  # passes that were given by hand are for whichever kernel runs
        each = replace(each, planned_kernel=found.kernel)
    chosen = _on(order, found.kernel, found.reason)
    try:
        order, notes = _priced(each, chosen, workload)
    except NothingFits:
        if found.kernel == "chunked":
            raise
        order, notes = _priced(
            each, _on(order, "chunked", "the faster Triton kernels have no pass that fits"), workload
        )
    return order, warnings + notes


def _on(order: Order, kernel: Kernel, reason: str) -> Order:
    """Return the order with a kernel and the reason for it."""
    return replace(order, configuration=replace(order.configuration, kernel=kernel), kernel_reason=reason)


def _in_passes(each: RankedOrder, order: Order, workload: FromData) -> tuple[Configuration, tuple[str, ...]]:
    """Return the configuration, as memory is planned for it, with the passes that it runs in; and what has changed."""
    configuration = replace(order.configuration, precision=each.planned_precision)
    users = order.settings.evaluation_batch
    if configuration.pass_tokens is None:
        return usual_pass(configuration, users, workload, each.limits), ()
    if configuration.pass_sequences is None:
        sequences = workload.pass_sequences(configuration.tokens, configuration.batch_size, configuration.seq_len)
        configuration = replace(configuration, pass_sequences=sequences)
    if configuration.kernel == each.planned_kernel or not LOSSES[configuration.loss].chunked:
        return configuration, ()
    found, told = replanned(configuration, users, workload, each.limits)
    return found, (told,)


def _choices(options: TrainOptions, ranks: tuple[int, ...]) -> list[PlannedChoice | None]:
    """Return the plan's choices; none where a loss is given and no plan is named."""
    path = options.plan or DEFAULT_PATH
    if options.plan is not None or (options.loss is None and path.exists()):
        return [*planned_choices(path, ranks)]
    if options.loss is None:
        raise InputError(
            f"neither a plan ({path}) nor --loss is given",
            "make a plan with srsplan recommend --data FILE --budget 40GB, or say --loss cce --batch-size 256",
        )
    if ranks != (1,):
        raise InputError(f"--rank {options.rank} is a choice of a plan, and none is given", "name it with --plan")
    if path.exists():
        console.err.print(f"--loss without --plan: {path} is left aside", markup=False)
    return [None]


def _order(options: TrainOptions, rank: int, choice: PlannedChoice | None, *, several: bool) -> RankedOrder:
    configuration = changed(None if choice is None else choice.configuration, options.loss, _given(options))
    device, precision = find_device(options.device), configuration.precision
    planned_kernel = configuration.kernel if choice is None else choice.configuration.kernel
    configuration, notes = _with_kernel(options, configuration, device)
    if device.type == "cpu":
        configuration = replace(configuration, precision="fp32")
    folder = _folder(options, configuration, rank, several)
    order = Order(
        configuration=configuration,
        settings=_settings(options, EVALUATION_BATCH if choice is None else choice.evaluation_batch),
        data=DataOptions(
            path=options.data,
            columns=Columns(user=options.user_column, item=options.item_column, timestamp=options.timestamp_column),
            strategy=cast(Strategy, options.split),
        ),
        minimums=Minimums(user=options.min_user, item=options.min_item),
        folder=folder,
        device=device,
        resume=options.resume and (not several or RunFolder(folder).is_run()),
        overwrite=options.overwrite,
        planned=choice is not None,
    )
    limits = Limits(
        budget_bytes=None if choice is None else choice.usable_bytes,
        device_bytes=_usable_bytes() if device.type == "cuda" else None,
    )
    return RankedOrder(
        rank=rank,
        order=order,
        planned_precision=precision,
        planned_kernel=planned_kernel,
        notes=notes,
        limits=limits,
        automatic=options.kernel == "auto" and LOSSES[configuration.loss].chunked,
    )


def _with_kernel(
    options: TrainOptions, configuration: Configuration, device: torch.device
) -> tuple[Configuration, tuple[str, ...]]:
    """Return the configuration with the kernel that will run, and a sentence where it is not the plan's.

    What was asked for by name is never replaced: where it cannot run, that is an error.
    """
    asked, loss = options.kernel, LOSSES[configuration.loss]
    if asked not in get_args(Implementation):
        raise InputError(f"unknown --kernel {asked[:80]!r}", f"kernels are {', '.join(get_args(Implementation))}")
    if asked != "auto":
        if not loss.chunked and asked == "chunked":
            raise InputError(f"--kernel chunked: {loss.name} has no chunked form", "leave --kernel out")
        return replace(configuration, kernel=cast(Kernel, asked)), ()
    try:
        if configuration.kernel == "triton":
            refuse_triton(loss, device, configuration.architecture.dim, DTYPES[configuration.precision])
    except ValueError as error:
        return replace(configuration, kernel="chunked"), (f"the plan's kernel does not run here: {error}",)
    return configuration, ()


def _given(options: TrainOptions) -> dict[str, Value]:
    """Return the parts of the configuration that the command line says."""
    names = {field.name for kind in (Architecture, Configuration) for field in fields(kind)} - {"loss"}
    values = {name: getattr(options, name, None) for name in sorted(names - {"kernel"})}
    return {name: value for name, value in values.items() if value is not None}


def _settings(options: TrainOptions, evaluation_batch: int) -> Settings:
    if options.optimizer not in OPTIMIZERS:
        raise InputError(f"unknown --optimizer {options.optimizer!r}", f"optimizers are {', '.join(OPTIMIZERS)}")
    names = {field.name for field in fields(Settings)} - {"evaluation_batch"}
    values = {name: getattr(options, name) for name in names}
    return Settings(**values, evaluation_batch=evaluation_batch)


def _folder(options: TrainOptions, configuration: Configuration, rank: int, several: bool) -> Path:
    stem = Path(os.path.abspath(options.data)).name.split(".")[0]
    if several:
        return (options.output or Path("runs") / stem) / f"rank-{rank}"
    model = "" if configuration.model == DEFAULT_MODEL else f"-{configuration.model}"
    return options.output or Path("runs") / f"{stem}{model}-{configuration.loss}"


def _usable_bytes() -> int:
    """Return the bytes that the present GPU has for the allocator."""
    return int(torch.cuda.get_device_properties(0).total_memory) - CONTEXT_BYTES
