"""`srsplan doctor`: what was found, line by line, whether it is good, and what to do where it is not.

Judges facts that others gather (planner/examination.py). A line that could not be checked is neither good nor bad.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from srsplan.models.units import format_gib, format_ms
from srsplan.planner.budget import CONTEXT_BYTES
from srsplan.planner.step_time import step_ms
from srsplan.profiler.memory import reserved as lifetime
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.card import CardFacts
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.records import ProbeRecord

Status = Literal["good", "not good", "not checked"]

ALLOCATED_SHARE, RESERVED_SHARE = 0.005, 0.02
"""How far a measured step may be from its prediction: allocated bytes are counted, reserved ones replayed."""
TIME_FACTOR = 1.5
"""How far a measured time may be from the calculated one, of which the worst of 24 was 34% off."""

REPORT = "report it as an issue of srsplan, with what `srsplan doctor --json` prints"
TRAIN_EXTRA = "pip install 'srsplan[train]'"
NO_CUDA = "no CUDA device"
SEES_NONE = (
    "install a CUDA build of torch that the driver is new enough for (https://pytorch.org), and look at "
    "CUDA_VISIBLE_DEVICES"
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that was looked at."""

    topic: str
    """The part of the table that it belongs to."""
    name: str
    found: str
    status: Status = "good"
    advice: str = ""
    """What to do; only where it is not good, or not checked."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same as numbers, bytes and milliseconds, for --json."""


@dataclass(frozen=True)
class Report:
    """Everything that was looked at."""

    lines: tuple[Line, ...]

    @property
    def good(self) -> bool:
        """Tell whether everything that was checked is good."""
        return all(line.status != "not good" for line in self.lines)

    def document(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {"good": self.good, "lines": [asdict(line) for line in self.lines]}


def package_lines(versions: Mapping[str, str], torch_fault: str, on_card: bool) -> Iterator[Line]:
    """Yield a line for each package; `torch_fault` is what importing torch said, "" where it works."""
    yield Line(topic="versions", name="srsplan", found=versions["srsplan"])
    if torch_fault:
        found = f"{versions['torch'] or 'not installed'}{f': {torch_fault}' if versions['torch'] else ''}"
        yield Line(topic="versions", name="torch", found=found, status="not good", advice=TRAIN_EXTRA)
    else:
        yield Line(topic="versions", name="torch", found=versions["torch"])
    if versions["triton"]:
        yield Line(topic="versions", name="triton", found=versions["triton"])
        return
    missing = f"not installed: {TRAIN_EXTRA} brings it on Linux; without it the chunked forms run"
    status: Status = "not good" if on_card else "not checked"
    yield Line(topic="versions", name="triton", found="not installed", status=status, advice=missing)


def absent_card_lines(seen_by_driver: str, why: str) -> Iterator[Line]:
    """Yield the lines of a machine on which torch sees no GPU: good or bad by what the driver says."""
    if seen_by_driver:
        yield Line(
            topic="card", name="GPU", found=f"nvidia-smi sees {seen_by_driver}, torch does not: {why}",
            status="not good", advice=SEES_NONE,
        )  # fmt: skip
        return
    yield Line(
        topic="card", name="GPU", found=NO_CUDA, status="not checked", advice="training runs on the CPU, in fp32"
    )


def card_lines(facts: CardFacts) -> Iterator[Line]:
    """Yield what the card, its driver and its allocator say."""
    yield Line(topic="card", name="GPU", found=f"{facts.name}, capability {facts.capability}")
    yield Line(topic="card", name="driver", found=f"{facts.driver}; torch is built for CUDA {facts.cuda}")
    figures = {"total_bytes": facts.total_bytes, "free_bytes": facts.free_bytes, "others_bytes": facts.others_bytes}
    found = f"{format_gib(facts.total_bytes)}, {format_gib(facts.free_bytes)} free"
    taken = facts.others_bytes is not None and facts.others_bytes > CONTEXT_BYTES
    yield Line(
        topic="card", name="memory", found=found, figures=figures, status="not good" if taken else "good",
        advice=f"others hold {format_gib(facts.others_bytes or 0)}: end them, or plan with --budget" if taken else "",
    )  # fmt: skip
    yield _segments_line(facts.segments_grow)


def _segments_line(grow: bool | None) -> Line:
    line = Line(topic="card", name="expandable segments", found="a segment grows")
    if grow is None:
        return replace(line, found="not found out", status="not checked", advice="plans assume them")
    if grow:
        return line
    advice = (
        "memory is predicted for expandable segments: take expandable_segments:False out of PYTORCH_CUDA_ALLOC_CONF; "
        "where it is not there, this platform has none, and more is reserved than predicted"
    )
    return replace(line, found="no segment grows", status="not good", advice=advice)


def context_line(facts: CardFacts, records: Sequence[ProbeRecord]) -> Line:
    """Return the line of the CUDA context: by itself, and with the code that the probes' training steps loaded."""
    others = facts.others_bytes
    loaded = [each.context_bytes - others for each in records if each.context_bytes is not None and others is not None]
    sizes = [*([] if facts.context_bytes is None else [facts.context_bytes]), *loaded]
    if not sizes:
        return Line(topic="card", name="CUDA context", found="not found out", status="not checked")
    figures = {"empty_bytes": facts.context_bytes, "training_bytes": max(loaded, default=None)}
    found = f"{format_gib(facts.context_bytes or 0)} empty"
    found += f", {format_gib(max(loaded))} in training" if loaded else ""
    over = max(sizes) - CONTEXT_BYTES
    return Line(
        topic="card", name="CUDA context", found=f"{found}; plans assume {format_gib(CONTEXT_BYTES)}",
        status="not good" if over > 0 else "good", figures=figures,
        advice=f"plan with a --budget that is {format_gib(over)} smaller, or with a --profile of this card"
        if over > 0 else "",
    )  # fmt: skip


def step_line(record: ProbeRecord, gpu: Gpu | None) -> Line:
    """Return the line of one loss's probe: allocated, reserved and time, measured against predicted."""
    configuration, model = record.configuration, MemoryModel()
    name = f"step of {configuration.loss}"
    if record.status != "ok":
        said = record.error_tail.strip().splitlines()[-1:] or [""]
        found = f"{record.status}{': ' if said[0] else ''}{said[0][:200]}"
        return Line(topic="training steps", name=name, found=found, status="not good", advice=_failed(record.status))
    pairs: dict[str, tuple[float | None, float | None]] = {
        "allocated": (int(model.allocated([configuration])[0]), record.allocated_bytes),
        "reserved": (lifetime.steady(configuration, model.program), record.reserved_bytes),
        "time": (None if gpu is None else step_ms(configuration, gpu), record.step_ms_median),
    }
    known = [(kind, one, other) for kind, (one, other) in pairs.items() if one is not None and other is not None]
    verdicts = [_judged(kind, predicted, measured) for kind, predicted, measured in known]
    advice = "; ".join(advice for _, advice in verdicts if advice)
    return Line(
        topic="training steps", name=name, found="; ".join(found for found, _ in verdicts) + _basis(record),
        status="not good" if advice else "good", advice=advice, figures=_figures(pairs),
    )  # fmt: skip


def _figures(pairs: Mapping[str, tuple[float | None, float | None]]) -> dict[str, float | None]:
    """Return predicted and measured values under names with their units."""
    units = {"allocated": "bytes", "reserved": "bytes", "time": "ms"}
    ends = ("predicted", "measured")
    return {f"{kind}_{end}_{units[kind]}": pair[ends.index(end)] for kind, pair in pairs.items() for end in ends}


def _basis(record: ProbeRecord) -> str:
    return " (simulated: the ledger on this torch)" if record.basis == "simulated" else ""


def _judged(kind: str, predicted: float, measured: float) -> tuple[str, str]:
    """Return a figure in words, and what to do where it is off."""
    if kind == "time":
        found = f"{format_ms(measured)}, {format_ms(predicted)} calculated"
        far = not 1 / TIME_FACTOR <= measured / predicted <= TIME_FACTOR
        return found, "times of plans are off: plan with a profile (srsplan profile --gpu auto)" if far else ""
    found = f"{kind} {format_gib(measured)}, {format_gib(predicted)} predicted"
    share = ALLOCATED_SHARE if kind == "allocated" else RESERVED_SHARE
    if abs(measured - predicted) <= share * predicted:
        return found, ""
    return found, f"{kind} memory is not what is predicted: plan with a smaller --budget or a --profile, and {REPORT}"


def _failed(status: str) -> str:
    if status == "oom_device":
        return "the card has too little free memory for a small step: end other programs on it"
    return "give it more time with --timeout" if status == "timeout" else REPORT


def no_kernels_line(loss: str, why: str) -> Line:
    """Return the line of a loss whose kernels were not checked."""
    return Line(
        topic="Triton kernels", name=f"kernels of {loss}", found=f"{why}: kernels not checked here",
        status="not checked", advice="the chunked form runs everywhere",
    )  # fmt: skip
