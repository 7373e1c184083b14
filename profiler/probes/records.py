"""One probe's outcome, and its line of JSON. Imports no torch."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from srsplan.models.config import Configuration
from srsplan.models.errors import InputError
from srsplan.models.schema import Document, Milliseconds, Seconds, explained

SCHEMA: Literal[1] = 1
Status = Literal["ok", "oom_device", "oom_host", "illegal_access", "timeout", "failed"]
Basis = Literal["measured", "simulated"]
NOT_MEASURED = "not measured"

LONGEST_LINE_BYTES = 16_384
"""Bytes of the longest line that is read: twice what the longest record takes."""

CardBytes = Annotated[int, Field(ge=1, lt=2**50)]
"""A peak: some bytes, and less than a petabyte."""
Rest = Annotated[int, Field(ge=0, lt=2**50)]
"""Bytes beside a peak: there may be none."""
Retries = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=4000)]


class Findings(Document):
    """The findings that a child process may report; None stands for what it could not know."""

    model_config = ConfigDict(strict=True)

    status: Status
    allocated_bytes: CardBytes | None = None
    reserved_bytes: CardBytes | None = None
    evaluation_bytes: CardBytes | None = None
    context_bytes: Rest | None = None
    """Bytes of the card that are taken beside reserved ones: CUDA context, kernels' code, other processes."""
    retries: Retries | None = None
    """Times that the timed steps made the allocator give memory back; above 0 the cap is too low."""
    step_ms_median: Milliseconds | None = None
    step_ms_p95: Milliseconds | None = None


class ProbeRecord(Findings):
    """The findings of a probe; None stands for what it could not know, never a number that looks like a result."""

    configuration: Configuration
    basis: Basis
    gpu: Name
    """The card that the record is for, by its name in the catalogue."""
    device: Name
    """Device that the probe ran on: the driver's name of a card, "cpu", or "meta" for the ledger."""
    cap_bytes: CardBytes | None = None
    """Reserved bytes the process was allowed; None for all of the card."""
    time_basis: Name = NOT_MEASURED
    """"measured", "scaled from CARD", or "not measured"."""
    seconds: Seconds = 0.0
    """Seconds that the probe took."""
    driver: Name = ""
    torch: Name = ""
    triton: Name = ""
    error_tail: Text = ""
    """The last lines of what went wrong."""
    version: Literal[1] = Field(default=SCHEMA, alias="schema")
    """Version of the record's fields."""

    @property
    def key(self) -> str:
        """The identity of a probe: card, basis, configuration, cap."""
        cap = [] if self.cap_bytes is None else [self.cap_bytes]
        return json.dumps([self.gpu, self.basis, self.configuration.to_dict(), *cap], sort_keys=True)

    def changed(self, **changes: Any) -> ProbeRecord:
        """Return a copy with other values, checked like any record."""
        known = {name: getattr(self, name) for name in self.model_fields_set - {"version"}}
        return ProbeRecord(**{**known, **changes})

    def to_document(self) -> dict[str, Any]:
        """Return plain types, the schema's number first."""
        document = self.model_dump(by_alias=True)
        return {"schema": document.pop("schema"), **document}

    def to_line(self) -> str:
        """Return one line of JSON, newline included."""
        return json.dumps(self.to_document(), allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: bytes | str, where: str) -> ProbeRecord:
        """Return the record of a line; InputError that begins with `where` for anything that is not one."""
        way_out = "remove the line; the others are whole"
        if len(line) > LONGEST_LINE_BYTES:
            raise InputError(f"{where} is longer than any record", way_out)
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            if error.errors(include_url=False, include_context=False, include_input=False)[0]["type"] == "json_invalid":
                raise InputError(f"{where} is not JSON", way_out) from None
            known = ["schema", *cls.model_fields, *Configuration.__dataclass_fields__]
            raise explained(error, where, known, way_out) from None
        except InputError as error:
            raise InputError(f"{where}: {error.message}", error.hint) from None
