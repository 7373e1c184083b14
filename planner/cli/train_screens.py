"""Screens of `srsplan train`: sentences before the training, progress bars during it, tables of results after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from srsplan.kernels.losses import LOSSES
from srsplan.models.errors import InputError
from srsplan.models.training.epochs_log import EpochRecord
from srsplan.models.training.run import Order, Prepared
from srsplan.models.units import format_duration, format_gib
from srsplan.planner.cli import console
from srsplan.profiler.memory.model import MemoryModel

SAMPLED = {
    "uniform": "uniform",
    "popularity": "by popularity",
    "in-batch": "from the batch's targets",
    "mixed": "mixed of the batch's targets and uniform ones",
    "adaptive": "the hardest of uniform ones",
    "adaptive-mixed": "the hardest of the batch's targets and uniform ones",
}
SHOWN_RANKS = (1, 5, 10, 20, 100)
COLD_SHARE = 0.1
"""Share of users with a cold target above which metrics over all users need a word."""
SHOWN_METRICS = ("NDCG", "HitRate", "MRR", "Coverage", "Surprisal")


def introduce(prepared: Prepared) -> None:
    """Say what was done to the data, what is trained and how, before it begins."""
    order, trainer = prepared.order, prepared.trainer
    for note in prepared.notes:
        console.err.print(note, style="yellow" if "warning" in note else "dim", markup=False, soft_wrap=True)
    _say_validation(prepared)
    console.err.print(_configuration_line(order), markup=False)
    console.err.print(f"loss implementation: {prepared.kernel.implementation} ({prepared.kernel.reason})", markup=False)
    if order.device.type == "cpu":
        console.err.print("on a CPU, in fp32: the plan's memory is a GPU's and is not what limits this run")
    if trainer.progress.epoch:
        console.err.print(f"resumed after epoch {trainer.progress.epoch}")
    if prepared.started_over:
        console.err.print("the run was stopped before its first checkpoint: it starts from the beginning")
    for change in trainer.changes:
        console.err.print(change, style="yellow", markup=False)


def _configuration_line(order: Order) -> str:
    configuration = order.configuration
    knobs = f"bs {configuration.batch_size}, sl {configuration.seq_len}"
    if LOSSES[configuration.loss].bucketed:
        knobs += f", {configuration.negatives} items a bucket"
    elif configuration.negatives is not None:
        knobs += f", ns {configuration.negatives}, {configuration.tokens_per_set} tokens a set"
        knobs += f", negatives {SAMPLED[configuration.sampler]}"
        if configuration.drawn_negatives != configuration.negatives:
            knobs += f" ({configuration.drawn_negatives} candidates)"
    if configuration.several_passes:
        knobs += f", in passes of {configuration.tokens:,} tokens"
    if configuration.recompute:
        knobs += ", recomputed blocks"
    if configuration.ema is not None:
        knobs += f", averaged weights (decay {configuration.ema:g})"
    if configuration.mask_share is not None:
        knobs += f", {configuration.mask_share:.0%} masked"
    sizes = f"D {configuration.architecture.dim}, {configuration.precision}"
    return f"{configuration.model}, {configuration.loss}: {knobs}, {sizes}"


def _say_validation(prepared: Prepared) -> None:
    """Say where validation is on a part of its users only."""
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

    def on_epoch_start(self, epoch: int, batches: int) -> None:
        """Start the inner bar."""
        self._progress.reset(self._batches, total=batches, note=f"epoch {epoch}")

    def on_out_of_memory(self, sentence: str) -> None:
        """Say what is cut smaller, above the bars."""
        self._progress.console.print(sentence, style="yellow", markup=False, soft_wrap=True)

    def on_batch_end(self) -> None:
        """Advance the inner bar by a step."""
        self._progress.advance(self._batches)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Advance the outer bar by an epoch, and print one line above both."""
        line = f"epoch {record.epoch:>3}  loss {record.loss:.4f}  {format_duration(record.seconds)}"
        if record.metrics:
            score, hits = record.metrics["NDCG_10"], record.metrics["HitRate_10"]
            line += f"  validation NDCG@10 {score:.4f}  HitRate@10 {hits:.4f}"
            self._best = max(self._best, score)
            self._progress.update(self._epochs, note=f"best validation NDCG@10 {self._best:.4f}")
        self._progress.console.print(line)
        self._progress.advance(self._epochs)


def counted(count: int, what: str) -> str:
    """Return a count with its noun: `1 epoch`, `2 epochs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def show_results(documents: Sequence[Mapping[str, Any]]) -> None:
    """Print the result of each run, and a comparison where there are several."""
    for document in documents:
        show_result(document)
    if len(documents) > 1:
        console.out.print(comparison_table(documents))


def show_result(document: Mapping[str, Any]) -> None:
    """Print the metrics of one run, what they mean, and where its files are."""
    seen = "left out" if document["seen_items_filtered"] else "kept"
    console.out.print(
        f"Test: {document['test_users']:,} users, the whole catalog ranked, seen items {seen}; best epoch "
        f"{document['best_epoch']} of {document['epochs']}",
        style="bold", soft_wrap=True,
    )  # fmt: skip
    console.out.print(result_table(document))
    console.out.print(interval_line(document), markup=False, soft_wrap=True)
    console.out.print(cohort_table(document))
    console.out.print(balance_line(document), markup=False, soft_wrap=True)
    for sentence in remarks(document):
        console.out.print(sentence, markup=False, soft_wrap=True)
    folder = console.markup(document["folder"])
    console.out.print(
        f"everything is in {folder}: best.safetensors, items.parquet, metrics.json, runs.csv, config.json",
        soft_wrap=True,
    )


def remarks(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences that a newcomer should read beside a result."""
    warm, users = document["warm"]["test_users"], document["test_users"]
    if warm < users:
        yield (
            f"{users - warm:,} of {users:,} test targets never occur in train, so that no model can learn them; the "
            "columns named warm leave them out, as other libraries do without a word."
        )
    if users - warm > COLD_SHARE * users:
        yield (
            f"That is {1 - warm / users:.0%} of the users, so no HitRate over all of them can be much above "
            f"{warm / users:.2f}: compare with other tables by the columns named warm."
        )
    score, baseline = document["test"]["NDCG_10"], document["popularity"]["NDCG_10"]
    if score > baseline:
        return
    yield (
        f"The model is not better than popularity: NDCG@10 {score:.4f}, and {baseline:.4f} for recommending to "
        f"everybody what most interactions are with. Do not use it as it is. {_way_out(document)}"
    )


def _way_out(document: Mapping[str, Any]) -> str:
    """Advise what to try where a model has learned too little."""
    epochs = document["epochs"]
    if not document["stopped_early"]:
        return f"It was still in training: try more epochs, with --resume --epochs {4 * epochs}."
    return "Try a smaller --batch-size (more steps an epoch), --learning-rate 0.003 or 0.0003, or --patience 30."


def result_table(document: Mapping[str, Any]) -> Table:
    """Return a table of metrics at several ranks; at rank 10 also of users with a warm target and of popularity."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for rank in SHOWN_RANKS:
        table.add_column(f"\n@{rank}", justify="right")
    for name in ("warm\n@10", "popular\n@10", "popular\nwarm@10"):
        table.add_column(name, justify="right", style="dim")
    warm = document["warm"]
    for name in SHOWN_METRICS:
        values = [document["test"][f"{name}_{rank}"] for rank in SHOWN_RANKS]
        values += [part.get(f"{name}_10") for part in (warm["test"], document["popularity"], warm["popularity"])]
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    return table


def interval_line(document: Mapping[str, Any]) -> str:
    """Return the interval of NDCG@10, and what it does not cover."""
    made = document["intervals"]
    low, high = made["test"]["NDCG_10"]
    score, level = document["test"]["NDCG_10"], made["level"]
    return (
        f"NDCG@10 {score:.4f}, {level:.0%} interval {low:.4f} to {high:.4f} over users; another seed moves it as well."
    )


def cohort_table(document: Mapping[str, Any]) -> Table:
    """Return a table of the cohorts of items: their share, their users, metrics at rank 10, popularity's hit rate."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cohort\nof target")
    for name in ("\nitems", "\nMPU", "\nusers", "HitRate\n@10", "NDCG\n@10", "Coverage\n@10"):
        table.add_column(name, justify="right")
    table.add_column("popular\nHitRate@10", justify="right", style="dim")
    for name, cohort in document["cohorts"].items():
        values = [cohort["test"].get(f"{metric}_10") for metric in ("HitRate", "NDCG", "Coverage")]
        values.append(cohort["popularity"].get("HitRate_10"))
        table.add_row(
            name, f"{cohort['items_percent']:.1f}%", f"{cohort['median_users_percent']:.2g}%",
            f"{cohort['test_users']:,}", *("-" if value is None else f"{value:.4f}" for value in values),
        )  # fmt: skip
    return table


def balance_line(document: Mapping[str, Any]) -> str:
    """Return the balance of the hit rates beside popularity's, with what the columns and the figure mean."""
    columns = "MPU: median share of train's users who have an item."
    found, popular = (document["balance"][part].get("Balance_10") for part in ("test", "popularity"))
    if found is None:
        return f"Balance@10 is not defined: a cohort has no user, or no target is hit. {columns}"
    beside = "" if popular is None else f" for the model and {popular:.2f} for popularity"
    meaning = "1 where the three hit rates are equal, 0.33 where one cohort has all hits"
    return f"Balance@10 is {found:.2f}{beside}: {meaning}. {columns}"


def comparison_table(documents: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with one row for each run, the best test NDCG@10 marked."""
    table = Table(title="Ranks of the plan compared, on the test", title_justify="left", title_style="bold", box=None)
    for name in ("rank", "loss", "bs", "sl", "ns", "epochs", "epoch time", "NDCG@10", "HitRate@10", "Coverage@10"):
        table.add_column(name, justify="left" if name == "loss" else "right")
    best = max(document["test"]["NDCG_10"] for document in documents)
    for document in documents:
        configuration, test = document["configuration"], document["test"]
        negatives = configuration["negatives"]
        table.add_row(
            str(document["rank"]), configuration["loss"], str(configuration["batch_size"]),
            str(configuration["seq_len"]), "-" if negatives is None else str(negatives),
            f"{document['best_epoch']} of {document['epochs']}", format_duration(document["epoch_seconds"]),
            *(f"{test[f'{name}_10']:.4f}" for name in ("NDCG", "HitRate", "Coverage")),
            style="bold" if test["NDCG_10"] == best else None,
        )  # fmt: skip
    popular = documents[0]["popularity"]
    table.add_row(
        "", "popularity", *[""] * 5, *(f"{popular[f'{name}_10']:.4f}" for name in ("NDCG", "HitRate", "Coverage"))
    )
    return table


def memory_lines(order: Order, implementation: str, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield measured memory beside the predicted, where there is a GPU to measure."""
    measured = document["memory"]
    if measured is None:
        return
    told = (
        f"memory at the peak: {format_gib(measured['allocated_bytes'])} allocated, "
        f"{format_gib(measured['reserved_bytes'])} reserved"
    )
    users, tokens = order.settings.evaluation_batch, min(order.configuration.tokens, document["pass_tokens"])
    configuration = replace(order.configuration, pass_tokens=max(tokens, order.configuration.seq_len))
    try:
        predicted = MemoryModel().predict(configuration, users, users * configuration.seq_len)
    except InputError as error:  # the run is over and good: a prediction that does not exist is no reason to fail
        yield f"{told}; not predicted: {error.message}"
        return
    if measured["reserved_bytes"] > predicted.upper_bytes:
        yield (
            f"warning: that is more than the {format_gib(predicted.upper_bytes)} predicted at most; please report it "
            f"with {order.folder / 'config.json'}"
        )
    yield (
        f"{told}; predicted for {implementation}, a full pass: {format_gib(predicted.allocated_bytes)} and at most "
        f"{format_gib(predicted.upper_bytes)}"
    )
