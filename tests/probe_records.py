"""Records of probes that were never run, for tests of what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from srsplan.models.config import Architecture, Configuration
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import Store

SMALL = Architecture(dim=32, heads=2, blocks=1)
CONFIGURATION = Configuration(loss="cce", catalog=500, batch_size=4, seq_len=8, architecture=SMALL, precision="fp32")


def record(batch_size: int = 4, **changes: object) -> ProbeRecord:
    configuration = replace(CONFIGURATION, batch_size=batch_size)
    fixed = {"status": "ok", "basis": "simulated", "gpu": "a100-40gb", "device": "meta", "allocated_bytes": 5}
    return ProbeRecord(configuration=configuration, **{**fixed, **changes})  # type: ignore[arg-type]


def stored(path: Path, *records: ProbeRecord) -> Path:
    with Store(path) as store:
        for each in records:
            store.append(each)
    return path
