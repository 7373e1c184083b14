"""The sizes that every contestant is given. Does not import torch.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    name: Shape(name=name, tokens=tokens, catalog=catalog, negatives=negatives)
    for name, tokens, catalog, negatives in (
        ("ml20m", 131_072, 15_000, 1511),
        ("beauty", 32_768, 176_000, 511),
        ("gowalla", 327_680, 309_000, 511),
        ("zvuk", 131_072, 893_000, 2047),
        ("30music", 184_320, 909_000, 4095),
        ("megamarket", 1_638_400, 1_661_000, 1023),
    )
}
"""Shapes of published data sets: batch size 256 to 5,120, the catalogs as they are."""
