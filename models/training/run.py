"""A training run as `srsplan train` does it: data, configuration, folder, test, and the files that remain.

config.json      the resolved configuration, settings and what was done to the data
epochs.jsonl     one line an epoch
state.json, weights-*.safetensors, best.safetensors
metrics.json     the test's metrics beside popularity's
runs.csv         the run as a row of a run table: `srsplan analyze` reads it
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from srsplan.kernels.dispatch import Choice, choose
from srsplan.models.config import Configuration
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.options import DataOptions
from srsplan.models.data.splits import Split, split
from srsplan.models.errors import InputError
from srsplan.models.training.checkpoint import write_whole
from srsplan.models.training.evaluation import popularity
from srsplan.models.training.loop import Observer, Progress, Settings, Trainer
from srsplan.models.training.step import TrainingStep

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Minimums:
    """k-core filters of the data."""

    user: int = 0
    item: int = 0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to train, on what, where to."""

    configuration: Configuration
    settings: Settings
    data: DataOptions
    minimums: Minimums
    folder: Path
    resume: bool
    planned: bool
    """The configuration comes from a plan, whose catalog its figures were made for."""
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data read, model built, nothing trained yet."""

    order: Order
    split: Split
    trainer: Trainer
    kernel: Choice
    notes: tuple[str, ...]


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make the run's folder; InputError where it holds something that nobody said to resume or overwrite."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file", "give a folder")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not (resume or overwrite):
        raise InputError(f"--output {folder} is not empty", "--resume goes on with it, --overwrite starts anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}", "give another folder with -o") from error
    if used and overwrite and not resume:
        for old in [*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jsonl")]:
            old.unlink()


def prepare(order: Order, overwrite: bool) -> Prepared:
    """Read the data, check that the configuration goes with it, build the model, load the checkpoint."""
    interactions = read_interactions(
        order.data.path,
        columns=order.data.columns,
        min_user_interactions=order.minimums.user,
        min_item_interactions=order.minimums.item,
    )
    parts = split(interactions, order.data.strategy, seed=order.settings.seed)
    notes = [*interactions.notes, *parts.notes]
    configuration = _fitted(order, parts.catalog, notes)
    kernel = _kernel(order, configuration)
    prepare_folder(order.folder, order.resume, overwrite)
    torch.manual_seed(order.settings.seed)
    step = TrainingStep(configuration, order.device, order.settings, item_counts=parts.item_counts[1:])
    trainer = Trainer(step, parts, order.settings, order.folder)
    order = replace(order, configuration=configuration)
    if order.resume:
        trainer.resume()
    else:
        write_json(order.folder / "config.json", _resolved(order, notes))
    return Prepared(order=order, split=parts, trainer=trainer, kernel=kernel, notes=tuple(notes))


def _kernel(order: Order, configuration: Configuration) -> Choice:
    try:
        return choose(configuration.loss, order.device, order.settings.kernel, configuration.architecture.dim)
    except ValueError as error:
        raise InputError(f"--kernel {order.settings.kernel}: {error}", "leave --kernel out") from error


def finish(prepared: Prepared, observer: Observer) -> dict[str, Any]:
    """Train to the end, test, write the files; the document that `--json` prints."""
    trainer, parts = prepared.trainer, prepared.split
    progress = trainer.run(observer)
    ranking = trainer.ranking()
    tested, baseline = trainer.ranked(parts.test, observer), popularity(parts, parts.test, ranking)
    document = {
        "configuration": prepared.order.configuration.to_dict(),
        "kernel": asdict(prepared.kernel),
        "test": tested.all,
        "popularity": baseline.all,
        "test_users": tested.users,
        "warm": {"test": tested.warm, "popularity": baseline.warm, "test_users": tested.warm_users},
        "seen_items_filtered": ranking.filter_seen,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "micro_batches": progress.micro_batches,
        "validation_ndcg_10": progress.best,
        "epoch_seconds": sum(progress.seconds) / max(1, len(progress.seconds)),
        "memory": _measured_memory(prepared.order.device),
        "folder": str(prepared.order.folder),
    }
    write_json(prepared.order.folder / "metrics.json", document)
    _write_row(prepared, document, progress)
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    write_whole(path, json.dumps(document, indent=2).encode() + b"\n")


def use_expandable_segments() -> None:
    """What every plan assumes of the allocator; must be said before CUDA starts, and a user's own setting wins."""
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _fitted(order: Order, catalog: int, notes: list[str]) -> Configuration:
    """The configuration with the data's catalog; a plan for fewer items than there are is refused."""
    configuration = order.configuration
    if catalog > configuration.catalog:
        raise InputError(
            f"the plan is for {configuration.catalog:,} items, the data have {catalog:,}: its memory does not hold",
            "plan again with srsplan recommend --data FILE",
        )
    if order.planned and catalog < configuration.catalog:
        notes.append(
            f"the plan is for {configuration.catalog:,} items, the data have {catalog:,}: less memory is needed"
        )
    return replace(configuration, catalog=catalog, valid_tokens=None)


def _resolved(order: Order, notes: list[str]) -> dict[str, Any]:
    return {
        "configuration": order.configuration.to_dict(),
        "settings": asdict(order.settings),
        "data": str(order.data.path),
        "split": order.data.strategy,
        "minimums": asdict(order.minimums),
        "notes": notes,
        "device": str(order.device),
        "torch": torch.__version__,
    }


def _measured_memory(device: torch.device) -> dict[str, int] | None:
    if device.type != "cuda":
        return None
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def _write_row(prepared: Prepared, document: Mapping[str, Any], progress: Progress) -> None:
    import pandas as pd

    order, memory = prepared.order, document["memory"]
    configuration = order.configuration
    seconds = sum(progress.seconds)
    row = {
        "dataset": order.data.path.name.split(".")[0],
        "model": "sasrec",
        "loss": configuration.loss,
        "batch_size": configuration.batch_size,
        "max_seq_len": configuration.seq_len,
        "loss_sample_count": "inf" if configuration.negatives is None else configuration.negatives,
        "tokens_per_set": configuration.tokens_per_set,
        "sampler": configuration.sampler,
        "dim": configuration.architecture.dim,
        "micro_batches": progress.micro_batches,
        "seed": order.settings.seed,
        "exp_name": order.folder.name,
        "device": str(order.device),
        "max_allocated_memory": None if memory is None else memory["allocated_bytes"] / GIB,
        "run_training_batch": seconds / max(1, progress.steps),
        "run_training_epoch": document["epoch_seconds"],
        **{f"{name}_test": value for name, value in document["test"].items()},
    }
    write_whole(order.folder / "runs.csv", pd.DataFrame([row]).to_csv(index=False).encode())
