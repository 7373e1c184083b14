"""Options that several verbs share, with one help text each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import Annotated, TypeVar, get_type_hints

import typer
from typer.models import OptionInfo

Catalog = Annotated[str, typer.Option("--catalog", help="Number of items: 1.6M, 300K, 1_600_000.")]
Gpu = Annotated[str, typer.Option("--gpu", help="A card of `srsplan gpus`, or `auto` for the one present.")]
Dim = Annotated[int, typer.Option("--dim", help="Hidden size D.")]
Blocks = Annotated[int, typer.Option("--blocks", help="Transformer blocks.")]
Heads = Annotated[int, typer.Option("--heads", help="Attention heads.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp16, bf16 or fp32.")]
MeanLength = Annotated[
    float | None, typer.Option("--mean-length", help="Interactions per user on average; without it: all full.")
]
UserColumn = Annotated[str | None, typer.Option("--user-column", help="Column of user ids, where the name is unusual.")]
ItemColumn = Annotated[str | None, typer.Option("--item-column", help="Column of item ids.")]
TimestampColumn = Annotated[str | None, typer.Option("--timestamp-column", help="Column of timestamps.")]
Split = Annotated[str, typer.Option("--split", help="auto, global-time or leave-one-out.")]
Recompute = Annotated[
    bool, typer.Option("--recompute/--no-recompute", help="Activation checkpointing: less memory, about 30% more time.")
]
SamplerOption = Annotated[
    str,
    typer.Option(
        "--sampler",
        help="How sampled losses draw negatives: uniform, popularity, in-batch, mixed, adaptive or adaptive-mixed.",
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="sasrec, bert4rec or esasrec.")]
MaskShare = Annotated[
    float | None, typer.Option("--mask-share", help="Share of a sequence's items that bert4rec learns to fill in; 0.2.")
]
Gpus = Annotated[int, typer.Option("--gpus", help="Say what each of several GPUs would need; on paper.")]
PassTokens = Annotated[
    int | None,
    typer.Option("--pass-tokens", help="Tokens at a time: gradients of a batch's passes accumulate; less memory."),
]
KernelOption = Annotated[
    str, typer.Option("--kernel", help="The implementation of cce and cce-: chunked (PyTorch) or triton.")
]
Ema = Annotated[
    float | None, typer.Option("--ema", help="Count a moving average of the weights, of this decay: one more copy.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]

T = TypeVar("T")


def options_of(kind: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Turn a command that takes one dataclass of options into a function with a parameter per field, for typer to read.

    The fields of `kind` are annotated as typer's parameters are; a field without a default is a required option.
    """

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        def with_options(**values: object) -> None:
            command(kind(**values))

        parameters = parameters_of(kind)
        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        with_options.__annotations__ = {each.name: each.annotation for each in parameters}
        with_options.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return with_options

    return decorate


def parameters_of(kind: type) -> list[Parameter]:
    """Return a keyword parameter for every field of a dataclass, with the field's annotation and default."""
    annotations = get_type_hints(kind, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            annotation=annotations[field.name],
            default=Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(kind)
    ]


def words_of(verb: str, options: object) -> list[str]:
    """Return the words of the command line that gives exactly these options; `console.command` quotes them."""
    words = ["srsplan", verb]
    for parameter in parameters_of(type(options)):
        value = getattr(options, parameter.name)
        if value == parameter.default or value is None:
            continue
        names = next(each for each in parameter.annotation.__metadata__ if isinstance(each, OptionInfo))
        flag = next(name for name in (names.default, *(names.param_decls or ())) if str(name).startswith("--"))
        if isinstance(value, bool):
            given, _, refused = str(flag).partition("/")
            words.append(given if value else refused)
        else:
            words += [str(flag), str(value)]
    return words
