"""A training run as `srsplan train` does it: data, configuration, folder, training, test, and the files that remain.

    data = read_data(order)                 the interactions, split
    order = fitted(order, data)             the configuration with the catalog of the data
    with opened(order, data) as run:        model built, folder locked, config.json written or the checkpoint loaded
        result = finish(run, callbacks)     trained, tested, metrics.json and runs.csv written

Nothing is written or deleted before everything has been read, checked and built.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from pydantic import field_validator

from srsplan.kernels.dispatch import LossCall, LossOptions, choose
from srsplan.models.checks import reject_unknown_keys
from srsplan.models.config import Configuration
from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.data.reading import read_split
from srsplan.models.data.splits import Split
from srsplan.models.errors import InputError
from srsplan.models.files import write_atomically
from srsplan.models.schema import Document
from srsplan.models.training.allocator_settings import with_expandable_segments
from srsplan.models.training.callbacks import Callbacks
from srsplan.models.training.checkpoint import read_state
from srsplan.models.training.cohorts import cohorts_of
from srsplan.models.training.evaluation import popularity
from srsplan.models.training.folder import CONFIG, ITEMS, METRICS, ROW, RunFolder
from srsplan.models.training.intervals import Resampling
from srsplan.models.training.items import check_items, write_items
from srsplan.models.training.loop import Trainer
from srsplan.models.training.report import bias_columns, cohort_document, interval_document, report
from srsplan.models.training.settings import Settings
from srsplan.models.training.step import DTYPES, TrainingStep

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Order:
    """An order for one run: the configuration, the data and the folder."""

    configuration: Configuration
    settings: Settings
    data: DataOptions
    minimums: Minimums
    folder: Path
    device: torch.device
    resume: bool = False
    overwrite: bool = False
    planned: bool = False
    """True where the configuration comes from a plan, whose figures were made for its catalog."""
    kernel_reason: str = ""
    """Why the configuration has its kernel, where that was found out on the card."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunData:
    """The interactions of a run, read and split."""

    split: Split
    item_ids: NDArray[Any]
    """Labels [V] of the items in the file."""
    notes: tuple[str, ...]
    """Sentences that say what was done to the data."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run of which everything is read, checked and built, and nothing is trained yet."""

    order: Order
    split: Split
    trainer: Trainer
    kernel: LossCall
    """The call that every step makes; what it says of itself is printed."""
    notes: tuple[str, ...]
    started_over: bool
    """True where a resumed run had been stopped before its first checkpoint, and so begins again."""


class RunConfig(Document):
    """config.json: how a run was made, enough to repeat it and to load its model."""

    version: Literal[3] = 3
    srsplan: str
    configuration: Configuration
    settings: Settings
    data: str
    split: str
    minimums: Minimums
    notes: tuple[str, ...]
    device: str
    torch: str

    @field_validator("configuration", mode="before")
    @classmethod
    def _only_known_keys(cls, value: object) -> object:
        if isinstance(value, Mapping):
            reject_unknown_keys(value, list(Configuration.__dataclass_fields__), "configuration")
        return value


def read_data(order: Order) -> RunData:
    """Read and split the interactions, or open what is prepared of them; InputError where they cannot be read."""
    found = read_split(order.data, minimums=order.minimums, seed=order.settings.seed)
    return RunData(split=found.split, item_ids=found.item_ids, notes=found.notes)


def fitted(order: Order, data: RunData) -> Order:
    """Return the order with the catalog of the data.

    InputError where a plan is for fewer items than there are, and where the loss's implementation cannot run.
    """
    configuration, catalog = order.configuration, data.split.catalog
    if catalog > configuration.catalog:
        raise InputError(
            f"the plan is for {configuration.catalog:,} items, the data have {catalog:,}: its memory does not hold",
            "plan again with srsplan recommend --data FILE",
        )
    order = replace(order, configuration=replace(configuration, catalog=catalog))
    _check_kernel(order)
    return order


@contextmanager
def opened(order: Order, data: RunData, notes: tuple[str, ...] = ()) -> Iterator[Prepared]:
    """Build the model, then hold the run's folder: a new run is begun in it, or its checkpoint loaded.

    `order` is fitted to the data. InputError, and nothing changed, where folder or checkpoint cannot be used.
    """
    folder = RunFolder(order.folder)
    folder.check(order.resume, order.overwrite)
    trainer = build(order, data.split)
    notes = (*data.notes, *notes)
    with folder.held():
        folder.check(order.resume, order.overwrite)
        state = read_state(order.folder) if order.resume else None
        if state is not None:
            check_items(order.folder / ITEMS, data.item_ids)
            trainer.resume(state)
        else:
            _begin(folder, order, data, notes)
        started_over = order.resume and state is None
        yield Prepared(
            order=order,
            split=data.split,
            trainer=trainer,
            kernel=trainer.step.loss_call,
            notes=notes,
            started_over=started_over,
        )


def build(order: Order, parts: Split) -> Trainer:
    """Return the model with its first weights, and the loop that trains it; touches no file."""
    torch.manual_seed(order.settings.seed)
    step = TrainingStep(
        order.configuration,
        order.device,
        order.settings,
        item_counts=parts.item_counts[1:],
        kernel_reason=order.kernel_reason,
    )
    return Trainer(step, parts, order.settings, order.folder)


def finish(prepared: Prepared, callbacks: Callbacks) -> dict[str, Any]:
    """Train to the end, test and write the files; return the document that `--json` prints."""
    trainer, parts = prepared.trainer, prepared.split
    progress = trainer.run(callbacks)
    cohorts = cohorts_of(parts.users_per_item, len(parts.train))
    resampling = Resampling(seed=trainer.settings.seed)
    tested = report(trainer.ranked(parts.test, callbacks), cohorts, resampling)
    ranking = trainer.ranking()
    baseline = report(popularity(parts, parts.test, ranking), cohorts)
    document = {
        "configuration": prepared.order.configuration.to_dict(),
        "kernel": prepared.kernel.description(),
        "test": tested.all,
        "popularity": baseline.all,
        "test_users": tested.users,
        "warm": {"test": tested.warm, "popularity": baseline.warm, "test_users": tested.warm_users},
        "cohorts": cohort_document(cohorts, tested, baseline),
        "balance": {"test": tested.by_cohort.balance, "popularity": baseline.by_cohort.balance},
        "intervals": interval_document(tested, resampling),
        "seen_items_filtered": ranking.filter_seen,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "stopped_early": progress.epoch < trainer.settings.epochs,
        "pass_tokens": progress.pass_tokens,
        "validation_ndcg_10": progress.best,
        "epoch_seconds": progress.mean_epoch_seconds,
        "step_seconds": progress.mean_step_seconds,
        "memory": _measured_memory(prepared.order.device),
        "folder": str(prepared.order.folder),
    }
    write_json(prepared.order.folder / METRICS, document)
    _write_row(prepared.order, document)
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document atomically."""
    write_atomically(path, json.dumps(document, indent=2).encode() + b"\n")


def use_expandable_segments() -> None:
    """Set what every plan assumes of the allocator. Must come before CUDA starts; a user's own setting wins."""
    os.environ.update(with_expandable_segments(os.environ))


def _check_kernel(order: Order) -> None:
    """Raise InputError where the loss has no such implementation; before anything is deleted or built."""
    configuration = order.configuration
    options = LossOptions(negatives=configuration.negatives, compute_dtype=DTYPES[configuration.precision])
    if configuration.kernel == "chunked":
        return
    try:
        choose(configuration.loss, order.device, configuration.kernel, options, dim=configuration.architecture.dim)
    except ValueError as error:
        raise InputError(f"--kernel {configuration.kernel}: {error}", "leave --kernel out") from error


def _begin(folder: RunFolder, order: Order, data: RunData, notes: tuple[str, ...]) -> None:
    """Replace what an earlier run left by the first files of this one."""
    folder.clear()
    config = RunConfig(
        srsplan=version("srsplan"),
        configuration=order.configuration,
        settings=order.settings,
        data=str(order.data.path),
        split=order.data.strategy,
        minimums=order.minimums,
        notes=notes,
        device=str(order.device),
        torch=torch.__version__,
    )
    write_atomically(order.folder / CONFIG, config.model_dump_json(indent=2).encode() + b"\n")
    write_items(order.folder / ITEMS, data.item_ids)


def _measured_memory(device: torch.device) -> dict[str, int] | None:
    if device.type != "cuda":
        return None
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def _write_row(order: Order, document: Mapping[str, Any]) -> None:
    """Write the run as a table of one row."""
    import pandas as pd

    configuration, memory = order.configuration, document["memory"]
    row = {
        "dataset": order.data.path.name.split(".")[0],
        "model": configuration.model,
        "loss": configuration.loss,
        "batch_size": configuration.batch_size,
        "max_seq_len": configuration.seq_len,
        "loss_sample_count": "inf" if configuration.negatives is None else configuration.negatives,
        "tokens_per_set": configuration.tokens_per_set,
        "sampler": configuration.sampler,
        "dim": configuration.architecture.dim,
        "pass_tokens": document["pass_tokens"],
        "seed": order.settings.seed,
        "exp_name": order.folder.name,
        "device": str(order.device),
        "max_allocated_memory": None if memory is None else memory["allocated_bytes"] / GIB,
        "run_training_batch": document["step_seconds"],
        "run_training_epoch": document["epoch_seconds"],
        **{f"{name}_test": value for name, value in document["test"].items()},
        **bias_columns(document),
    }
    write_atomically(order.folder / ROW, pd.DataFrame([row]).to_csv(index=False).encode())
