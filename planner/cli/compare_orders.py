"""From a comparison file to runs: everything that can be known to be wrong is found before the first one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import typer
import typer.main

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.training.folder import RunFolder
from srsplan.models.training.run import Order, RunData, read_data
from srsplan.planner.budget import CONTEXT_BYTES
from srsplan.planner.cli import console, data_progress
from srsplan.planner.cli.options import options_of, parameters_of
from srsplan.planner.cli.train_options import TrainOptions
from srsplan.planner.cli.train_orders import RankedOrder, checked, orders_of
from srsplan.planner.cli.usage import is_usage_error, usage_error
from srsplan.planner.comparison.configurations import Configured, Value, configurations, folder_name
from srsplan.planner.comparison.document import CompareFile, beside
from srsplan.planner.comparison.matching import difference
from srsplan.planner.comparison.output import PlannedRun, run_folder
from srsplan.planner.pricing import priced
from srsplan.planner.workload import FromData

PROCESS_BYTES = 1 << 30
"""Memory of a run on a CPU beside its tensors: Python, torch, the interactions. An assumption."""


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """A run of the comparison with the order that `srsplan train` will make of its options."""

    run: PlannedRun
    ranked: RankedOrder

    @property
    def order(self) -> Order:
        """What is trained, on which data, in which folder."""
        return self.ranked.order


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison file with everything that it stands for."""

    output: Path
    metric: str
    configurations: tuple[Configured, ...]
    data: tuple[str, ...]
    """Names of the data files."""
    seeds: tuple[int, ...]
    ordered: tuple[Ordered, ...]
    """Every run, seed by seed, so that the first blocks are complete early."""
    notes: tuple[str, ...] = ()
    """Sentences on what makes configurations hard to compare."""

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run."""
        return [each.run for each in self.ordered]

    @property
    def blocks(self) -> list[str]:
        """Every pair of data and seed."""
        return list(dict.fromkeys(run.block for run in self.runs))


def comparison_of(file: CompareFile, path: Path, output: Path | None) -> Comparison:
    """Return the runs that a file at `path` asks for; InputError for whatever is wrong with their options."""
    known = {field.name for field in fields(TrainOptions)}
    configured = configurations(file.defaults, file.runs, known)
    data, seeds = file.data_by_name(path.parent), file.seeds
    folder = output or (path.with_suffix("") if file.output is None else beside(path.parent, file.output))
    ordered = {
        (one.name, name): _ordered(one, path.parent, name, source, folder)
        for one in configured
        for name, source in data.items()
    }
    _refuse_duplicates([ordered[one.name, next(iter(data))] for one in configured])
    return Comparison(
        output=folder,
        metric=file.metric,
        configurations=tuple(configured),
        data=tuple(data),
        seeds=seeds,
        ordered=tuple(
            _seeded(ordered[one.name, name], folder, one, name, seed)
            for seed in seeds
            for name in data
            for one in configured
        ),
        notes=tuple(_judged_unlike([ordered[one.name, next(iter(data))].order for one in configured])),
    )


def matched(comparison: Comparison, *, overwrite: bool) -> Comparison:
    """Return the comparison with runs marked that lie there of other options, if they may be overwritten.

    InputError where they may not.
    """
    ordered = []
    for each in comparison.ordered:
        told = _difference(each, overwrite=overwrite) if each.run.begun else None
        if told is not None and not overwrite:
            raise InputError(
                f"{each.run.folder} holds a run of other options: {told}",
                "give another output (-o), or --overwrite to train it again",
            )
        ordered.append(replace(each, run=replace(each.run, replaces=told is not None)))
    return replace(comparison, ordered=tuple(ordered))


def _difference(each: Ordered, *, overwrite: bool) -> str | None:
    """Say in what the run in the folder is another one; what cannot be read is another one as well."""
    try:
        return difference(each.order, each.run.folder)
    except InputError as error:
        if not overwrite:
            raise
        return error.message


def ready(comparison: Comparison, waiting: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs to be started with the memory that each takes; an error where one cannot be carried out.

    Data are read once for all configurations that read them alike, and one file is held at a time.
    """
    asked = {run.folder for run in waiting}
    ordered = [each for each in comparison.ordered if each.run.folder in asked]
    reading, data = "", None
    needs: dict[tuple[str, str], int] = {}
    found = []
    with data_progress.shown():
        for each in ordered:
            RunFolder(each.run.folder).check(each.run.begun and not each.run.replaces, each.run.replaces)
            key = each.run.configuration, each.run.data
            if key not in needs:
                if data is None or reading != repr((each.order.data, each.order.minimums)):
                    reading, data = repr((each.order.data, each.order.minimums)), None
                    data = read_data(each.order)
                needs[key] = _need(each, data)
            found.append(replace(each.run, need_bytes=needs[key]))
    return found


def _need(each: Ordered, data: RunData) -> int:
    """Return the bytes that a run takes at its peak; what the memory model does not know is taken for everything."""
    order = replace(each.order, resume=each.run.begun and not each.run.replaces, overwrite=each.run.replaces)
    with _told_of(each.run.configuration):
        ranked, _ = checked(replace(each.ranked, order=order), data)
    configuration = replace(ranked.order.configuration, precision=ranked.planned_precision)
    lengths = data.split.train.lengths, data.split.test.histories.lengths
    workload = FromData(order.data.path, *lengths, masked=configuration.kind.masked)
    beside_tensors = PROCESS_BYTES if order.device.type == "cpu" else CONTEXT_BYTES
    try:
        return priced(configuration, order.settings.evaluation_batch, workload).upper_bytes + beside_tensors
    except InputError:
        return ranked.limits.device_bytes or beside_tensors


def _ordered(one: Configured, folder: Path, name: str, source: Path, output: Path) -> Ordered:
    """Return the run of a configuration on one data file with the first seed."""
    words = (f"--data={source}", *words_of_run(one.options, folder))
    with _told_of(one.name):
        options = parsed(words)
        orders = orders_of_quietly(options)
        if len(orders) != 1:
            raise InputError(f"rank {options.rank} is several", "give a list of ranks: rank: [1, 2, 3]")
    run = PlannedRun(
        configuration=one.name, data=name, seed=options.seed, folder=output, words=words,
        on_card=orders[0].order.device.type != "cpu",
    )  # fmt: skip
    return Ordered(run=run, ranked=orders[0])


def orders_of_quietly(options: TrainOptions) -> list[RankedOrder]:
    """Return the orders of `srsplan train`, without what it says on the way: a comparison makes many."""
    console.err.quiet = True
    try:
        return orders_of(options)
    finally:
        console.err.quiet = False


def _seeded(each: Ordered, output: Path, one: Configured, name: str, seed: int) -> Ordered:
    folder = run_folder(output, one.folder, folder_name(name), seed)
    order = replace(each.order, folder=folder, settings=replace(each.order.settings, seed=seed))
    words = (*each.run.words, f"--seed={seed}", f"--output={folder}", "--json")
    run = replace(each.run, seed=seed, folder=folder, words=words)
    return Ordered(run=run, ranked=replace(each.ranked, order=order))


def _judged_unlike(orders: Sequence[Order]) -> Iterator[str]:
    """Yield a sentence where configurations are not tested on the same users and items in the same way."""
    first = orders[0]
    judged = {
        "split": [order.data.strategy == first.data.strategy for order in orders],
        "columns": [order.data.columns == first.data.columns for order in orders],
        "min-user or min-item": [order.minimums == first.minimums for order in orders],
        "keep-seen": [order.settings.keep_seen == first.settings.keep_seen for order in orders],
    }
    unlike = [name for name, same in judged.items() if not all(same)]
    if unlike:
        yield (
            f"Configurations differ in {', '.join(unlike)}: they are tested on other users, items or in another way, "
            "and a difference between them says nothing about which is better."
        )


def _refuse_duplicates(ordered: Sequence[Ordered]) -> None:
    """Raise InputError where two configurations train the same, however they say it."""
    seen: dict[str, str] = {}
    for each in ordered:
        name, known = each.run.configuration, repr((replace(each.order, folder=Path()), each.ranked.automatic))
        if known in seen:
            raise InputError(
                f"{seen[known]!r} and {name!r} are the same configuration", "remove one, or change an option of it"
            )
        seen[known] = name


def words_of_run(options: Mapping[str, Value], folder: Path) -> list[str]:
    """Return the words of a command line that give these options to `srsplan train`; paths are beside the file.

    InputError where a switch is given a value, or an option that takes a value is given true or false.
    """
    parameters = {each.name: each for each in _command().params}
    words: list[str] = []
    for name, value in options.items():
        parameter = parameters[name]
        if value is None:
            continue
        flag = next(each for each in parameter.opts if each.startswith("--"))
        switch = bool(getattr(parameter, "is_flag", False))
        if switch != isinstance(value, bool):
            asked = "true or false" if switch else "a value"
            raise InputError(f"{name} = {value!r}: {flag} takes {asked}", f"give {asked}")
        if isinstance(value, bool):
            words += [flag] if value else list(parameter.secondary_opts)[:1]
        else:
            words.append(f"{flag}={beside(folder, str(value)) if name in _paths() else value}")
    return words


def _paths() -> set[str]:
    """Return the names of the options that are paths."""
    return {each.name for each in parameters_of(TrainOptions) if "Path" in str(each.annotation)}


def parsed(words: Sequence[str]) -> TrainOptions:
    """Return the options that a command line of `srsplan train` gives; InputError as that command would say it."""
    found: list[TrainOptions] = []
    command = _command(found)
    try:
        with command.make_context("srsplan train", list(words)) as context:
            command.invoke(context)
    except Exception as error:
        if isinstance(error, SrsplanError) or not is_usage_error(error):
            raise
        raise usage_error(error, words) from None
    return found[0]


def _command(kept: list[TrainOptions] | None = None) -> typer._click.Command:
    """Return a command with the options of `srsplan train`, which keeps them instead of training."""

    @options_of(TrainOptions)
    def keep(options: TrainOptions) -> None:
        if kept is not None:
            kept.append(options)

    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command("train")(keep)
    return typer.main.get_command(alone)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Name the configuration in the message of an error."""
    try:
        yield
    except SrsplanError as error:
        error.message = f"{name}: {error.message}"
        raise
