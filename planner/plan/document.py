"""The parts of a plan. An unknown key or another type is an error; a plan of an older srsplan lacks the newer parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from srsplan.kernels.losses import Kernel, Sampler
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.models.kinds import DEFAULT_MODEL
from srsplan.models.schema import Bytes, Count, Document

VERSION = 2

Difference = Annotated[int, Field(gt=-(2**63), lt=2**63)]
"""Bytes that may be negative: what is left of a budget, or what a step of a knob saves."""
Duration = Annotated[float, Field(ge=0, lt=1e30)]


class Part(Document, strict=True):
    """A part of a plan."""


class Inputs(Part):
    """The inputs that the plan was made from."""

    catalog: Count
    gpu: str
    gpu_title: str = ""
    gpu_is_given: bool = True
    """False where the card was assumed from the budget."""
    model: str = DEFAULT_MODEL
    mask_share: float | None = None
    """Of a masked model: the share of a sequence's items that it learns to fill in."""
    dim: Count = 256
    blocks: Count = 2
    heads: Count = 2
    dropout: float = 0.1
    precision: Precision = "fp16"
    ema: float | None = None
    """Decay of the weights' moving average, whose memory is planned; None keeps none."""
    data: str | None = None
    data_options: list[str] = Field(default_factory=list)
    """The data as options of `train`, columns and split included."""
    users: Count | None = None
    lengths: str = ""
    """Source of the number of tokens in a batch."""
    time: str = ""
    """The time that an epoch may take, where that was asked for."""
    order: str = ""
    """The rule that ordered the choices."""
    quality: str = ""
    """A sentence on how good that order is, and where the evidence for it ends."""
    notes: dict[str, str] = Field(default_factory=dict)
    """Sentences by label: what was done to the data, what a profile and a check found."""

    def architecture(self) -> Architecture:
        """Return the model's sizes; InputError for an impossible combination."""
        return Architecture(dim=self.dim, blocks=self.blocks, heads=self.heads, dropout=self.dropout)


class BudgetEntry(Part):
    """Bytes of the card that the plan may use."""

    bytes: Count
    usable_bytes: Count
    margin_bytes: Bytes
    context_bytes: Bytes
    context_basis: str = "assumed"
    """Source of the context's size."""
    fixed_floor_bytes: Bytes = 0
    """The item table, its gradient and Adam's moments: no knob of the search changes them."""
    counts: str = "reserved bytes of the caching allocator (expandable segments), CUDA context, margin"


class MemoryEntry(Part):
    """Predicted bytes; see profiler.memory.model.Memory."""

    allocated_bytes: Bytes
    reserved_bytes: Bytes
    evaluation_bytes: Bytes
    upper_bytes: Bytes
    basis: str


class ConfirmedEntry(Part):
    """The findings of `--check`; see planner.search.recommendation.Confirmed."""

    basis: str
    fits: bool
    allocated_bytes: Bytes
    reserved_bytes: Bytes
    retries: int | None


class ChoiceEntry(Part):
    """One configuration, as `train` runs it."""

    rank: Count
    loss: str
    batch_size: Count
    seq_len: Count
    negatives: Count | None
    tokens_per_set: Count = 1
    sampler: Sampler = "uniform"
    pass_tokens: Count
    """Tokens of a pass at most: a batch runs in as many passes as it takes, and memory is that of one."""
    pass_sequences: Count
    """Sequences of a pass at most."""
    passes: Count = 1
    """Passes of the mean batch."""
    kernel: Kernel = "chunked"
    """The implementation of a chunked loss that memory and times are for."""
    recompute: bool = False
    """Blocks run forward once more in backward."""
    eval_batch_size: Count
    memory: MemoryEntry
    breakdown_bytes: dict[str, Bytes]
    headroom_bytes: Difference
    step_ms: Duration
    step_basis: str
    step_tokens: Duration = 0.0
    """Tokens of the mean batch."""
    seconds_per_million_tokens: Duration = 0.0
    epoch_seconds: Duration | None
    why: str
    confirmed: ConfirmedEntry | None = None


class MissEntry(Part):
    """A configuration that does not fit."""

    loss: str
    batch_size: Count
    seq_len: Count
    negatives: Count | None
    pass_tokens: Count
    upper_bytes: Bytes
    over_bytes: Bytes


class PassEntry(Part):
    """The first choice in passes of another size; see planner.search.recommendation.PassCost."""

    pass_tokens: Count
    passes: Count
    upper_bytes: Bytes
    step_ms: Duration
    fits: bool


class KnobEntry(Part):
    """The change of the first choice's allocated peak when one knob is doubled or halved."""

    name: Literal["pass_tokens", "negatives"]
    change: str
    bytes: Difference


class LayoutEntry(Part):
    """One way to use several GPUs; see planner.several_gpus.Layout."""

    name: str
    per_gpu_batch: Count
    global_batch: Count
    reserved_bytes: Bytes
    upper_bytes: Bytes


class Plan(Part):
    """The whole plan. `choices` are in the order to try them, `next_command` trains the first."""

    version: Literal[2]
    srsplan: str
    """The version of srsplan that made it."""
    inputs: Inputs
    budget: BudgetEntry
    choices: list[ChoiceEntry]
    near_misses: list[MissEntry]
    passes: list[PassEntry] = Field(default_factory=list)
    knobs: list[KnobEntry] = Field(default_factory=list)
    binds: str = ""
    """Name of what limits the first choice."""
    several_gpus: list[LayoutEntry] = Field(default_factory=list)
    next_command: str

    def configuration(self, rank: int = 1) -> Configuration:
        """Return the configuration of a rank; InputError where the plan has none."""
        choice = self.choice(rank)
        return Configuration(
            loss=choice.loss,
            catalog=self.inputs.catalog,
            batch_size=choice.batch_size,
            seq_len=choice.seq_len,
            negatives=choice.negatives,
            tokens_per_set=choice.tokens_per_set,
            sampler=choice.sampler,
            pass_tokens=choice.pass_tokens,
            pass_sequences=choice.pass_sequences,
            kernel=choice.kernel,
            model=self.inputs.model,
            mask_share=self.inputs.mask_share,
            architecture=self.inputs.architecture(),
            precision=self.inputs.precision,
            recompute=choice.recompute,
            ema=self.inputs.ema,
        )

    def choice(self, rank: int = 1) -> ChoiceEntry:
        """Return the entry of a rank; InputError where the plan has none."""
        for choice in self.choices:
            if choice.rank == rank:
                return choice
        ranks = ", ".join(str(choice.rank) for choice in self.choices) or "none"
        raise InputError(f"--rank {rank}: the plan has no such choice", f"its ranks are {ranks}")


PARTS = (
    Plan,
    Inputs,
    BudgetEntry,
    ChoiceEntry,
    MemoryEntry,
    ConfirmedEntry,
    MissEntry,
    PassEntry,
    KnobEntry,
    LayoutEntry,
)
KNOWN_KEYS = tuple(name for part in PARTS for name in part.model_fields)
"""Every key that a plan may have, for suggestions."""
