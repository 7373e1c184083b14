"""The options of `srsplan train`, one field for each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from srsplan.models.errors import InputError
from srsplan.planner.cli import options
from srsplan.planner.plan import DEFAULT_PATH

LARGEST_SEED = 2**31 - 1
MOST = 2**31 - 1
"""Largest count that an option takes; sizes of the model have limits of their own (models/config.py)."""
MOST_SHARING = 2**16
"""Most tokens that share a set of negatives: they are held as one block."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of the command line as they were given; None and defaults where they were not."""

    data: Annotated[
        Path,
        typer.Option("--data", help="Interactions: csv(.gz), parquet or a folder of it, .inter, `user item` text."),
    ]
    plan: Annotated[Path | None, typer.Option("--plan", help=f"A plan of recommend; else {DEFAULT_PATH}.")] = None
    rank: Annotated[
        str, typer.Option("--rank", help="Which choice of the plan; 1-3 or 1,3 trains several and compares them.")
    ] = "1"
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; else runs/DATA-LOSS.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last whole epoch in the folder.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder by a new one.")] = False
    model: Annotated[str | None, typer.Option("--model", help="sasrec, bert4rec or esasrec; else the plan's.")] = None
    mask_share: options.MaskShare = None
    loss: Annotated[str | None, typer.Option("--loss", help="Without a plan, or instead of the plan's.")] = None
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Sequences per step.")] = None
    seq_len: Annotated[int | None, typer.Option("--seq-len", help="Last items of a user that are trained on.")] = None
    negatives: Annotated[
        int | None, typer.Option("--negatives", help="Negatives per set, of sce items per bucket; sampled losses.")
    ] = None
    tokens_per_set: Annotated[
        int | None, typer.Option("--tokens-per-set", max=MOST_SHARING, help="Tokens sharing negatives.")
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help="How negatives are drawn: uniform, popularity, in-batch, mixed, adaptive."),
    ] = None
    in_batch_share: Annotated[
        float | None,
        typer.Option("--in-batch-share", help="Of --sampler mixed: share of the batch, 0 to 1; else 0.5."),
    ] = None
    candidates: Annotated[
        int | None,
        typer.Option("--candidates", help="Of --sampler adaptive: drawn, and the hardest kept; else 4 each."),
    ] = None
    popularity_exponent: Annotated[
        float,
        typer.Option("--popularity-exponent", help="Of --sampler popularity; 1 draws items as often as they occur."),
    ] = 0.75
    calibration: Annotated[float | None, typer.Option("--calibration", help="Of --loss gbce, 0 to 1; else 0.75.")] = (
        None
    )
    dim: Annotated[int | None, typer.Option("--dim", help="Hidden size D.")] = None
    blocks: Annotated[int | None, typer.Option("--blocks", help="Transformer blocks.")] = None
    heads: Annotated[int | None, typer.Option("--heads", help="Attention heads.")] = None
    dropout: Annotated[float | None, typer.Option("--dropout", help="Dropout probability.")] = None
    precision: Annotated[str | None, typer.Option("--precision", help="fp16, bf16, fp32; a CPU trains fp32.")] = None
    pass_tokens: options.PassTokens = None
    pass_sequences: Annotated[
        int | None, typer.Option("--pass-sequences", help="Sequences of a pass at most; else by the data's lengths.")
    ] = None
    recompute: Annotated[
        bool | None,
        typer.Option("--recompute/--no-recompute", help="Activation checkpointing, or not; else the plan's."),
    ] = None
    kernel: Annotated[
        str, typer.Option("--kernel", help="Of a chunked loss: chunked, triton, or auto: the faster right one.")
    ] = "auto"
    optimizer: Annotated[str, typer.Option("--optimizer", help="adam or adamw, both fused.")] = "adam"
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of the optimizer.")] = 1e-3
    schedule: Annotated[
        str, typer.Option("--schedule", help="Of the learning rate: constant, or cosine over all epochs.")
    ] = "constant"
    final_learning_rate: Annotated[
        float, typer.Option("--final-learning-rate", help="Where --schedule cosine ends.")
    ] = 0.0
    warmup_steps: Annotated[
        int, typer.Option("--warmup-steps", help="Steps over which the learning rate grows to its full size.")
    ] = 0
    warmup_percent: Annotated[
        float, typer.Option("--warmup-percent", help="The same as a share of all planned steps.")
    ] = 0.0
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Of the optimizer.")] = 0.0
    clip_norm: Annotated[
        float | None, typer.Option("--clip-norm", help="Gradients of a larger global norm are scaled down to it.")
    ] = None
    ema: Annotated[
        float | None,
        typer.Option("--ema", help="Decay of an average of the weights that is evaluated and kept; 0.999 is usual."),
    ] = None
    osf: Annotated[
        int | None, typer.Option("--osf", help="Epochs after which mini-batches are used again, negatives and all.")
    ] = None
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="At most this many.")] = 200
    patience: Annotated[int, typer.Option("--patience", min=1, help="Evaluations without a better one.")] = 10
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", min=1, help="Epochs between them.")] = 1
    validation_users: Annotated[int, typer.Option("--validation-users", min=1, help="At most, drawn once.")] = 10_000
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Evaluate with items of the history recommended again, as in music.")
    ] = False
    split: options.Split = "auto"
    user_column: options.UserColumn = None
    item_column: options.ItemColumn = None
    timestamp_column: options.TimestampColumn = None
    min_user: Annotated[int, typer.Option("--min-user", min=0, help="Drop users with fewer interactions.")] = 0
    min_item: Annotated[int, typer.Option("--min-item", min=0, help="Drop items with fewer interactions.")] = 0
    seed: Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of everything that is random.")] = 42
    log: Annotated[
        str, typer.Option("--log", help="Figures of every epoch for tensorboard, wandb or mlflow; several by commas.")
    ] = ""
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto"
    json: options.Json = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value > MOST:
                option = "--" + field.name.replace("_", "-")
                raise InputError(f"{option} {str(value)[:40]} is above {MOST:,}", f"give a smaller {option}")
