"""The plan file: YAML that `recommend` writes, people edit and `train` reads.

Versioned and strict: an unknown key is an error with a suggestion, never ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from srsplan.kernels.losses import Sampler
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError
from srsplan.planner.budget import Budget
from srsplan.planner.search import Choice, Miss, Outcome
from srsplan.planner.several_gpus import Layout
from srsplan.profiler.memory.model import Memory

VERSION = 1
DEFAULT_PATH = Path("srsplan.plan.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Inputs(_Strict):
    """What the plan was made from."""

    catalog: PositiveInt
    gpu: str
    dim: PositiveInt = 256
    blocks: PositiveInt = 2
    heads: PositiveInt = 2
    dropout: float = 0.1
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    recompute: bool = False
    data: str | None = None
    users: int | None = None
    padding: str = ""
    order: str = ""

    def architecture(self) -> Architecture:
        """The model's sizes; InputError for an impossible combination."""
        return Architecture(dim=self.dim, blocks=self.blocks, heads=self.heads, dropout=self.dropout)


class BudgetEntry(_Strict):
    """Bytes of the card that the plan may use."""

    bytes: PositiveInt
    usable_bytes: PositiveInt
    margin_bytes: int = Field(ge=0)
    context_bytes: int = Field(ge=0)
    counts: str = "reserved bytes of the caching allocator (expandable segments), CUDA context, margin"


class MemoryEntry(_Strict):
    """Predicted bytes; see planner.memory.Memory."""

    allocated_bytes: int
    reserved_bytes: int
    evaluation_bytes: int
    upper_bytes: int
    basis: str


class ConfirmedEntry(_Strict):
    """What --check found; see planner.search.Confirmed."""

    basis: str
    fits: bool
    allocated_bytes: int
    reserved_bytes: int
    retries: int | None


class ChoiceEntry(_Strict):
    """One configuration, as `train` runs it."""

    rank: PositiveInt
    loss: str
    batch_size: PositiveInt
    seq_len: PositiveInt
    negatives: PositiveInt | None
    tokens_per_set: PositiveInt = 1
    sampler: Sampler = "uniform"
    valid_tokens: PositiveInt | None = None
    eval_batch_size: PositiveInt
    memory: MemoryEntry
    breakdown_bytes: dict[str, int]
    headroom_bytes: int
    step_ms: float
    step_basis: str
    epoch_seconds: float | None
    why: str
    confirmed: ConfirmedEntry | None = None


class MissEntry(_Strict):
    """A configuration that does not fit."""

    loss: str
    batch_size: PositiveInt
    seq_len: PositiveInt
    negatives: PositiveInt | None
    upper_bytes: int
    over_bytes: int


class LayoutEntry(_Strict):
    """One way to use several GPUs; see planner.several."""

    name: str
    per_gpu_batch: PositiveInt
    global_batch: PositiveInt
    reserved_bytes: int
    upper_bytes: int


class Plan(_Strict):
    """The whole file."""

    version: Literal[1]
    srsplan: str
    inputs: Inputs
    budget: BudgetEntry
    choices: list[ChoiceEntry]
    near_misses: list[MissEntry]
    several_gpus: list[LayoutEntry] = []
    next_command: str

    def configuration(self, rank: int = 1) -> Configuration:
        """The configuration of a rank; InputError where the plan has none."""
        choice = self.choice(rank)
        return Configuration(
            loss=choice.loss,
            catalog=self.inputs.catalog,
            batch_size=choice.batch_size,
            seq_len=choice.seq_len,
            negatives=choice.negatives,
            tokens_per_set=choice.tokens_per_set,
            sampler=choice.sampler,
            valid_tokens=choice.valid_tokens,
            architecture=self.inputs.architecture(),
            precision=self.inputs.precision,
            recompute=self.inputs.recompute,
        )

    def choice(self, rank: int = 1) -> ChoiceEntry:
        """The entry of a rank; InputError where the plan has none."""
        for choice in self.choices:
            if choice.rank == rank:
                return choice
        ranks = ", ".join(str(choice.rank) for choice in self.choices) or "none"
        raise InputError(f"--rank {rank}: the plan has no such choice", f"its ranks are {ranks}")


def memory_entry(memory: Memory) -> MemoryEntry:
    """The figures of a plan's or an estimate's `memory`."""
    return MemoryEntry(
        allocated_bytes=memory.allocated_bytes,
        reserved_bytes=memory.reserved_bytes,
        evaluation_bytes=memory.evaluation_bytes,
        upper_bytes=memory.upper_bytes,
        basis=memory.basis,
    )


def choice_entry(rank: int, choice: Choice, budget: Budget | None, step_basis: str) -> ChoiceEntry:
    """A choice as the plan writes it; headroom is 0 without a budget."""
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
        valid_tokens=configuration.valid_tokens,
        eval_batch_size=choice.evaluation_users,
        memory=memory_entry(choice.memory),
        breakdown_bytes=dict(choice.memory.breakdown_bytes),
        headroom_bytes=headroom,
        step_ms=round(choice.step_ms, 3),
        step_basis=step_basis,
        epoch_seconds=None if choice.epoch_seconds is None else round(choice.epoch_seconds, 1),
        why=choice.why,
        confirmed=None if choice.confirmed is None else ConfirmedEntry(**asdict(choice.confirmed)),
    )


def miss_entry(miss: Miss) -> MissEntry:
    """A near miss as the plan writes it."""
    configuration = miss.configuration
    return MissEntry(
        loss=configuration.loss,
        batch_size=configuration.batch_size,
        seq_len=configuration.seq_len,
        negatives=configuration.negatives,
        upper_bytes=miss.memory.upper_bytes,
        over_bytes=miss.over_bytes,
    )


def make_plan(
    inputs: Inputs, budget: Budget, outcome: Outcome, step_basis: str, next_command: str, several: Sequence[Layout] = ()
) -> Plan:
    """The plan of a search's outcome."""
    from importlib.metadata import version

    return Plan(
        version=1,
        srsplan=version("srsplan"),
        inputs=inputs,
        budget=BudgetEntry(
            bytes=budget.bytes,
            usable_bytes=budget.usable_bytes,
            margin_bytes=budget.margin_bytes,
            context_bytes=budget.context_bytes,
        ),
        choices=[choice_entry(rank, each, budget, step_basis) for rank, each in enumerate(outcome.choices, start=1)],
        near_misses=[miss_entry(miss) for miss in outcome.near_misses],
        several_gpus=[LayoutEntry(**asdict(layout)) for layout in several],
        next_command=next_command,
    )


def write_plan(plan: Plan, path: Path) -> None:
    """Write through a temporary file, so that a full disk never leaves half a plan in place of a whole one."""
    text = yaml.safe_dump(plan.model_dump(), sort_keys=False, allow_unicode=True, width=110)
    head = "# srsplan plan: edit a choice, then `srsplan train --plan THIS --data FILE [--rank N]`\n"
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(head + text)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write the plan {path}: {error.strerror}", "give another path with -o") from error


def read_plan(path: Path) -> Plan:
    """Read and check a plan; InputError names the file, the key and what to change."""
    try:
        document: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no plan at {path}", "make one: srsplan recommend --catalog 1.6M --budget 40GB") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {path}: {error}", "give the file that recommend wrote") from error
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not YAML: {' '.join(str(error).split())}", "mend it, or make the plan anew"
        ) from error
    if not isinstance(document, dict):
        raise InputError(
            f"{path} is not a plan: it holds {type(document).__name__}", "give the file that recommend wrote"
        )
    if document.get("version") != VERSION:
        raise InputError(
            f"{path} is a plan of version {document.get('version')!r}; this srsplan reads version {VERSION}",
            "make the plan anew with srsplan recommend",
        )
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        raise _explain(error, path) from None


def _explain(error: ValidationError, path: Path) -> InputError:
    """The first thing pydantic found, in words."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        near = get_close_matches(key, _known_keys(), n=1)
        return InputError(f"{path}: unknown key {where!r}", f"did you mean {near[0]!r}?" if near else f"remove {key!r}")
    return InputError(
        f"{path}: {where} = {first.get('input')!r}: {first['msg']}", f"mend {where}, or make the plan anew"
    )


def _known_keys() -> list[str]:
    models = (Plan, Inputs, BudgetEntry, ChoiceEntry, ConfirmedEntry, MemoryEntry, MissEntry)
    return [name for model in models for name in model.model_fields]
