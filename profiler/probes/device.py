"""The device that probes run on: the card itself, a larger one under a hard cap, or the ledger in its place."""

from __future__ import annotations

from dataclasses import dataclass

from srsplan.models.errors import InputError
from srsplan.profiler.probes.catalogue import Gpu
from srsplan.profiler.probes.cuda_probe import CudaProbe
from srsplan.profiler.probes.detect import detect_gpu
from srsplan.profiler.probes.probe import Probe, SimulatedProbe


@dataclass(frozen=True, kw_only=True)
class ProbeDevice:
    """A way to run probes for a card, and the card that is really here."""

    probe: Probe
    wanted: Gpu
    """The card that was asked for."""
    present: Gpu | None
    """The card of this machine, None where there is none."""

    @property
    def measures(self) -> bool:
        """True where probes run on a card; otherwise the ledger simulates them."""
        return not isinstance(self.probe, SimulatedProbe)

    @property
    def gpu(self) -> Gpu:
        """The card whose times are recorded: the one that is here where it measures."""
        return self.present if self.present is not None and self.measures else self.wanted

    @property
    def cap_bytes(self) -> int | None:
        """The bytes that a larger card lets a probe reserve in place of the one asked for; None without a cap."""
        return self.wanted.capacity_bytes if self.measures and self.gpu.name != self.wanted.name else None


def find_device(card: Gpu, timeout_s: float) -> ProbeDevice:
    """Return the way to probe a card on this machine; a probe that takes longer than `timeout_s` is ended."""
    present = _present_gpu()
    if present is None or present.capacity_bytes < card.capacity_bytes or not _cuda_works():
        simulated = SimulatedProbe(card.name, card.capacity_bytes)
        return ProbeDevice(probe=simulated, wanted=card, present=present)
    cap = None if present.name == card.name else card.capacity_bytes
    probe = CudaProbe(gpu=present.name, device=present.title, cap_bytes=cap, timeout_s=timeout_s)
    return ProbeDevice(probe=probe, wanted=card, present=present)


def _present_gpu() -> Gpu | None:
    try:
        return detect_gpu()
    except InputError:
        return None


def _cuda_works() -> bool:
    import torch

    return bool(torch.cuda.is_available())
