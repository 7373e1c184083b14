"""The registry of models: what each is called and what it learns. Does not import torch.

Nothing else decides by a model's name: code asks for its properties, and models.registry maps the entries to classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """A model as users name it, and its properties."""

    name: str
    title: str
    masked: bool = False
    """It sees both directions and learns to fill in masked items; what it recommends stands in place of a mask at the
    end of a history. The others see what came before, and learn the item that follows every token."""

    feed_forward: int
    """Weights of a block beside attention's, in units of 2 D^2: what the planner counts time by."""

    @property
    def follows(self) -> int:
        """Items at the end of a training sequence that are targets only: the one that follows the last token."""
        return 0 if self.masked else 1


SASREC = ModelKind(name="sasrec", title="causal self-attention, learns the next item", feed_forward=1)
BERT4REC = ModelKind(
    name="bert4rec", title="bidirectional self-attention, learns masked items", masked=True, feed_forward=4
)
ESASREC = ModelKind(name="esasrec", title="SASRec with gated LiGR blocks", feed_forward=7)

MODEL_KINDS: Mapping[str, ModelKind] = MappingProxyType({kind.name: kind for kind in (SASREC, BERT4REC, ESASREC)})
"""By name, in the order in which they are listed."""

DEFAULT_MODEL = SASREC.name
"""The model that is built where nobody names one."""

MASK_SHARE = 0.2
"""The share of a sequence's items that is masked where nobody says otherwise: the paper's for MovieLens."""


FLOAT_ERROR = 1e-3
"""More than the products of `most_masked` can be off."""


def masked_items(length: int, share: float) -> int:
    """Return how many items of a sequence are masked: the share of its length, rounded, and one at least."""
    return max(1, min(length, floor(share * length + 0.5)))


def most_masked(tokens: int, sequences: int, seq_len: int, share: float) -> int:
    """Return the masked items that no pass of so many tokens and sequences exceeds.

    Three bounds, of which the smallest counts: all tokens; every sequence full, which is exact where all are; and the
    share of the tokens with what rounding adds, at most 1/2 a sequence, or 1 - share where one token is masked of a
    single one.
    """
    rounded = floor(share * tokens + sequences * max(0.5, 1 - share) + FLOAT_ERROR)
    return max(1, min(tokens, sequences * masked_items(seq_len, share), rounded))
