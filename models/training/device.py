"""The device that a verb runs on."""

from __future__ import annotations

import torch

from srsplan.models.errors import InputError

DEVICES = ("auto", "cpu", "cuda")


def find_device(name: str) -> torch.device:
    """Return the device of a --device option; InputError for an unknown name, and for cuda where there is none."""
    if name not in DEVICES:
        raise InputError(f"unknown --device {name!r}", f"devices are {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU", "use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
