"""The training configuration: one frozen object that passes through every layer. Imports nothing heavy.

Every impossible combination is refused here, at construction, with the rule and the values in the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from srsplan.kernels.launches.sizes import refused_size
from srsplan.kernels.losses import ADAPTIVE, CANDIDATES, FROM_BATCH, LOSSES, MIXED, SAMPLERS, Kernel, Loss, Sampler
from srsplan.models.checks import find_loss, find_model, require_positive, require_share, shown_value
from srsplan.models.errors import InputError
from srsplan.models.kinds import DEFAULT_MODEL, MASK_SHARE, MODEL_KINDS, ModelKind, most_masked

if TYPE_CHECKING:
    from pydantic import BaseModel

Precision = Literal["fp32", "fp16", "bf16"]

LARGEST_HEAD = 256
"""FlashAttention's largest head size."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's sizes."""

    dim: int = 256
    """Hidden size D."""
    blocks: int = 2
    """Transformer blocks."""
    heads: int = 2
    """Attention heads; must divide `dim`."""
    dropout: float = 0.1
    """Dropout probability, the same at every place of the model."""

    def __post_init__(self) -> None:
        require_positive(dim=self.dim, blocks=self.blocks, heads=self.heads)
        if self.dim % 8:
            raise InputError(f"dim {self.dim} is not a multiple of 8", f"use {self.dim // 8 * 8 + 8}")
        if self.dim % self.heads or (self.dim // self.heads) % 8:
            raise InputError(
                f"heads {self.heads} do not cut dim {self.dim} into multiples of 8",
                "fused attention wants dim / heads to be a multiple of 8",
            )
        if self.dim // self.heads > LARGEST_HEAD:
            fewest = -(-self.dim // LARGEST_HEAD)
            heads = next(each for each in range(fewest, self.dim + 1) if self.dim % (8 * each) == 0)
            raise InputError(
                f"heads {self.heads} of dim {self.dim} are {self.dim // self.heads} wide, above {LARGEST_HEAD}",
                f"fused attention is not made for wider ones: give heads {heads}",
            )
        number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        if not number or not 0 <= self.dropout < 1:
            raise InputError(f"dropout {shown_value(self.dropout)} is outside [0, 1)", "0.1 is usual")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One training configuration: what a plan chooses, a probe measures and `train` runs."""

    loss: str
    """The name of a loss, a key of LOSSES."""
    catalog: int
    """Number of items V."""
    batch_size: int
    """Sequences per step."""
    seq_len: int
    """Items of a sequence that the model sees at most: the last ones."""
    negatives: int | None = None
    """Negatives per set, of sce the items of a bucket; None for a full softmax."""
    tokens_per_set: int = 1
    """Tokens that share one set of negatives; 1 = independent negatives."""
    sampler: Sampler = "uniform"
    """Source of the negatives: all items alike, items by popularity, the targets of the same batch, or both of these
    parts mixed; adaptive ones keep for each token the hardest of what is drawn so."""
    in_batch_share: float | None = None
    """Of mixed samplers, in [0, 1]: the share of a set's negatives that comes from the batch; None is a half."""
    candidates: int | None = None
    """Of adaptive samplers: items that a set draws, of which every token keeps `negatives`; None is four for each."""
    calibration: float | None = None
    """Of gbce, in [0, 1]: how much its scores are calibrated probabilities; None is gSASRec's 0.75."""
    model: str = DEFAULT_MODEL
    """The name of a model, a key of MODEL_KINDS."""
    mask_share: float | None = None
    """Share of a sequence's items that a masked model learns to fill in, `MASK_SHARE` where nobody says; None for the
    other models."""
    architecture: Architecture = Architecture()
    """The model's sizes."""
    precision: Precision = "fp16"
    """fp32, or mixed precision: fp16 with loss scaling, bf16 without."""
    pass_tokens: int | None = None
    """Tokens of a pass at most: a batch runs in as many passes as it takes, cut between sequences, and their gradients
    accumulate, so that the step is that of the whole batch. None runs every batch in one pass."""
    pass_sequences: int | None = None
    """Sequences of a pass at most; None sets no limit beside that of the tokens."""
    kernel: Kernel = "chunked"
    """The implementation of a chunked loss; the other losses have one form, whatever this says."""
    recompute: bool = False
    """Activation checkpointing: a block keeps its input only, and runs forward once more in backward."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is evaluated and kept as best in their place: one
    more copy of all weights. None keeps no average."""

    def __post_init__(self) -> None:
        loss = find_loss(self.loss)
        self._check_model()
        require_positive(catalog=self.catalog, batch_size=self.batch_size, seq_len=self.seq_len)
        self._check_passes()
        if not isinstance(self.recompute, bool):
            raise InputError(f"recompute {shown_value(self.recompute)} is neither true nor false", "say true or false")
        if self.catalog < 2:
            raise InputError(f"catalog {self.catalog} is below 2", "count the distinct items")
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise InputError(f"unknown precision {shown_value(self.precision)}", f"precisions are {known}")
        self._check_average()
        self._check_kernel(loss)
        self._check_sampler(loss)
        self._check_negatives(loss)
        self._check_candidates()
        self._check_calibration(loss)

    def _check_model(self) -> None:
        kind = find_model(self.model)
        if not kind.masked:
            if self.mask_share is not None:
                raise InputError(
                    f"{self.model!r} masks nothing: mask_share {shown_value(self.mask_share)} means nothing",
                    "leave it out, or use bert4rec",
                )
            return
        if self.mask_share is None:
            object.__setattr__(self, "mask_share", MASK_SHARE)
        share = self.mask_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"mask_share {shown_value(share)} is not above 0 and at most 1", f"{MASK_SHARE} is usual")
        if self.seq_len == 1:
            raise InputError("seq_len 1 has no room for a mask behind an item", "give seq_len 2 or more")

    def _check_average(self) -> None:
        number = isinstance(self.ema, int | float) and not isinstance(self.ema, bool)
        if self.ema is not None and not (number and 0 < self.ema < 1):
            raise InputError(f"ema {shown_value(self.ema)} is no decay between 0 and 1", "0.999 is usual")

    def _check_kernel(self, loss: Loss) -> None:
        if self.kernel not in get_args(Kernel):
            raise InputError(f"unknown kernel {shown_value(self.kernel)}", f"kernels are {', '.join(get_args(Kernel))}")
        if self.kernel != "triton":
            return
        if not loss.chunked:
            having = " and ".join(each.name for each in LOSSES.values() if each.chunked)
            raise InputError(f"{loss.name!r} has no Triton kernel: {having} have", "leave the kernel out")
        if reason := refused_size(self.architecture.dim, self.precision == "fp32"):
            raise InputError(f"{reason}: the Triton kernels do not take it", "the chunked form takes any")

    def _check_passes(self) -> None:
        if self.pass_sequences is not None:
            require_positive(pass_sequences=self.pass_sequences)
        if self.pass_tokens is None:
            return
        require_positive(pass_tokens=self.pass_tokens)
        if self.pass_tokens < self.seq_len:
            raise InputError(
                f"pass_tokens {self.pass_tokens} is smaller than one sequence of seq_len {self.seq_len}",
                "a batch is cut between sequences: give more pass_tokens, or a smaller seq_len",
            )

    def _check_sampler(self, loss: Loss) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"unknown sampler {shown_value(self.sampler)}", f"samplers are {', '.join(SAMPLERS)}")
        if self.sampler not in loss.samplers:
            able = ", ".join(each.name for each in LOSSES.values() if self.sampler in each.samplers)
            raise InputError(f"{loss.name!r} does not draw negatives by {self.sampler!r}", f"losses that do are {able}")

        if self.in_batch_share is None:
            return
        if self.sampler not in MIXED:
            raise InputError(
                f"{self.sampler!r} mixes nothing: in_batch_share {shown_value(self.in_batch_share)} means nothing",
                f"samplers that take it are {', '.join(sorted(MIXED))}",
            )
        require_share("in_batch_share", self.in_batch_share)

    def _check_negatives(self, loss: Loss) -> None:
        require_positive(tokens_per_set=self.tokens_per_set)
        if not loss.sampled:
            if self.negatives is not None:
                raise InputError(
                    f"{loss.name!r} scores the whole catalog: negatives {shown_value(self.negatives)} mean nothing",
                    f"leave negatives out, or use {loss.counterpart}",
                )
            return
        if self.negatives is None:
            raise InputError(f"{loss.name!r} is a sampled loss and needs a number of negatives", "--negatives 512")
        require_positive(negatives=self.negatives)
        if self.negatives >= self.catalog:
            raise InputError(
                f"negatives {shown_value(self.negatives)} are not fewer than the catalog's {self.catalog} items",
                f"use fewer negatives, or the full softmax {loss.counterpart}",
            )
        if self.tokens_per_set != 1 and not loss.shares_negatives:
            raise InputError(
                f"{loss.name!r} draws negatives for every token: tokens_per_set {self.tokens_per_set} is not possible",
                "use cce-",
            )

    def _check_candidates(self) -> None:
        if self.candidates is None:
            return
        if self.sampler not in ADAPTIVE:
            raise InputError(
                f"{self.sampler!r} keeps all that it draws: candidates {shown_value(self.candidates)} mean nothing",
                f"samplers that take them are {', '.join(sorted(ADAPTIVE))}",
            )
        require_positive(candidates=self.candidates)
        if self.candidates > self.catalog:
            raise InputError(
                f"candidates {shown_value(self.candidates)} are more than the catalog's {self.catalog} items",
                "use fewer candidates",
            )
        if self.candidates < (self.negatives or 0):
            raise InputError(
                f"candidates {self.candidates} are fewer than the {self.negatives} negatives that are kept of them",
                f"use more candidates, such as {CANDIDATES * (self.negatives or 0)}, or fewer negatives",
            )

    def _check_calibration(self, loss: Loss) -> None:
        if self.calibration is None:
            return
        if not loss.calibrated:
            able = ", ".join(each.name for each in LOSSES.values() if each.calibrated)
            raise InputError(
                f"{loss.name!r} takes no calibration: {shown_value(self.calibration)} means nothing",
                f"{able} takes one",
            )
        require_share("calibration", self.calibration)

    @property
    def batch_tokens(self) -> int:
        """Tokens that no batch exceeds: batch_size x seq_len, where every sequence is full."""
        return self.batch_size * self.seq_len

    @property
    def drawn_negatives(self) -> int | None:
        """Items that a set draws: the negatives, or the candidates among which adaptive samplers choose them."""
        if self.negatives is None or self.sampler not in ADAPTIVE:
            return self.negatives
        return self.candidates or min(CANDIDATES * self.negatives, self.catalog)

    @property
    def draws_from_batch(self) -> bool:
        """Tell whether negatives come from the targets of the whole batch, in whole or in part."""
        return self.sampler in FROM_BATCH

    @property
    def sequences(self) -> int:
        """B: sequences that no pass exceeds."""
        return min(self.pass_sequences or self.batch_size, self.batch_size, self.pass_tokens or self.batch_size)

    @property
    def tokens(self) -> int:
        """M: tokens that no pass exceeds."""
        return min(self.pass_tokens or self.batch_tokens, self.sequences * self.seq_len)

    @property
    def kind(self) -> ModelKind:
        """The model's entry in the registry."""
        return MODEL_KINDS[self.model]

    def targets_of(self, tokens: int, sequences: int) -> int:
        """Return the targets that no pass of so many tokens and sequences exceeds."""
        if self.mask_share is None:
            return tokens
        return most_masked(tokens, sequences, self.seq_len, self.mask_share)

    @property
    def targets(self) -> int:
        """T: targets that no pass exceeds. Every token has one, or the masked ones have."""
        return self.targets_of(self.tokens, self.sequences)

    @property
    def batch_targets(self) -> int:
        """Targets that no batch exceeds."""
        return self.targets_of(self.batch_tokens, self.batch_size)

    @property
    def several_passes(self) -> bool:
        """Tell whether a batch may take more than one pass."""
        return self.tokens < self.batch_tokens or self.sequences < self.batch_size

    @property
    def table_bytes(self) -> int:
        """S: one fp32 copy of the item table."""
        return 4 * self.catalog * self.architecture.dim

    @property
    def table_copies(self) -> int:
        """Tensors of the table's size that are always there: it, its gradient, Adam's moments, and its average."""
        return 4 if self.ema is None else 5

    @property
    def balance(self) -> int:
        """min(batch_size, negatives), the rule that ranks first; a full softmax has `catalog` negatives."""
        return min(self.batch_size, self.negatives or self.catalog)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration in plain types, for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Configuration:
        """Return the configuration of a document of `to_dict`; InputError names an unknown key or a wrong type."""
        from pydantic import ValidationError  # here, because planning from sizes reads no document

        from srsplan.models.schema import explained

        names = [field.name for part in (cls, Architecture) for field in fields(part)]
        try:
            found = _schema().model_validate(dict(document)).model_dump()
        except ValidationError as error:
            raise explained(error, "the configuration", names, "write it as srsplan does") from error
        return cls(**{**found, "architecture": Architecture(**found["architecture"])})


@cache
def _schema() -> type[BaseModel]:
    """Return the schema of a configuration's document, made once."""
    return _schema_of(Configuration)


def _schema_of(kind: type[Configuration] | type[Architecture]) -> type[BaseModel]:
    """Return a strict schema with the fields of a dataclass: no text for a number, and no true for 1."""
    from pydantic import ConfigDict, create_model

    columns: dict[str, Any] = {}
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        if hint is Architecture:
            nested = _schema_of(Architecture)
            columns[field.name] = (nested, nested())
        else:
            columns[field.name] = (hint, ... if field.default is MISSING else field.default)
    base: type[BaseModel] = create_model(kind.__name__, __config__=ConfigDict(strict=True, extra="forbid"), **columns)
    return base
