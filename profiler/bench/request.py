"""The comparison that a user wants: options as they are written, and as they are meant. No torch.

`srsplan bench` and `python -m srsplan.profiler.bench` have the same options, with the same help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from srsplan.kernels.losses import CE, CE_NEG
from srsplan.models.errors import InputError
from srsplan.profiler.bench.logits import DEVIATIONS, KINDS, Logits, logits_of
from srsplan.profiler.bench.shapes import SHAPES, Shape, parse_shape

LOSSES = (CE.name, CE_NEG.name)
DTYPES = ("fp16", "bf16", "fp32")
MOST_MINUTES = 60.0
LARGEST_DEVIATION = 10.0

HELP: Mapping[str, str] = MappingProxyType(
    {
        "shapes": f"{', '.join(SHAPES)}, or MxVxDxNS.",
        "scale": "Share of the shapes' tokens and items; on a CPU 0.01 of the named ones.",
        "losses": "ce (full softmax), ce- (sampled), or ce,ce-.",
        "only": "Contestants by name or by words of their names, with commas between: 'triton cce,chunked,32 a set'.",
        "logits": "random, trained, or both.",
        "deviation": "Standard deviations of random logits, for full softmax; sampled forms take the largest alone.",
        "peers": "Also what others publish, where it is installed.",
        "dtype": "fp16, bf16 or fp32; on a CPU fp32.",
        "device": "auto, cpu or cuda.",
        "repeats": "Times each is timed [default: 3 to 50, about a second].",
        "kernels": "Also the time of each kernel of a contestant, on a GPU.",
        "sweep": "Also each of the launches that a Triton kernel may have, on a GPU.",
        "minutes": "Minutes of a shape, after which nothing more of it begins.",
        "output": "CSV file that every result goes to, one at a time.",
        "json": "Print one JSON document instead of tables.",
    }
)
"""Help of every option, by the field of `Asked`."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options as they are written."""

    shapes: str | None = None
    scale: float | None = None
    losses: str = ",".join(LOSSES)
    only: str | None = None
    logits: str = "both"
    deviation: str = ",".join(f"{each:g}" for each in DEVIATIONS)
    peers: bool = False
    dtype: str | None = None
    device: str = "auto"
    repeats: int | None = None
    kernels: bool = False
    sweep: bool = False
    minutes: float = 9.0
    output: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """The comparison that a user wants."""

    shapes: Sequence[Shape]
    """The shapes by name or size; empty takes those of the device."""
    scale: float | None
    """Share of the shapes' tokens and items; None takes all, and on a CPU a hundredth of the named ones."""
    losses: Sequence[str]
    """Names of `contestants.COMPARED`."""
    logits: Sequence[Logits]
    peers: bool
    dtype: str | None
    """The compute type; None takes fp16, and on a CPU fp32."""
    device: str
    repeats: int | None
    """Repeats of every contestant; None takes as many as a second allows."""
    only: Sequence[str] = ()
    """Names of contestants, or words of them; empty takes all."""
    kernels: bool = False
    """Whether the kernels of every contestant are timed as well."""
    sweep: bool = False
    """Whether the launches of every Triton kernel are timed as well."""
    minutes: float = Asked.minutes
    """Minutes of a shape, after which nothing more of it begins."""
    output: Path | None = None
    """The CSV file that every result goes to."""


def request_of(asked: Asked) -> Request:
    """Return what the options mean; InputError, with what to change, for what means nothing."""
    if asked.scale is not None and not 0 < asked.scale <= 1:
        raise InputError(
            f"--scale {asked.scale:g} is outside (0, 1]", "0.1 takes a tenth of the tokens and of the items"
        )
    if not 0 < asked.minutes <= MOST_MINUTES:
        raise InputError(
            f"--minutes {asked.minutes:g} is outside (0, {MOST_MINUTES:g}]", f"leave it out: {Asked.minutes:g} a shape"
        )
    kinds = _chosen("--logits", ",".join(KINDS) if asked.logits.strip() == "both" else asked.logits, KINDS)
    return Request(
        shapes=[parse_shape(each) for each in asked.shapes.split(",")] if asked.shapes is not None else [],
        scale=asked.scale,
        losses=_chosen("--losses", asked.losses, LOSSES),
        only=() if asked.only is None else tuple(name.strip() for name in asked.only.split(",")),
        logits=logits_of(kinds, [_deviation(each) for each in asked.deviation.split(",")]),
        peers=asked.peers,
        dtype=None if asked.dtype is None else _one_of("--dtype", asked.dtype, DTYPES),
        device=asked.device,
        repeats=asked.repeats,
        kernels=asked.kernels,
        sweep=asked.sweep,
        minutes=asked.minutes,
        output=asked.output,
    )


def _chosen(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        _one_of(option, name, known)
    return names


def _one_of(option: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise InputError(f"unknown {option} {name!r}", f"known are {', '.join(known)}")
    return name


def _deviation(text: str) -> float:
    hint = f"give numbers such as {Asked.deviation}"
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"--deviation {text.strip()!r} is not a number", hint) from None
    if not 0 < value <= LARGEST_DEVIATION:
        raise InputError(f"--deviation {text.strip()} is outside (0, {LARGEST_DEVIATION:g}]", hint)
    return value
