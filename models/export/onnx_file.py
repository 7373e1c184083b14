"""A trained run as one ONNX file, from histories to the best items, and the item ids beside it.

    model.onnx              inputs `items` int64 [batch, length] and `lengths` int64 [batch], as PaddedRecommender says;
                            outputs `top_items` int64 [batch, k] and `top_scores` float [batch, k]
    model.items.parquet     columns `index` (of the numbers above) and `item_id` (of the training file)

Batch and length are free. Metadata of the file: `srsplan` (version), `k`, `seq_len`, `seen_items_filtered`, `items`
(name of the file with the ids).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srsplan.models.checks import require_positive
from srsplan.models.errors import InputError, MissingExtra, SrsplanError
from srsplan.models.export.padded import ABSOLUTE, RELATIVE, PaddedRecommender, check_padding, examples, expected
from srsplan.models.export.targets import check_target
from srsplan.models.files import write_atomically
from srsplan.models.loading import TrainedRun, load_run
from srsplan.models.training.items import write_items

OPSET = 18
"""The operators that are used, by the version of their set: that of onnxruntime 1.14, of February 2023, and later."""
LARGEST_BYTES = 2_000_000_000
"""Weights that fit one file: ONNX files end at 2 GiB."""
MARK = b"seen_items_filtered"
"""A key of the metadata, which stand at a file's end."""
INPUTS, OUTPUTS = ("items", "lengths"), ("top_items", "top_scores")


@dataclass(frozen=True, kw_only=True)
class OnnxOrder:
    """What is to be exported."""

    run: Path
    """Folder of a run."""
    output: Path
    """A .onnx file."""
    best: int = 10
    """Items that the model returns for each user."""
    keep_seen: bool = False
    """Recommend what is in the history as well."""
    overwrite: bool = False


def items_path(output: Path) -> Path:
    """Return where the item ids of a model go: model.items.parquet beside model.onnx."""
    return output.with_suffix(".items.parquet")


def export_onnx(order: OnnxOrder) -> tuple[str, ...]:
    """Write the model and its item ids; return sentences on what was checked. InputError for what is wrong."""
    require_positive(k=order.best)
    _check_files(order)
    _check_packages()
    run = load_run(order.run)
    recommender = _recommender(order, run)
    check_padding(recommender)
    program = _program(recommender)
    program.model.metadata_props.update(_metadata(order, run))
    notes: tuple[str, ...] = ()

    def write(temporary: Path) -> None:
        nonlocal notes
        program.save(str(temporary), external_data=False)
        notes = _check_file(temporary, recommender)

    write_atomically(order.output, write)
    write_items(items_path(order.output), run.item_ids)
    return notes


def _check_files(order: OnnxOrder) -> None:
    check_target(order.output, "--onnx", ".onnx", MARK, order.overwrite)
    check_target(items_path(order.output), "--onnx", ".parquet", b"item_id", order.overwrite)


def _check_packages() -> None:
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtra(package, "export", "`srsplan export --onnx`")


def _recommender(order: OnnxOrder, run: TrainedRun) -> PaddedRecommender:
    if order.best > len(run.item_ids):
        raise InputError(f"k {order.best} is above the catalog of {len(run.item_ids):,} items", "ask for fewer items")
    weights = sum(tensor.nbytes for tensor in run.model.state_dict().values())
    if weights > LARGEST_BYTES:
        raise InputError(
            f"the weights of {order.run} take {weights:,} bytes, and an ONNX file holds {LARGEST_BYTES:,} at most",
            "srsplan predict and load_run run every size",
        )
    return PaddedRecommender(run.model, run.wanted(order.best, order.keep_seen))


def _program(recommender: PaddedRecommender) -> Any:
    """Return torch's program of the model; its type is known where onnxscript is installed only."""
    batch, length = torch.export.Dim("batch", min=1, max=1 << 20), torch.export.Dim("length", min=1, max=1 << 20)
    with _quiet():
        return torch.onnx.export(
            recommender,
            examples(len(recommender.model.item_table), recommender.wanted.seq_len),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: length}, {0: batch}),
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=OPSET,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on packages and on its own parts off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _metadata(order: OnnxOrder, run: TrainedRun) -> dict[str, str]:
    return {
        "srsplan": version("srsplan"),
        "k": str(order.best),
        "seq_len": str(run.configuration.seq_len),
        "seen_items_filtered": str(not order.keep_seen).lower(),
        "items": items_path(order.output).name,
    }


def _check_file(path: Path, recommender: PaddedRecommender) -> tuple[str, ...]:
    """Compare the file's scores with those of the run, where onnxruntime is installed."""
    if find_spec("onnxruntime") is None:
        return ("not checked: onnxruntime is not installed",)
    given = examples(len(recommender.model.item_table), recommender.wanted.seq_len)
    found = run_onnx(path, *given)[1]
    if not torch.allclose(found, expected(recommender, *given), RELATIVE, ABSOLUTE):
        raise SrsplanError(
            "the exported model gives other scores than the run: nothing is kept", "report it as an issue"
        )
    return (f"checked: onnxruntime finds the scores of the run for {len(given[1])} histories",)


def run_onnx(path: Path, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Run an exported model in onnxruntime on a CPU: top items [B, K] and their scores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = dict(zip(INPUTS, (items.numpy(), lengths.numpy()), strict=True))
    top_items, top_scores = (torch.from_numpy(found) for found in session.run(list(OUTPUTS), given))
    return top_items, top_scores
