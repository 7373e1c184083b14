"""The subject of a check: a loss as a training uses it, and the card, driver and versions that it runs on.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from srsplan.kernels.launches.autotune import cache_file
from srsplan.kernels.launches.cache import content_of
from srsplan.kernels.losses import LOSSES, Loss, Sampler

KERNELS = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loss as a training uses it."""

    loss: str
    """The name of a loss that has Triton kernels."""
    dim: int
    """Hidden size D."""
    dtype: str
    """Type of the matrix products, as torch names it: float16."""
    sampler: Sampler = "uniform"
    """How the training draws negatives; of a full softmax "uniform"."""
    tokens_per_set: int = 1
    """Tokens that share a set of negatives."""

    @property
    def kind(self) -> Loss:
        """The registry's entry."""
        return LOSSES[self.loss]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the matrix products."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def sixteen_bit(self) -> bool:
        """Tell whether the products run in 16 bit."""
        return self.torch_dtype.itemsize == 2


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """The sizes of a run's loss: one pass."""

    tokens: int
    """Tokens M of a pass."""
    catalog: int
    """Items V."""
    negatives: int | None = None
    """Negatives of a set."""

    def __str__(self) -> str:
        drawn = "" if self.negatives is None else f"x{self.negatives}"
        return f"{self.tokens}x{self.catalog}{drawn}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """The card, the driver and the versions: a verdict holds for these and for no others."""

    name: str
    capability: str
    """Compute capability: 9.0."""
    driver: str
    torch: str
    triton: str
    srsplan: str

    def key(self, subject: Subject) -> str:
        """Return what a verdict is remembered under. The kernels' own files and the launches in use are part of it."""
        parts = {**asdict(self), **asdict(subject), "kernels": checksum(), "launches": _launches(self.name)}
        return "; ".join(f"{name} {value}" for name, value in parts.items())


@cache
def checksum(folder: Path = KERNELS) -> str:
    """Return a CRC-32 of the package's source: a version's number stays while its files are worked on."""
    found = 0
    for path in sorted(folder.rglob("*.py")):
        found = zlib.crc32(path.read_bytes(), zlib.crc32(str(path.relative_to(folder)).encode(), found))
    return f"{found:08x}"


def _launches(card: str) -> str:
    """Return a CRC-32 of the launches that autotuning found for a card: with others another program runs."""
    try:
        return f"{zlib.crc32(content_of(cache_file(card))):08x}"
    except FileNotFoundError:
        return "the table's"
    except (OSError, ValueError):
        return "unreadable"
