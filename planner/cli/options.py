"""Options that several verbs share, with one help text each."""

from __future__ import annotations

from typing import Annotated

import typer

Catalog = Annotated[str, typer.Option("--catalog", help="Number of items: 1.6M, 300K, 1_600_000.")]
Gpu = Annotated[str, typer.Option("--gpu", help="A card of `srsplan gpus`, or `auto` for the one present.")]
Dim = Annotated[int, typer.Option("--dim", help="Hidden size D.")]
Blocks = Annotated[int, typer.Option("--blocks", help="Transformer blocks.")]
Heads = Annotated[int, typer.Option("--heads", help="Attention heads.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp16, bf16 or fp32.")]
MeanLength = Annotated[
    float | None, typer.Option("--mean-length", help="Interactions per user on average; without it: no padding.")
]
UserColumn = Annotated[str | None, typer.Option("--user-column", help="Column of user ids, where the name is unusual.")]
ItemColumn = Annotated[str | None, typer.Option("--item-column", help="Column of item ids.")]
TimestampColumn = Annotated[str | None, typer.Option("--timestamp-column", help="Column of timestamps.")]
Split = Annotated[str, typer.Option("--split", help="auto, global-time or leave-one-out.")]
Recompute = Annotated[
    bool, typer.Option("--recompute/--no-recompute", help="Activation checkpointing: less memory, about 30% more time.")
]
SamplerOption = Annotated[
    str, typer.Option("--sampler", help="How ce- and cce- draw negatives: uniform, popularity or in-batch.")
]
Gpus = Annotated[int, typer.Option("--gpus", help="Say what each of several GPUs would need; on paper.")]
MicroBatches = Annotated[
    int, typer.Option("--micro-batches", min=1, help="Parts of a batch whose gradients accumulate.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
