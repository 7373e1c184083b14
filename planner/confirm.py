"""`recommend --check`: tries whether a choice runs, on the card if it is here, else by ledger and allocator model."""

from __future__ import annotations

from dataclasses import replace

from srsplan.planner.budget import Budget
from srsplan.planner.search.recommendation import Choice, Confirmed, Recommendation
from srsplan.planner.words import knobs_of
from srsplan.profiler.probes.catalogue import Gpu

SIMULATED_STEPS = 6
SETTLED_STEPS = 2
"""Steps at the end that count: before them, a cap may force memory to be given back until blocks find their places."""


def confirm_first(found: Recommendation, budget: Budget, card: Gpu) -> tuple[Recommendation, list[str]]:
    """Check the first choice; choices that do not run are dropped from the recommendation, each with a sentence."""
    dropped: list[str] = []
    choices = list(found.choices)
    while choices:
        confirmed = confirm(choices[0], budget, card)
        if confirmed.fits:
            choices[0] = replace(choices[0], confirmed=confirmed)
            break
        dropped.append(f"{knobs_of(choices.pop(0).configuration)} does not run: left out")
    return replace(found, choices=tuple(choices)), dropped


def confirm(choice: Choice, budget: Budget, card: Gpu, steps: int = SIMULATED_STEPS) -> Confirmed:
    """Run some steps and one evaluation batch under a hard cap of what the plan may use."""
    measured = _measured(choice, budget, card, steps)
    return measured or _simulated(choice, budget, steps)


def _measured(choice: Choice, budget: Budget, card: Gpu, steps: int) -> Confirmed | None:
    """Measure in a child process on the card; None where there is none that is large enough."""
    from srsplan.profiler.probes.cuda_probe import CudaProbe
    from srsplan.profiler.probes.device import find_device

    probe = find_device(card, timeout_s=300.0).probe
    if not isinstance(probe, CudaProbe):
        return None
    capped = replace(probe, cap_bytes=budget.usable_bytes, steps=steps, evaluation_users=choice.evaluation_users)
    record = capped.run(choice.configuration)
    return Confirmed(
        basis=f"measured on {probe.device}: {record.status}",
        fits=record.status == "ok",
        allocated_bytes=record.allocated_bytes or 0,
        reserved_bytes=record.reserved_bytes or 0,
        retries=record.retries,
    )


def _simulated(choice: Choice, budget: Budget, steps: int) -> Confirmed:
    """Play traced training, an evaluation in its middle, through the allocator under a cap of what the plan may use."""
    from srsplan.profiler.memory.allocator import replay
    from srsplan.profiler.memory.simulate import EvaluationSizes, simulate_evaluation, simulate_step, with_evaluation

    configuration, users = choice.configuration, choice.evaluation_users
    passes = 1 + configuration.several_passes
    training = simulate_step(configuration, steps=steps, passes=passes)
    pairs = EvaluationSizes(users=users, seen_pairs=users * configuration.seq_len)
    sizes, events = with_evaluation(training, simulate_evaluation(configuration, pairs), steps // 2 * passes)
    settled = training.trace.start_of("forward", (steps - SETTLED_STEPS) * passes)
    settled += len(events) - len(training.trace.events)
    found = replay(sizes, events, cap_bytes=budget.usable_bytes, first_event=settled)
    return Confirmed(
        basis="simulated: the ledger's trace through the allocator's model",
        fits=found.fits,
        allocated_bytes=found.allocated_bytes,
        reserved_bytes=found.reserved_bytes,
        retries=found.retries,
    )
