"""Whether the run that lies in a folder is the one that a comparison asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from srsplan.models.training.folder import CONFIG, read_document
from srsplan.models.training.identity import MEMORY_ONLY
from srsplan.models.training.run import Order, RunConfig

OF_THE_DATA = ("catalog",)
"""Parts of a configuration that the data decide."""

Value = object


def difference(order: Order, folder: Path) -> str | None:
    """Say in what the run in the folder differs from the order, the first thing only; None where it is the same run.

    InputError where its config.json is missing, damaged or of another version.
    """
    found = read_document(folder / CONFIG, RunConfig, "configuration")
    wanted = dict(_identity(order))
    there = dict(_identity(replaced_by(order, found)))
    for name, value in wanted.items():
        if there.get(name) != value:
            return f"{name} is {there.get(name)} there, and {value} here"
    return None


def replaced_by(order: Order, found: RunConfig) -> Order:
    """Return an order for the run that a config.json describes."""
    from dataclasses import replace

    data = replace(order.data, path=Path(found.data), strategy=found.split)  # type: ignore[arg-type]
    return replace(
        order, configuration=found.configuration, settings=found.settings, data=data, minimums=found.minimums
    )


def _identity(order: Order) -> Iterator[tuple[str, Value]]:
    """Yield everything by name that decides what is computed, apart from the content of the data."""
    values = order.configuration.to_dict()
    sizes = values.pop("architecture")
    yield from ((name, value) for name, value in values.items() if name not in (*MEMORY_ONLY, *OF_THE_DATA))
    yield from sizes.items()
    yield from asdict(order.settings).items()
    yield "data", order.data.path.name
    yield "split", order.data.strategy
    yield from ((f"min_{name}", value) for name, value in asdict(order.minimums).items())
