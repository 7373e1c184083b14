"""The card that kernels are launched on."""

from __future__ import annotations

import torch

from srsplan.kernels.launches.table import ASSUMED_CAPABILITY


def capability_of(device: torch.device) -> int:
    """Return the compute capability of a device as a number: 90 for 9.0."""
    if device.type != "cuda":
        return ASSUMED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
