"""A question to the planner: plain values, as people write them, understood once for every verb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from srsplan.kernels.losses import PLANNED
from srsplan.models.checks import find_loss
from srsplan.models.config import Configuration
from srsplan.models.errors import InputError
from srsplan.models.units import parse_bytes, parse_count
from srsplan.planner import step_time as timing
from srsplan.planner.budget import Budget, assumed_gpu, make_budget
from srsplan.planner.fit import Fit
from srsplan.planner.search.order import BALANCE, Order
from srsplan.planner.search.prices import Prices
from srsplan.planner.search.space import Space
from srsplan.planner.workload import MeanLength, Workload, WorstCase
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.detect import resolve_gpu

if TYPE_CHECKING:
    from srsplan.models.data.splits import Strategy

Size = int | str
"""A number, or a number as people write it: 40GB, 1.6M."""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of interactions and how it is read, as the command line says it."""

    path: Path
    user_column: str | None = None
    item_column: str | None = None
    timestamp_column: str | None = None
    split: str = "auto"

    def options(self) -> list[str]:
        """Return the same as options of `train`."""
        given = {
            "--data": str(self.path),
            "--user-column": self.user_column,
            "--item-column": self.item_column,
            "--timestamp-column": self.timestamp_column,
            "--split": None if self.split == "auto" else self.split,
        }
        return [part for option, value in given.items() if value is not None for part in (option, value)]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, understood."""

    space: Space
    budget: Budget
    gpu: Gpu
    gpu_is_given: bool
    """False where the card was assumed from the budget."""
    prices: Prices
    step_basis: str
    order: Order = BALANCE
    trust: str = ""
    """Sentence on how far to trust an order that was learned from runs."""
    data: DataFile | None = None
    gpus: int = 1
    every_loss: bool = True
    """The best of every loss is wanted, beside the choices of the preferred one."""
    notes: dict[str, str] = field(default_factory=dict)
    """Sentences by label: what was done to the data, what a profile and a check found."""

    def under(self, *, budget: Budget | None = None, gpu: Gpu | None = None, space: Space | None = None) -> Question:
        """Return the same question under another budget, for another card or space."""
        budget, gpu, space = budget or self.budget, gpu or self.gpu, space or self.space
        prices = Prices(
            space.workload, budget, gpu, self.prices.model, self.prices.rates,
            time=self.prices.time, may_recompute=self.prices.may_recompute,
        )  # fmt: skip
        return replace(self, space=space, budget=budget, gpu=gpu, prices=prices)


@cache
def assumed_model() -> MemoryModel:
    """Return the memory model without a profile: one for all questions of a process."""
    return MemoryModel()


def fit_of(profile: Path | None) -> Fit:
    """Return the memory model and the rates that a profile gives, or the assumed ones."""
    if profile is None:
        return Fit(assumed_model(), timing.ASSUMED, timing.BASIS, "")
    from srsplan.planner.calibration import model_of

    return model_of(profile)


def losses_of(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the losses that were named, each once; those of a plan where none was."""
    return tuple(dict.fromkeys(find_loss(name).name for name in names or PLANNED))


def items_of(catalog: Size) -> int:
    """Return the number of items that `--catalog` means."""
    return parse_count(str(catalog), "--catalog")


def card_and_budget(gpu: str | None, budget: Size | None, margin: float) -> tuple[Gpu, Budget]:
    """Return the named card, or the smallest that holds the budget; and the budget, or all of the card."""
    if gpu is None and budget is None:
        raise InputError(
            "neither --budget nor --gpu is given", "say --budget 40GB, or --gpu a100-40gb for all of a card"
        )
    total = None if budget is None else parse_bytes(str(budget), "--budget")
    card = resolve_gpu(gpu) if gpu is not None else assumed_gpu(total or 0)
    return card, make_budget(total, card, margin)


def known_data(
    data: DataFile | None, catalog: Size | None, mean_length: float | None, users: Size | None, *, masked: bool = False
) -> tuple[int, Workload, tuple[str, ...]]:
    """Return the number of items, the workload, and what was done to the data."""
    if data is not None:
        if users is not None or mean_length is not None:
            raise InputError("--users and --mean-length are known from --data", "leave them out")
        return workload_of_data(data, catalog, masked=masked)
    if catalog is None:
        raise InputError("neither --catalog nor --data is given", "say --catalog 1.6M, or --data interactions.parquet")
    return items_of(catalog), workload_without_data(mean_length, users), ()


def workload_without_data(mean_length: float | None, users: Size | None) -> Workload:
    """Return the workload as far as it is known without interactions."""
    count = None if users is None else parse_count(str(users), "--users")
    return WorstCase(users=count) if mean_length is None else MeanLength(mean_length, count)


def workload_of_data(
    data: DataFile, catalog: Size | None, *, masked: bool = False
) -> tuple[int, Workload, tuple[str, ...]]:
    """Return the catalog, at least as large as `catalog`, the workload, and what was done to the data."""
    from srsplan.models.data.formats import Columns
    from srsplan.models.data.options import DataOptions
    from srsplan.planner.datasets import workload_of

    columns = Columns(user=data.user_column, item=data.item_column, timestamp=data.timestamp_column)
    chosen = DataOptions(path=data.path, columns=columns, strategy=cast("Strategy", data.split))
    items, workload, notes = workload_of(chosen, masked=masked)
    return (items if catalog is None else max(items, items_of(catalog))), workload, notes


def order_of(runs: Path | None, catalog: int) -> tuple[Order, str]:
    """Return the balance rule, or that of a run table; and how far the latter is to be trusted."""
    if runs is None:
        return BALANCE, ""
    from srsplan.planner.analysis.quality import QualityModel
    from srsplan.planner.analysis.run_tables import load_runs

    model = QualityModel.fit(load_runs(runs))

    def rank(configurations: Sequence[Configuration]) -> list[int]:
        knobs = [(each.batch_size, each.seq_len, each.negatives) for each in configurations]
        return model.rerank(knobs, catalog).order

    rule = "best mean of two ranks: by a forest fitted to the runs, and by min(batch size, negatives)"
    return Order(rule=rule, rank=rank, why=lambda *_: "next by the same two ranks"), model.trust
