"""Makes a plan of a recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from srsplan.planner.budget import Budget
from srsplan.planner.plan.document import (
    BudgetEntry,
    ChoiceEntry,
    ConfirmedEntry,
    Inputs,
    KnobEntry,
    LayoutEntry,
    MemoryEntry,
    MissEntry,
    PassEntry,
    Plan,
)
from srsplan.planner.search.recommendation import Choice, Miss, Recommendation
from srsplan.planner.several_gpus import Layout
from srsplan.profiler.memory.model import Memory


def memory_entry(memory: Memory) -> MemoryEntry:
    """Return the figures of a plan's or an estimate's `memory`."""
    return MemoryEntry(
        allocated_bytes=memory.allocated_bytes,
        reserved_bytes=memory.reserved_bytes,
        evaluation_bytes=memory.evaluation_bytes,
        upper_bytes=memory.upper_bytes,
        basis=memory.basis,
    )


def choice_entry(rank: int, choice: Choice, budget: Budget | None, step_basis: str) -> ChoiceEntry:
    """Return a choice as the plan writes it; headroom is 0 without a budget."""
    configuration = choice.configuration
    headroom = 0 if budget is None else budget.usable_bytes - choice.memory.upper_bytes
    return ChoiceEntry(
        rank=rank,
        loss=configuration.loss,
        batch_size=configuration.batch_size,
        seq_len=configuration.seq_len,
        negatives=configuration.negatives,
        tokens_per_set=configuration.tokens_per_set,
        sampler=configuration.sampler,
        pass_tokens=configuration.tokens,
        pass_sequences=configuration.sequences,
        passes=choice.passes,
        kernel=configuration.kernel,
        recompute=configuration.recompute,
        eval_batch_size=choice.evaluation_users,
        memory=memory_entry(choice.memory),
        breakdown_bytes=dict(choice.memory.breakdown_bytes),
        headroom_bytes=headroom,
        step_ms=round(choice.step_ms, 3),
        step_basis=step_basis,
        step_tokens=round(choice.step_tokens, 1),
        seconds_per_million_tokens=round(choice.seconds_per_million, 4),
        epoch_seconds=None if choice.epoch_seconds is None else round(choice.epoch_seconds, 1),
        why=choice.why,
        confirmed=None if choice.confirmed is None else ConfirmedEntry(**asdict(choice.confirmed)),
    )


def miss_entry(miss: Miss) -> MissEntry:
    """Return a near miss as the plan writes it."""
    configuration = miss.configuration
    return MissEntry(
        loss=configuration.loss,
        batch_size=configuration.batch_size,
        seq_len=configuration.seq_len,
        negatives=configuration.negatives,
        pass_tokens=configuration.tokens,
        upper_bytes=miss.memory.upper_bytes,
        over_bytes=miss.over_bytes,
    )


def budget_entry(budget: Budget, fixed_floor_bytes: int) -> BudgetEntry:
    """Return the budget as the plan writes it."""
    return BudgetEntry(
        bytes=budget.bytes,
        usable_bytes=budget.usable_bytes,
        margin_bytes=budget.margin_bytes,
        context_bytes=budget.context_bytes,
        context_basis=budget.context_basis,
        fixed_floor_bytes=fixed_floor_bytes,
    )


def make_plan(
    inputs: Inputs,
    budget: Budget,
    found: Recommendation,
    *,
    step_basis: str,
    binds: str,
    next_command: str,
    several: Sequence[Layout] = (),
) -> Plan:
    """Return the plan of a recommendation that has choices."""
    from importlib.metadata import version

    first = found.choices[0].configuration
    return Plan(
        version=2,
        srsplan=version("srsplan"),
        inputs=inputs,
        budget=budget_entry(budget, first.table_copies * first.table_bytes),
        choices=[choice_entry(rank, each, budget, step_basis) for rank, each in enumerate(found.choices, start=1)],
        near_misses=[miss_entry(miss) for miss in found.near_misses],
        passes=[PassEntry.model_validate(asdict(each)) for each in found.passes],
        knobs=[KnobEntry.model_validate(asdict(knob)) for knob in found.knobs],
        binds=binds,
        several_gpus=[LayoutEntry(**asdict(layout)) for layout in several],
        next_command=next_command,
    )
