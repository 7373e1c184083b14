"""The sizes that every contestant is given. Does not import torch.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from srsplan.kernels.losses import Loss
from srsplan.models.errors import InputError
from srsplan.models.units import parse_count

EXAMPLE = "2048x20Kx64x128"
SMALLEST_SCALED = 64
"""Scaling leaves at least so many tokens and items."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that every contestant is given: M tokens, V items, ns negatives, D."""

    name: str
    tokens: int
    catalog: int
    negatives: int
    dim: int = 256
    full_part: int = 1
    """Full softmax is given one of so many parts of the tokens: all of them would take seconds a call."""

    def given_to(self, loss: Loss) -> Shape:
        """Return the shape as contestants of a loss are given it."""
        if loss.sampled or self.full_part == 1:
            return replace(self, full_part=1)
        name = f"{self.name}, 1/{self.full_part} of the tokens"
        return replace(self, name=name, tokens=max(1, self.tokens // self.full_part), full_part=1)

    def scaled(self, factor: float) -> Shape:
        """Return the shape with fewer tokens and items, for machines on which the whole takes too long."""
        if factor == 1:
            return self
        tokens, catalog = (
            max(min(SMALLEST_SCALED, size), round(size * factor)) for size in (self.tokens, self.catalog)
        )
        name, negatives = f"{self.name} x {factor:g}", min(self.negatives, catalog - 1)
        return replace(self, name=name, tokens=tokens, catalog=catalog, negatives=negatives)


SHAPES = {
    name: Shape(name=name, tokens=tokens, catalog=catalog, negatives=negatives, full_part=full_part)
    for name, tokens, catalog, negatives, full_part in (
        ("ml20m", 131_072, 15_000, 1511, 1),
        ("beauty", 32_768, 176_000, 511, 1),
        ("gowalla", 327_680, 309_000, 511, 1),
        ("zvuk", 131_072, 893_000, 2047, 1),
        ("30music", 184_320, 909_000, 4095, 1),
        ("megamarket", 1_638_400, 1_661_000, 1023, 8),
    )
}
"""Shapes of published data sets: batch size 256 to 5,120, the catalogs as they are."""


def parse_shape(text: str) -> Shape:
    """Parse a named shape or MxVxDxNS, counts such as 20K allowed; InputError otherwise."""
    if text.strip() in SHAPES:
        return SHAPES[text.strip()]
    parts = text.strip().split("x")
    if len(parts) != 4:
        raise InputError(
            f"unknown shape {text!r}",
            f"named ones are {', '.join(SHAPES)}; or tokens x items x dim x negatives: {EXAMPLE}",
        )
    tokens, catalog, dim, negatives = (parse_count(part, "--shapes") for part in parts)
    if negatives >= catalog:
        raise InputError(f"shape {text!r}: {negatives} negatives of {catalog} items", "give fewer negatives than items")
    if dim % 8:
        raise InputError(f"shape {text!r}: dim {dim} is no multiple of 8", f"use {dim // 8 * 8 + 8}")
    return Shape(name=text.strip(), tokens=tokens, catalog=catalog, negatives=negatives, dim=dim)
