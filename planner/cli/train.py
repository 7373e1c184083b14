"""`srsplan train`: the chosen configuration on real interactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from srsplan.kernels.losses import DEFAULT_LOSS
from srsplan.models.config import Architecture, Configuration, find_loss
from srsplan.models.errors import InputError
from srsplan.planner.cli import console, options
from srsplan.planner.plan import DEFAULT_PATH, read_plan
from srsplan.planner.search import TOKENS_PER_SET
from srsplan.planner.units import format_duration, format_gib

if TYPE_CHECKING:
    from srsplan.models.training.run import Order, Prepared

INTERRUPTED = 130
LARGEST_SEED = 2**31 - 1
LARGEST_EXPONENT = 4.0
SAMPLED = {"uniform": "uniform", "popularity": "by popularity", "in-batch": "from the batch's targets"}
SHOWN_RANKS = (1, 5, 10, 20, 100)
SHOWN_METRICS = ("NDCG", "HitRate", "MRR", "Coverage", "Surprisal")


def train_command(
    data: Annotated[Path, typer.Option("--data", help="Interactions: csv(.gz), parquet, .inter or `user item` text.")],
    plan: Annotated[Path | None, typer.Option("--plan", help=f"A plan of recommend [default: {DEFAULT_PATH}].")] = None,
    rank: Annotated[int, typer.Option("--rank", help="Which choice of the plan.")] = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder [default: runs/DATA-LOSS].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last whole epoch in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in a folder that is not empty.")] = False,
    loss: Annotated[str | None, typer.Option("--loss", help="Without a plan, or instead of the plan's.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Sequences per step.")] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", help="Last items of a user that are trained on.")] = None,
    negatives: Annotated[int | None, typer.Option("--negatives", help="Negatives per set; sampled losses.")] = None,
    tokens_per_set: Annotated[int | None, typer.Option("--tokens-per-set", help="Tokens sharing negatives.")] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="uniform, popularity or in-batch; ce-, cce-.")
    ] = None,
    popularity_exponent: Annotated[
        float, typer.Option("--popularity-exponent", help="Of the sampler popularity: 1 as often as they occur.")
    ] = 0.75,
    dim: Annotated[int | None, typer.Option("--dim", help="Hidden size D.")] = None,
    blocks: Annotated[int | None, typer.Option("--blocks", help="Transformer blocks.")] = None,
    heads: Annotated[int | None, typer.Option("--heads", help="Attention heads.")] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", help="Dropout probability.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp16, bf16, fp32; a CPU trains fp32.")] = None,
    micro_batches: Annotated[
        int | None, typer.Option("--micro-batches", min=1, help="Parts of a batch whose gradients accumulate.")
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute/--no-recompute", help="Activation checkpointing, or not; else the plan's."),
    ] = None,
    kernel: Annotated[
        str, typer.Option("--kernel", help="auto, chunked, or triton: the loss's implementation, cce and cce- on CUDA.")
    ] = "auto",
    optimizer: Annotated[str, typer.Option("--optimizer", help="adam or adamw, both fused.")] = "adam",
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of the optimizer.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Of the optimizer.")] = 0.0,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="At most so many.")] = 200,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Evaluations without a better one.")] = 10,
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", min=1, help="Epochs between them.")] = 1,
    validation_users: Annotated[int, typer.Option("--validation-users", min=1, help="At most, drawn once.")] = 10_000,
    split: options.Split = "auto",
    user_column: options.UserColumn = None,
    item_column: options.ItemColumn = None,
    timestamp_column: options.TimestampColumn = None,
    min_user: Annotated[int, typer.Option("--min-user", min=0, help="Drop users with fewer interactions.")] = 0,
    min_item: Annotated[int, typer.Option("--min-item", min=0, help="Drop items with fewer interactions.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of everything that is random.")] = 42,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    json: options.Json = False,
) -> None:
    """Train a plan's configuration, test it by full ranking, and keep everything needed to repeat it."""
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other", "give the one that is meant")
    sizes = {"dim": dim, "blocks": blocks, "heads": heads, "dropout": dropout}
    knobs = {
        "batch_size": batch_size, "seq_len": seq_len, "negatives": negatives, "tokens_per_set": tokens_per_set,
        "sampler": sampler, "micro_batches": micro_batches, "recompute": recompute,
    }  # fmt: skip
    planned, evaluation_batch = _planned(plan, rank, loss)
    configuration = _override(planned, loss, knobs, sizes, precision)
    order = _order(
        configuration, data, output, device,
        settings={
            "epochs": epochs, "patience": patience, "evaluate_every": evaluate_every, "seed": seed,
            "validation_users": validation_users, "learning_rate": learning_rate, "evaluation_batch": evaluation_batch,
            "optimizer": optimizer, "weight_decay": weight_decay, "kernel": kernel,
            "popularity_exponent": popularity_exponent,
        },
        reading={"user": user_column, "item": item_column, "timestamp": timestamp_column, "split": split,
                 "min_user": min_user, "min_item": min_item},
        resume=resume,
        planned=planned is not None,
    )  # fmt: skip
    _train(order, overwrite, json)


def _planned(plan: Path | None, rank: int, loss: str | None) -> tuple[Configuration | None, int]:
    """The plan's configuration and evaluation batch; none where a loss is given and no plan lies about."""
    path = plan or DEFAULT_PATH
    if plan is None and loss is not None:
        if path.exists():
            console.err.print(f"--loss without --plan: {path} is left aside", markup=False)
        return None, 256
    if plan is None and not path.exists():
        raise InputError(
            f"neither a plan ({path}) nor --loss is given",
            "make a plan with srsplan recommend --data FILE --budget 40GB, or say --loss cce --batch-size 256",
        )
    document = read_plan(path)
    return document.configuration(rank), document.choice(rank).eval_batch_size


def _override(
    planned: Configuration | None,
    loss: str | None,
    knobs: Mapping[str, int | str | None],
    sizes: Mapping[str, Any],
    precision: str | None,
) -> Configuration:
    """A plan's configuration, or the paper's defaults, with what the command line says instead."""
    given = {name: value for name, value in knobs.items() if value is not None}
    architecture = {name: value for name, value in sizes.items() if value is not None}
    if planned is not None:
        changes: dict[str, Any] = {**_knobs_of(loss, planned), **given, "valid_tokens": None}
        if precision is not None:
            changes["precision"] = precision
        return replace(planned, **changes, architecture=replace(planned.architecture, **architecture))
    kind = find_loss(loss or DEFAULT_LOSS)
    default_negatives = kind.fixed_negatives or 512
    base: dict[str, Any] = {
        "batch_size": 256,
        "seq_len": 50,
        "negatives": default_negatives if kind.sampled else None,
        "tokens_per_set": TOKENS_PER_SET if kind.shares_negatives else 1,
        "precision": precision or "fp16",
    }
    # The catalog is the data's: until they are read, the largest possible stands for it
    return Configuration(loss=kind.name, catalog=10**8, architecture=Architecture(**architecture), **{**base, **given})


def _knobs_of(loss: str | None, planned: Configuration) -> dict[str, Any]:
    """What follows from another loss than the plan's: knobs that it does not have are not the user's to unset."""
    if loss is None:
        return {}
    kind = find_loss(loss)
    changes: dict[str, Any] = {"loss": kind.name}
    if not kind.sampled or kind.fixed_negatives:
        changes["negatives"] = kind.fixed_negatives
    if planned.sampler not in kind.samplers:
        changes["sampler"] = "uniform"
    if kind.shares_negatives != find_loss(planned.loss).shares_negatives:
        changes["tokens_per_set"] = TOKENS_PER_SET if kind.shares_negatives else 1
    return changes


def _order(
    configuration: Configuration,
    data: Path,
    output: Path | None,
    device: str,
    *,
    settings: Mapping[str, Any],
    reading: Mapping[str, Any],
    resume: bool,
    planned: bool,
) -> Order:
    from srsplan.models.data.formats import Columns
    from srsplan.models.data.options import DataOptions
    from srsplan.models.training.device import find_device
    from srsplan.models.training.loop import Settings
    from srsplan.models.training.run import Minimums, Order, use_expandable_segments

    if settings["learning_rate"] <= 0:
        raise InputError(f"--learning-rate {settings['learning_rate']} is not above zero", "the paper's is 0.001")
    if not 0 <= settings["popularity_exponent"] <= LARGEST_EXPONENT:
        raise InputError(
            f"--popularity-exponent {settings['popularity_exponent']} is outside 0..{LARGEST_EXPONENT:g}",
            "1 draws items as often as they occur, 0 all alike, 0.75 is between",
        )
    if settings["optimizer"] not in ("adam", "adamw"):
        raise InputError(f"unknown --optimizer {settings['optimizer']!r}", "optimizers are adam and adamw")
    if settings["kernel"] not in ("auto", "chunked", "triton"):
        raise InputError(f"unknown --kernel {settings['kernel']!r}", "kernels are auto, chunked and triton")
    use_expandable_segments()
    chosen = find_device(device)
    if chosen.type == "cpu" and configuration.precision != "fp32":
        configuration = replace(configuration, precision="fp32")
    columns = Columns(user=reading["user"], item=reading["item"], timestamp=reading["timestamp"])
    stem = data.name.split(".")[0]
    return Order(
        configuration=configuration,
        settings=Settings(**settings),
        data=DataOptions(path=data, columns=columns, strategy=reading["split"]),
        minimums=Minimums(user=reading["min_user"], item=reading["min_item"]),
        folder=output or Path("runs") / f"{stem}-{configuration.loss}",
        resume=resume,
        planned=planned,
        device=chosen,
    )


def _train(order: Order, overwrite: bool, json: bool) -> None:
    from srsplan.models.training.loop import out_of_memory_explained
    from srsplan.models.training.run import finish, prepare

    with out_of_memory_explained(order.configuration):  # the model's tables and the test may run out as well
        prepared = prepare(order, overwrite)
        _introduce(prepared)
        try:
            progress = prepared.trainer.progress
            with ProgressBars(prepared.trainer.settings.epochs, progress.epoch, progress.best) as bars:
                document = finish(prepared, bars)
        except KeyboardInterrupt:
            done = prepared.trainer.progress.epoch
            folder = escape(str(order.folder))
            console.err.print(f"stopped; {done} epochs are saved in {folder}, the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED) from None
    if document["epochs"] < prepared.trainer.settings.epochs:
        console.err.print(f"stopped early: {prepared.trainer.progress.stale} evaluations without a better NDCG@10")
    if json:
        console.print_json(document)
        return
    console.out.print(_result_table(document))
    _say_memory(prepared, document)
    console.out.print(
        f"everything is in {escape(document['folder'])}: best.safetensors, metrics.json, runs.csv, config.json"
    )


def _introduce(prepared: Prepared) -> None:
    order, configuration = prepared.order, prepared.order.configuration
    for note in prepared.notes:
        console.err.print(note, style="yellow" if "warning" in note else "dim", markup=False, soft_wrap=True)
    _say_validation(prepared)
    knobs = f"bs {configuration.batch_size}, sl {configuration.seq_len}"
    if configuration.negatives is not None:
        knobs += f", ns {configuration.negatives}, {configuration.tokens_per_set} tokens a set"
        knobs += f", negatives {SAMPLED[configuration.sampler]}"
    if configuration.micro_batches > 1:
        knobs += f", in {configuration.micro_batches} parts of {configuration.micro_batch_size}"
    if configuration.recompute:
        knobs += ", recomputed blocks"
    console.err.print(f"{configuration.loss}: {knobs}, D {configuration.architecture.dim}, {configuration.precision}")
    console.err.print(f"loss implementation: {prepared.kernel.implementation} ({prepared.kernel.reason})")
    if order.device.type == "cpu":
        console.err.print("on a CPU, in fp32: the plan's memory is a GPU's and is not what limits this run")
    if prepared.trainer.progress.epoch:
        console.err.print(f"resumed after epoch {prepared.trainer.progress.epoch}")
    for change in prepared.trainer.changes:
        console.err.print(change, style="yellow", markup=False)


def _say_validation(prepared: Prepared) -> None:
    """Said only where validation is on a part of its users."""
    users, ranked = len(prepared.split.validation), prepared.trainer.settings.validation_users
    if ranked < users:
        console.err.print(f"validation ranks {ranked:,} of its {users:,} users, drawn once; the test ranks all of them")


class ProgressBars:
    """Two bars on stderr: epochs with the best validation so far, and the batches of the present one."""

    def __init__(self, epochs: int, done: int, best: float = 0.0) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console.err)
        self._epochs = self._progress.add_task("epochs", total=epochs, completed=done, note="")
        self._batches = self._progress.add_task("batches", total=None, note="")
        self._best = best

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def epoch_begins(self, epoch: int, batches: int) -> None:
        """Start the inner bar."""
        self._progress.reset(self._batches, total=batches, note=f"epoch {epoch}")

    def smaller(self, sentence: str) -> None:
        """Out of memory, and what is done about it."""
        self._progress.console.print(sentence, style="yellow", markup=False, soft_wrap=True)

    def batch_done(self) -> None:
        """One step of the inner bar."""
        self._progress.advance(self._batches)

    def epoch_done(self, record: dict[str, Any]) -> None:
        """One step of the outer bar, one line above both."""
        line = f"epoch {record['epoch']:>3}  loss {record['loss']:.4f}  {format_duration(record['seconds'])}"
        if "NDCG_10" in record:
            line += f"  validation NDCG@10 {record['NDCG_10']:.4f}  HitRate@10 {record['HitRate_10']:.4f}"
            self._best = max(self._best, record["NDCG_10"])
            self._progress.update(self._epochs, note=f"best validation NDCG@10 {self._best:.4f}")
        self._progress.console.print(line)
        self._progress.advance(self._epochs)


def _result_table(document: Mapping[str, Any]) -> Table:
    title = (
        f"Test: {document['test_users']:,} users, the whole catalog ranked, seen items left out; best epoch "
        f"{document['best_epoch']} of {document['epochs']}"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for rank in SHOWN_RANKS:
        table.add_column(f"@{rank}", justify="right")
    table.add_column("popularity @10", justify="right", style="dim")
    for name in SHOWN_METRICS:
        values = [f"{document['test'][f'{name}_{rank}']:.4f}" for rank in SHOWN_RANKS]
        table.add_row(name, *values, f"{document['popularity'][f'{name}_10']:.4f}")
    return table


def _say_memory(prepared: Prepared, document: Mapping[str, Any]) -> None:
    """Predicted beside measured, where there is a GPU to measure."""
    measured = document["memory"]
    if measured is None:
        return
    from srsplan.kernels.dispatch import TRITON
    from srsplan.profiler.memory.model import MemoryModel

    measured_text = (
        f"memory at the peak: {format_gib(measured['allocated_bytes'])} allocated, "
        f"{format_gib(measured['reserved_bytes'])} reserved"
    )
    users = prepared.trainer.settings.evaluation_batch
    if prepared.kernel.implementation == TRITON:
        console.out.print(f"{measured_text}; predictions are for the chunked form, not for the Triton kernels")
        return
    configuration = replace(prepared.order.configuration, micro_batches=document["micro_batches"])
    try:
        predicted = MemoryModel().predict(configuration, users, users * configuration.seq_len)
    except InputError as error:  # the run is over and good: a prediction that does not exist is no reason to fail
        console.out.print(f"{measured_text}; not predicted: {error.message}", markup=False)
        return
    if measured["reserved_bytes"] > predicted.upper_bytes:
        console.err.print(
            f"warning: that is more than the {format_gib(predicted.upper_bytes)} predicted at most; please report it "
            f"with {prepared.order.folder / 'config.json'}",
            style="yellow", markup=False,
        )  # fmt: skip
    console.out.print(
        f"{measured_text}; predicted, without padding: {format_gib(predicted.allocated_bytes)} and at most "
        f"{format_gib(predicted.upper_bytes)}"
    )
