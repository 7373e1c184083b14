"""The looking of `srsplan doctor`: versions, the card, one probe a loss, and the Triton kernels' check.

What touches the card runs in child processes. On a machine without a GPU, or without torch, what is left is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from srsplan.kernels.losses import LOSSES, SAMPLERS
from srsplan.models.config import LARGEST_HEAD, Architecture, Configuration, Precision
from srsplan.models.errors import InputError, SrsplanError
from srsplan.planner import doctor
from srsplan.planner.doctor import NO_CUDA, Line, Report
from srsplan.profiler.probes.card import CardFacts, ask_card
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.cuda_probe import CudaProbe
from srsplan.profiler.probes.detect import detect_gpu
from srsplan.profiler.probes.probe import Probe, SimulatedProbe
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.versions import installed

if TYPE_CHECKING:
    from srsplan.profiler.probes.kernel_check import KernelCheck

CATALOG, BATCH_SIZE, SEQ_LEN, NEGATIVES, PASS_TOKENS = 100_000, 64, 128, 256, 3000
"""Sizes of the steps that are probed: large enough to measure, small enough for every card."""
HEADS = (2, 1, 4, 8, 16)
SIMULATED_BYTES = 1 << 50
"""Capacity that the ledger is given where there is no card: nothing is refused."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the doctor is asked to look at."""

    losses: tuple[str, ...]
    dim: int
    precision: Precision
    timeout_s: float

    def configuration(self, loss: str) -> Configuration:
        """Return the step of a loss that is probed."""
        kind = LOSSES[loss]
        return Configuration(
            loss=loss, catalog=CATALOG, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, pass_tokens=PASS_TOKENS,
            negatives=(kind.usual_negatives or NEGATIVES) if kind.sampled else None,
            tokens_per_set=kind.default_tokens_per_set,
            architecture=Architecture(dim=self.dim, heads=_heads(self.dim)), precision=self.precision,
        )  # fmt: skip


def _heads(dim: int) -> int:
    """Return a number of attention heads that a hidden size can have; the usual 2 where none can."""
    return next((heads for heads in HEADS if dim % (8 * heads) == 0 and dim <= heads * LARGEST_HEAD), HEADS[0])


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The means of looking: replaced where a test plays the card."""

    torch_fault: str
    """What importing torch said; "" where it works."""
    on_card: bool
    """torch sees a GPU."""
    seen_by_driver: str
    """What nvidia-smi calls the card; "" where it sees none."""
    ask_card: Callable[[], CardFacts | str]
    probe: Callable[[Wanted, CardFacts | None], Probe]
    kernel_check: Callable[[Wanted, CardFacts], KernelCheck]


def examine(wanted: Wanted, bench: Bench, say: Say) -> Report:
    """Look at everything, one after another; `say` is told what begins. Never raises for what is found."""
    versions = {name: installed(name) for name in ("srsplan", "torch", "triton")}
    lines = list(doctor.package_lines(versions, bench.torch_fault, bench.on_card))
    if bench.torch_fault:
        why = "torch does not work"
        skipped = [doctor.no_kernels_line(loss, why) for loss in _with_kernels(wanted)]
        return Report((*lines, *skipped))
    facts = None
    if bench.on_card:
        say("looking at the card")
        asked = bench.ask_card()
        facts = asked if isinstance(asked, CardFacts) else None
        lines += [_unanswered(asked)] if isinstance(asked, str) else doctor.card_lines(asked)
    else:
        lines += doctor.absent_card_lines(bench.seen_by_driver, "torch.cuda.is_available() is False")
    return Report((*lines, *_measured_lines(wanted, bench, facts, say)))


def _measured_lines(wanted: Wanted, bench: Bench, facts: CardFacts | None, say: Say) -> Iterator[Line]:
    probe, records = bench.probe(wanted, facts), list[ProbeRecord]()
    gpu = _gpu_here() if facts is not None else None
    for loss in wanted.losses:
        say(f"probing a step of {loss}")
        try:
            records.append(probe.run(wanted.configuration(loss)))
        except SrsplanError as error:
            yield Line(
                topic="training steps", name=f"step of {loss}", found=error.message, status="not good",
                advice=error.hint,
            )  # fmt: skip
    if facts is not None:
        yield doctor.context_line(facts, records)
    yield from (doctor.step_line(record, gpu) for record in records)
    for loss in _with_kernels(wanted):
        yield _kernels_line(wanted, bench, facts, loss, say)


def _kernels_line(wanted: Wanted, bench: Bench, facts: CardFacts | None, loss: str, say: Say) -> Line:
    if facts is None:
        return doctor.no_kernels_line(loss, NO_CUDA)
    try:
        triton = _on_triton(wanted.configuration(loss))
    except InputError as error:
        return doctor.no_kernels_line(loss, error.message)
    if not facts.triton:
        return doctor.no_kernels_line(loss, "Triton is not installed")
    say(f"checking the Triton kernels of {loss}")
    return _checked(bench.kernel_check(wanted, facts), triton)


def _checked(check: KernelCheck, configuration: Configuration) -> Line:
    """Check anew, with every sampler, and remember for `train`."""
    from srsplan.profiler.probes.kernel_check import shape_of, subject_of

    subject, shape = subject_of(configuration), shape_of(configuration)
    verdict = check.run(subject, shape, SAMPLERS if subject.kind.sampled else (), anew=True)
    times = verdict.times.get(str(shape))
    figures = {
        "faults": list(verdict.faults), "cases": verdict.cases, "worst_share_of_allowed": verdict.worst,
        "triton_ms": times and times.triton_ms, "chunked_ms": times and times.chunked_ms, "seconds": verdict.seconds,
    }  # fmt: skip
    line = Line(topic="Triton kernels", name=f"kernels of {configuration.loss}", found="", figures=figures)
    if verdict.right:
        used = LOSSES[configuration.loss].implementation(verdict.kernel(shape))
        return replace(line, found=f"{verdict.sentence(shape)}: auto takes {used}")
    advice = f"--kernel auto takes the chunked form; {doctor.REPORT if verdict.lasting else 'try again'}"
    return replace(line, found="; ".join(verdict.faults), status="not good", advice=advice)


def _with_kernels(wanted: Wanted) -> Sequence[str]:
    return [loss for loss in wanted.losses if LOSSES[loss].chunked]


def _on_triton(configuration: Configuration) -> Configuration:
    """Return the configuration on Triton; InputError where the kernels do not take its sizes."""
    return Configuration.from_dict({**configuration.to_dict(), "kernel": "triton"})


def _unanswered(why: str) -> Line:
    return Line(
        topic="card", name="GPU", found=f"the card does not answer: {why}", status="not good", advice=doctor.SEES_NONE
    )


def _gpu_here() -> Gpu | None:
    try:
        return detect_gpu()
    except InputError:
        return None


def bench_here(timeout_s: float) -> Bench:
    """Return the means of looking at this machine. Imports torch where it is installed."""
    fault, on_card = "", False
    try:
        import torch

        on_card = torch.cuda.is_available()
    except Exception as error:  # a broken installation raises whatever its libraries do
        fault = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    seen = _gpu_here()
    return Bench(
        torch_fault=fault, on_card=on_card, seen_by_driver="" if seen is None else seen.title,
        ask_card=lambda: ask_card(timeout_s=timeout_s), probe=_probe_of, kernel_check=_check_of,
    )  # fmt: skip


def _probe_of(wanted: Wanted, facts: CardFacts | None) -> Probe:
    if facts is None:
        return SimulatedProbe("none", SIMULATED_BYTES)
    return CudaProbe(gpu=facts.name, device=facts.name, driver=facts.driver, timeout_s=wanted.timeout_s)


def _check_of(wanted: Wanted, facts: CardFacts) -> KernelCheck:
    from srsplan.kernels.verification.subject import Card
    from srsplan.profiler.probes.kernel_check import KernelCheck

    card = Card(
        name=facts.name, capability=facts.capability, driver=facts.driver, torch=facts.torch, triton=facts.triton,
        srsplan=facts.srsplan,
    )  # fmt: skip
    return KernelCheck(card=card, timeout_s=wanted.timeout_s)
