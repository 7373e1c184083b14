"""One probe's outcome, and its line of JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from srsplan.models.config import Configuration, reject_unknown_keys
from srsplan.models.errors import InputError

SCHEMA = 1
Status = Literal["ok", "oom_device", "oom_host", "illegal_access", "timeout", "failed"]
Basis = Literal["measured", "simulated"]
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """What a probe found. None stands for what it could not know, never a number that looks like a result."""

    configuration: Configuration
    status: Status
    basis: Basis
    gpu: str
    """The card that the record is for, by its name in the catalogue."""
    device: str
    """What it ran on: the driver's name of a card, "cpu", or "meta" for the ledger."""
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    evaluation_bytes: int | None = None
    context_bytes: int | None = None
    """What the card has given away beside reserved bytes: CUDA context, kernels' code, other processes."""
    retries: int | None = None
    """How often the steps that were timed made the allocator give memory back: more than 0, and the cap is too low."""
    cap_bytes: int | None = None
    """Reserved bytes the process was allowed; None for all of the card."""
    step_ms_median: float | None = None
    step_ms_p95: float | None = None
    time_basis: str = NOT_MEASURED
    """"measured", "scaled from CARD", or "not measured"."""
    seconds: float = 0.0
    """What the probe took."""
    driver: str = ""
    torch: str = ""
    triton: str = ""
    error_tail: str = ""
    """The last lines of what went wrong."""

    @property
    def key(self) -> str:
        """What makes two probes the same: card, basis, configuration, cap."""
        cap = [] if self.cap_bytes is None else [self.cap_bytes]
        return json.dumps([self.gpu, self.basis, self.configuration.to_dict(), *cap], sort_keys=True)

    def to_line(self) -> str:
        """One line of JSON, newline included."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, allow_nan=False) + "\n"

    @classmethod
    def from_document(cls, document: Any) -> ProbeRecord:
        """The inverse; InputError for another schema, an unknown key or a value that cannot be."""
        if not isinstance(document, Mapping):
            raise InputError(f"a record is {type(document).__name__}, not an object", "remove the line")
        values = dict(document)
        if values.pop("schema", None) != SCHEMA:
            raise InputError(f"a record of schema {document.get('schema')!r}", f"this srsplan reads schema {SCHEMA}")
        reject_unknown_keys(values, [each.name for each in fields(cls)], "record")
        for name, allowed in (("status", get_args(Status)), ("basis", get_args(Basis))):
            if values.get(name) not in allowed:
                raise InputError(f"{name} {values.get(name)!r} in a record", f"it is one of {', '.join(allowed)}")
        try:
            return cls(**{**values, "configuration": Configuration.from_dict(values["configuration"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"a record lacks a field: {error}", "remove the line") from error
