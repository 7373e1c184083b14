"""The loop of a profile: probes one after another, stored one by one, and others in the places of those that failed.

It goes on where a kill stopped it: what is stored already is not tried again. Who watches is told through `Observer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from srsplan.models.config import Configuration
from srsplan.profiler.probes.grid import Predict, Wanted, replace_failed
from srsplan.profiler.probes.probe import Probe
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import Store

ROUNDS = 3
"""Times that failed probes are replaced by others."""

Complete = Callable[[ProbeRecord, Sequence[ProbeRecord]], ProbeRecord]
"""Adds to a record what other records let one calculate: the time of a step that was measured on another card."""


class Observer(Protocol):
    """Whoever wants to know how far the loop is, for progress on a screen."""

    def on_round_start(self, probes: int, stored: int) -> None:
        """Note that so many probes are about to run, and so many more were stored already."""

    def on_probe_start(self, configuration: Configuration) -> None:
        """Note that a probe begins."""

    def on_probe_end(self, record: ProbeRecord) -> None:
        """Note that a probe has ended and is stored."""

    def on_replaced(self, failed: int, others: int) -> None:
        """Note that so many probes failed, and so many smaller ones are tried in their places."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """Everything that the loop needs."""

    probe: Probe
    store: Store
    wanted: Wanted
    predict: Predict
    complete: Complete
    observer: Observer

    def run(self, chosen: Sequence[Configuration]) -> list[ProbeRecord]:
        """Run the chosen probes and those in the places of the failed; return the records of all of them."""
        records = self._round(chosen)
        for _ in range(ROUNDS):
            failed = [record.configuration for record in records if record.status != "ok"]
            tried = [record.configuration for record in records]
            others = replace_failed(self.wanted, self.predict, tried, failed)
            if not others:
                break
            self.observer.on_replaced(len(failed), len(others))
            records += self._round(others)
        return records

    def _round(self, chosen: Sequence[Configuration]) -> list[ProbeRecord]:
        """Probe what is not stored yet; every record is on disk before the next probe begins."""
        keys = {self.probe.blank(each).key: each for each in chosen}
        stored = self.store.keys()
        missing = [each for key, each in keys.items() if key not in stored]
        self.observer.on_round_start(len(missing), len(keys) - len(missing))
        for configuration in missing:
            self.observer.on_probe_start(configuration)
            record = self.complete(self.probe.run(configuration), self.store.records)
            self.store.append(record)
            self.observer.on_probe_end(record)
        return [record for record in self.store.records if record.key in keys]
