"""The registry of losses: what each is called and what it can do. Does not import torch.

Nothing else decides by a loss's name: code asks for its properties, and kernels.dispatch maps the entries to functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Sampler = Literal["uniform", "popularity", "in-batch", "mixed", "adaptive", "adaptive-mixed"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
MIXED: frozenset[Sampler] = frozenset({"mixed", "adaptive-mixed"})
"""The samplers of which a part comes from the batch: they take the option `in_batch_share`."""
FROM_BATCH: frozenset[Sampler] = MIXED | {"in-batch"}
"""The samplers that draw from the targets of the batch, in whole or in part."""
ADAPTIVE: frozenset[Sampler] = frozenset({"adaptive", "adaptive-mixed"})
"""The samplers that draw `candidates`, of which every token keeps the hardest."""
CANDIDATES = 4
"""Candidates of a negative that is kept, where nobody gives a number."""
IN_BATCH_SHARE = 0.5
"""The share of a set's negatives that `mixed` draws from the batch where nobody gives one."""

Kernel = Literal["chunked", "triton"]
"""The implementations of a chunked loss: plain PyTorch, and Triton. The other losses have one, the eager form."""

EAGER, CHUNKED, TRITON = "eager PyTorch", "chunked PyTorch", "Triton"
"""The implementations as they are printed."""

TOKENS_PER_SET = 32
"""Tokens that share one set of negatives where nobody says otherwise: as good as sets of their own (docs, losses)."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss as users name it, and its properties."""

    name: str
    title: str
    sampled: bool
    """It scores `negatives` drawn items instead of the whole catalog."""
    chunked: bool
    """It never holds all logits at once: its memory has a term per chunk instead of one per token."""
    counterpart: str
    """Name of the same form with negatives where this one scores the whole catalog, and without where it samples."""
    shares_negatives: bool = False
    """`tokens_per_set` tokens may share one set of negatives."""
    samplers: tuple[Sampler, ...] = ("uniform",)
    """The ways in which its negatives may be drawn."""
    usual_negatives: int | None = None
    """The number of negatives where nobody gives one, and of every plan; None: plans look for the best one."""
    baseline: bool = False
    """It is there to compare with: a plan never puts it first."""
    on_request: bool = False
    """Plans and tables of all losses have it only where it is named."""
    bucketed: bool = False
    """It puts the tokens of a call into buckets: passes of a batch are not together what the whole batch is."""
    calibrated: bool = False
    """It takes the option `calibration`."""

    def implementation(self, kernel: Kernel) -> str:
        """Return the implementation that `kernel` means for this loss, as it is printed."""
        if not self.chunked:
            return EAGER
        return TRITON if kernel == "triton" else CHUNKED

    @property
    def default_tokens_per_set(self) -> int:
        """Tokens that share a set of negatives where nobody says otherwise; 1 for losses that cannot share."""
        return TOKENS_PER_SET if self.shares_negatives else 1


CE = Loss(
    name="ce",
    title="full softmax, all logits in memory",
    sampled=False,
    chunked=False,
    counterpart="ce-",
)
CE_NEG = Loss(
    name="ce-",
    title="sampled softmax, eager",
    sampled=True,
    chunked=False,
    counterpart="ce",
    samplers=SAMPLERS,
)
CCE = Loss(
    name="cce",
    title="full softmax in chunks",
    sampled=False,
    chunked=True,
    counterpart="cce-",
)
CCE_NEG = Loss(
    name="cce-",
    title="sampled softmax in chunks",
    sampled=True,
    chunked=True,
    counterpart="cce",
    shares_negatives=True,
    samplers=SAMPLERS,
)
BCE = Loss(
    name="bce",
    title="binary, SASRec's with one negative",
    sampled=True,
    chunked=False,
    counterpart="ce",
    usual_negatives=1,
    samplers=SAMPLERS,
    baseline=True,
)

GBCE = Loss(
    name="gbce",
    title="binary and calibrated, gSASRec's",
    sampled=True,
    chunked=False,
    counterpart="ce",
    samplers=SAMPLERS,
    baseline=True,
    on_request=True,
    calibrated=True,
)

SCE = Loss(
    name="sce",
    title="softmax over buckets of hard items",
    sampled=True,
    chunked=False,
    counterpart="cce",
    baseline=True,
    on_request=True,
    bucketed=True,
)

LOSSES: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in (CE, CE_NEG, CCE, CCE_NEG, BCE, GBCE, SCE)})
"""By name, in the order in which they are listed."""

PLANNED: tuple[str, ...] = tuple(name for name, loss in LOSSES.items() if not loss.on_request)
"""The losses that are looked at where nobody names one."""

CALIBRATION = 0.75
"""The calibration of `gbce` where nobody gives one: gSASRec's."""

DEFAULT_LOSS = CCE.name
"""The loss that `train` takes where nobody names one."""
