"""The samplers as an enumeration: the only place where they are numbered. Imports neither torch nor Triton."""

from __future__ import annotations

from enum import IntEnum


class SamplerKind(IntEnum):
    """The source of a set's negatives. The Triton kernels are compiled for one of these values."""

    UNIFORM = 0
    """Every item of the catalog is equally likely."""
    WEIGHTED = 1
    """Items are drawn in proportion to weights, by an alias table."""
    GIVEN = 2
    """Nothing is drawn: the caller gives the items."""
    IN_BATCH = 3
    """Items are drawn from the targets of the batch, each as often as it stands there."""
    MIXED = 4
    """A set's first negatives are drawn from the targets of the batch, the others uniformly."""
