"""`srsplan estimate`: the memory of given configurations."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from srsplan.kernels.losses import LOSSES, PLANNED
from srsplan.models.config import Precision
from srsplan.models.errors import InputError, NothingFits
from srsplan.planner.cli import console, options

if TYPE_CHECKING:
    from srsplan.planner.estimates import Estimate

MOST_ROWS = 100
USUAL_NEGATIVES = 512
USUAL_PRECISION = "fp16"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The values that differ between the rows of a table."""

    loss: str
    precision: str
    batch_size: int
    seq_len: int
    negatives: int | None


def estimate_command(
    catalog: options.Catalog,
    batch_size: Annotated[str, typer.Option("--batch-size", help="Sequences per step: 256, or 64,128,256.")],
    seq_len: Annotated[str, typer.Option("--seq-len", help="Items per sequence at most: 200, or 50,100,200.")],
    loss: Annotated[
        str | None, typer.Option("--loss", help="ce, ce-, cce, cce-, bce, gbce; without it: the first five.")
    ] = None,
    negatives: Annotated[
        str | None, typer.Option("--negatives", help="Negatives per set, sampled losses only: 512, or 128,512.")
    ] = None,
    tokens_per_set: Annotated[
        int | None, typer.Option("--tokens-per-set", help="Tokens that share negatives; cce- only, default 32.")
    ] = None,
    sampler: options.SamplerOption = "uniform",
    model: options.ModelOption = "sasrec",
    mask_share: options.MaskShare = None,
    dim: options.Dim = 256,
    blocks: options.Blocks = 2,
    heads: options.Heads = 2,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp16, bf16 or fp32; without it and --loss: all.")
    ] = None,
    pass_tokens: options.PassTokens = None,
    recompute: options.Recompute = False,
    ema: options.Ema = None,
    kernel: options.KernelOption = "chunked",
    gpus: options.Gpus = 1,
    mean_length: options.MeanLength = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The card that times are for, and whose capacity counts.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Say whether it fits so much: 40GB.")] = None,
    json: options.Json = False,
) -> None:
    """The memory and step time of one configuration, or of many in a table; exit code 3 where none fits."""
    from srsplan.planner import api

    rows = _rows(loss, precision, batch_size, seq_len, negatives)
    estimates = [
        api.estimate(
            loss=row.loss, precision=row.precision, batch_size=row.batch_size, seq_len=row.seq_len,
            negatives=row.negatives, catalog=catalog, model=model, mask_share=mask_share,
            dim=dim, blocks=blocks, heads=heads, recompute=recompute,
            tokens_per_set=tokens_per_set if loss or LOSSES[row.loss].shares_negatives else None,
            sampler=sampler if loss or sampler in LOSSES[row.loss].samplers else "uniform",
            pass_tokens=pass_tokens, ema=ema,
            kernel=kernel if loss or LOSSES[row.loss].chunked else "chunked",
            gpus=gpus, mean_length=mean_length, gpu=gpu, budget=budget,
        )
        for row in rows
    ]  # fmt: skip
    _print(estimates, assumed_negatives=loss is None and negatives is None, json=json)
    if all(each.fits is False for each in estimates):
        raise _does_not_fit(estimates)


def _rows(loss: str | None, precision: str | None, batch_size: str, seq_len: str, negatives: str | None) -> list[Row]:
    """Return every combination of what was given; InputError for too many."""
    losses = list(PLANNED) if loss is None else [loss]
    precisions = [precision] if precision else [USUAL_PRECISION] if loss else list(get_args(Precision))
    knobs = list(product(precisions, _sizes(batch_size, "--batch-size"), _sizes(seq_len, "--seq-len")))
    counts: list[int | None] = [*_sizes(negatives, "--negatives")] if negatives else [None]
    rows = [
        Row(loss=name, precision=kind, batch_size=batch, seq_len=length, negatives=count)
        for name in losses
        for kind, batch, length in knobs
        for count in (counts if loss else _negatives(name, counts))
    ]
    if len(rows) > MOST_ROWS:
        raise InputError(f"{len(rows):,} configurations are asked for", f"ask for at most {MOST_ROWS} at once")
    return rows


def _negatives(loss: str, counts: list[int | None]) -> list[int | None]:
    """Return the numbers of negatives that a loss of the table of all losses can have."""
    kind = LOSSES[loss]
    if not kind.sampled or kind.usual_negatives:
        return [kind.usual_negatives]
    return [count or USUAL_NEGATIVES for count in counts]


def _sizes(text: str, option: str) -> list[int]:
    """Parse whole numbers separated by commas; InputError where one is none, or where a comma groups thousands."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) <= 18) or (part.startswith("0") and part != "0"):
            raise InputError(
                f"{option} {text[:60]!r}: {part[:60]!r} is not a whole number",
                f"say {option} 256, or {option} 64,128,256",
            )
    return list(dict.fromkeys(map(int, parts)))


def _print(estimates: list[Estimate], *, assumed_negatives: bool, json: bool) -> None:
    if json:
        documents = [each.to_dict() for each in estimates]
        console.print_json(documents[0] if len(documents) == 1 else {"estimates": documents})
        return
    from srsplan.planner.cli import estimate_screens

    if len(estimates) == 1:
        console.out.print(estimate_screens.one(estimates[0]))
    else:
        assumed = [f"ns {USUAL_NEGATIVES} is assumed: --negatives sets it."] if assumed_negatives else []
        console.out.print(estimate_screens.several(estimates, assumed))


def _does_not_fit(estimates: list[Estimate]) -> NothingFits:
    nearest = max(estimates, key=lambda each: each.headroom_bytes or 0)
    from srsplan.models.units import format_gib

    over = format_gib(-(nearest.headroom_bytes or 0))
    subject = "it does not fit" if len(estimates) == 1 else f"none of {len(estimates)} fits"
    return NothingFits(f"{subject}: {over} are missing", "srsplan recommend finds what fits a budget")
