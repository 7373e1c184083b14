"""Hardware, versions and free memory: no figure is printed without the first two."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from srsplan.models.training.step import DTYPES
from srsplan.profiler.bench.ceilings import Ceilings, measure_ceilings
from srsplan.profiler.versions import installed

KEPT_FREE = 0.9
"""Share of a machine's free memory that may be used."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The conditions that figures were measured under."""

    device: str
    torch: str
    triton: str
    srsplan: str
    date: str
    dtype: str
    ceilings: Ceilings

    def document(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return asdict(self)

    def origin(self) -> dict[str, str]:
        """Return the part that stands in every row of a file."""
        return {
            "device": self.device, "torch": self.torch, "triton": self.triton, "date": self.date, "dtype": self.dtype,
        }  # fmt: skip


def measure_environment(dtype: torch.dtype, device: torch.device) -> Environment:
    """Name the hardware and the versions, and measure the device's limits; takes a few seconds."""
    torch.manual_seed(0)
    on_card = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if on_card else f"{_cpu()}, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        triton=installed("triton"),
        srsplan=installed("srsplan") or "from its sources",
        date=date.today().isoformat(),
        dtype=next(name for name, each in DTYPES.items() if each == dtype),
        ceilings=measure_ceilings(dtype, device),
    )


def _cpu() -> str:
    """Return "CPU" and its model, where Linux tells."""
    model = re.search(r"^model name\s*:\s*(.+)$", _kernel_file("cpuinfo"), re.MULTILINE)
    return f"CPU {model[1].strip() if model else platform.machine()}"


def free_bytes(device: torch.device) -> int:
    """Return the bytes that may be used: what the card and its cache have left, or 0.9 of the machine's free memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", _kernel_file("meminfo"), re.MULTILINE)
    if available:
        return int(KEPT_FREE * 1024 * int(available[1]))
    return int(KEPT_FREE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _kernel_file(name: str) -> str:
    """Read a file of Linux's /proc; "" on other systems."""
    try:
        return Path("/proc", name).read_text()
    except OSError:
        return ""
