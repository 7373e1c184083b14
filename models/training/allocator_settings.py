"""The setting of PyTorch's caching allocator that every plan assumes: expandable segments. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

ALLOCATOR_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"


def with_expandable_segments(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with expandable segments, beside whatever else the user has set.

    Only a setting of the user's own about expandable segments wins. It must be in place before CUDA starts.
    """
    told = environment.get(ALLOCATOR_VARIABLE, "")
    if "expandable_segments" not in told:
        told = f"{told},{EXPANDABLE}" if told else EXPANDABLE
    return {**environment, ALLOCATOR_VARIABLE: told}
