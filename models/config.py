"""What is trained: one frozen configuration that passes through every layer. Imports nothing heavy.

Every impossible combination is refused here, at construction, with the rule and the values in the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from srsplan.kernels.losses import LOSSES, SAMPLERS, Loss, Sampler
from srsplan.models.errors import InputError

Precision = Literal["fp32", "fp16", "bf16"]

LARGEST_CATALOG = 100_000_000
LARGEST_DIM = 4096


def require_positive(**values: object) -> None:
    """InputError unless every value is an int above zero."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} {value!r} is not a whole number above zero", f"give {name} a positive size")


def reject_unknown_keys(document: Mapping[str, Any], known: list[str], where: str) -> None:
    """InputError naming the first key that is not known, with the nearest one that is."""
    for key in document:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(known)}"
            raise InputError(f"unknown key {key!r} in the {where}", hint)


def find_loss(name: str) -> Loss:
    """The loss of that name; InputError with the nearest name otherwise."""
    if name in LOSSES:
        return LOSSES[name]
    near = get_close_matches(name.lower(), LOSSES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown loss {name!r}", f"{hint}losses are {', '.join(LOSSES)}")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """SASRec's sizes; defaults are the paper's."""

    dim: int = 256
    """Hidden size D."""
    blocks: int = 2
    """Transformer blocks."""
    heads: int = 2
    """Attention heads; must divide `dim`."""
    dropout: float = 0.1
    """Dropout probability, the same everywhere."""

    def __post_init__(self) -> None:
        require_positive(dim=self.dim, blocks=self.blocks, heads=self.heads)
        if self.dim > LARGEST_DIM:
            raise InputError(f"dim {self.dim} is above {LARGEST_DIM}", "give a hidden size such as 256")
        if self.dim % 8:
            raise InputError(f"dim {self.dim} is not a multiple of 8", f"use {self.dim // 8 * 8 + 8}")
        if self.dim % self.heads or (self.dim // self.heads) % 8:
            raise InputError(
                f"heads {self.heads} do not cut dim {self.dim} into multiples of 8",
                "fused attention wants dim / heads to be a multiple of 8",
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout} is outside [0, 1)", "the paper's is 0.1")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One training configuration: what a plan chooses, a probe measures and `train` runs."""

    loss: str
    """A key of LOSSES."""
    catalog: int
    """Number of items V."""
    batch_size: int
    """Sequences per step."""
    seq_len: int
    """Inputs per sequence, padding included."""
    negatives: int | None = None
    """Negatives per set; None for a full softmax."""
    tokens_per_set: int = 1
    """Tokens that share one set of negatives; 1 = independent negatives."""
    sampler: Sampler = "uniform"
    """How negatives are drawn: uniformly, by the popularity of items, or from the targets of the same (micro-)batch."""
    valid_tokens: int | None = None
    """Targets that are not padding in the fullest (micro-)batch; None = no padding, the worst case."""
    architecture: Architecture = Architecture()
    """The model's sizes."""
    precision: Precision = "fp16"
    """fp32, or mixed precision: fp16 with loss scaling, bf16 without."""
    micro_batches: int = 1
    """Parts that a batch is cut into; their gradients accumulate, so that the step is that of the whole batch."""
    recompute: bool = False
    """Activation checkpointing: a block keeps its input only, and runs forward once more in backward."""

    def __post_init__(self) -> None:
        loss = find_loss(self.loss)
        require_positive(
            catalog=self.catalog, batch_size=self.batch_size, seq_len=self.seq_len, micro_batches=self.micro_batches
        )
        if self.micro_batches > self.batch_size:
            raise InputError(
                f"micro_batches {self.micro_batches} are more than the batch_size {self.batch_size}",
                "a part holds one sequence at least",
            )
        if not isinstance(self.recompute, bool):
            raise InputError(f"recompute {self.recompute!r} is neither true nor false", "say true or false")
        if not 2 <= self.catalog <= LARGEST_CATALOG:
            raise InputError(f"catalog {self.catalog} is outside 2..{LARGEST_CATALOG}", "count the distinct items")
        if self.precision not in ("fp32", "fp16", "bf16"):
            raise InputError(f"unknown precision {self.precision!r}", "precisions are fp32, fp16, bf16")
        self._check_negatives(loss)
        if self.valid_tokens is not None and not 1 <= self.valid_tokens <= self.tokens:
            raise InputError(
                f"valid_tokens {self.valid_tokens} is outside 1..{self.tokens} (micro-batch x seq_len)",
                "leave it out for the worst case, no padding",
            )

    def _check_negatives(self, loss: Loss) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"unknown sampler {self.sampler!r}", f"samplers are {', '.join(SAMPLERS)}")
        if self.sampler not in loss.samplers:
            able = ", ".join(each.name for each in LOSSES.values() if self.sampler in each.samplers)
            raise InputError(f"{loss.name!r} does not draw negatives by {self.sampler!r}", f"losses that do are {able}")
        if not loss.sampled:
            if self.negatives is not None:
                raise InputError(
                    f"{loss.name!r} scores the whole catalog: negatives {self.negatives} mean nothing",
                    f"leave negatives out, or use {loss.counterpart}",
                )
            return
        if self.negatives is None:
            raise InputError(f"{loss.name!r} is a sampled loss and needs a number of negatives", "--negatives 512")
        require_positive(negatives=self.negatives, tokens_per_set=self.tokens_per_set)
        if loss.fixed_negatives not in (None, self.negatives):
            raise InputError(
                f"{loss.name!r} takes {loss.fixed_negatives} negative, not {self.negatives}",
                "use ce- or cce- for more",
            )
        if self.negatives >= self.catalog:
            raise InputError(
                f"negatives {self.negatives} are not fewer than the catalog's {self.catalog} items",
                f"use fewer negatives, or the full softmax {loss.counterpart}",
            )
        if self.tokens_per_set != 1 and not loss.shares_negatives:
            raise InputError(
                f"{loss.name!r} draws negatives for every token: tokens_per_set {self.tokens_per_set} is not possible",
                "use cce-",
            )

    @property
    def micro_batch_size(self) -> int:
        """B: sequences that go through the model at once."""
        return -(-self.batch_size // self.micro_batches)

    @property
    def tokens(self) -> int:
        """N = micro_batch_size x seq_len, padding included."""
        return self.micro_batch_size * self.seq_len

    @property
    def fullest_tokens(self) -> int:
        """M: valid targets of the fullest (micro-)batch, N where nothing is known."""
        return self.tokens if self.valid_tokens is None else self.valid_tokens

    @property
    def table_bytes(self) -> int:
        """S: one fp32 copy of the item table."""
        return 4 * self.catalog * self.architecture.dim

    @property
    def balance(self) -> int:
        """min(batch_size, negatives), the rule that ranks first; a full softmax has `catalog` negatives."""
        return min(self.batch_size, self.negatives or self.catalog)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Configuration:
        """The inverse of `to_dict`; unknown keys are an InputError with a suggestion."""
        values = dict(document)
        reject_unknown_keys(values, [f.name for f in fields(cls)], "configuration")
        sizes = values.pop("architecture", {})
        reject_unknown_keys(sizes, [f.name for f in fields(Architecture)], "architecture")
        return cls(architecture=Architecture(**sizes), **values)
