"""Which device a training or a benchmark runs on."""

from __future__ import annotations

import torch

from srsplan.models.errors import InputError


def find_device(name: str) -> torch.device:
    """The device of a `--device` option: auto, cpu or cuda.

    "auto" is CUDA where torch sees a GPU, the CPU otherwise. InputError for another name, and for cuda without a GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown --device {name!r}", "devices are auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU", "use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
