"""Progress of a run: a checkpoint keeps it beside the tensors, and early stopping counts with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, Field

from srsplan.models.schema import Seconds

Whole = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(kw_only=True)
class Progress:
    """The state of the training loop that a checkpoint keeps."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: Whole = 0
    """Epochs that are done."""
    best_epoch: Whole = 0
    """The epoch of the best validation NDCG@10 so far; 0 before the first evaluation."""
    best: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """The best validation NDCG@10 so far; -1 before the first evaluation."""
    stale: Whole = 0
    """Evaluations since the best one."""
    seconds: list[Seconds] = field(default_factory=list)
    """Seconds that the steps of each epoch took, evaluation excluded."""
    steps: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Optimizer steps that are done."""
    pass_tokens: Annotated[int, Field(ge=1, lt=2**63)] = 1
    """Tokens of a pass at most: fewer than asked for where the GPU ran out of memory."""
    evaluation_batch: Whole = 0
    """Users ranked at once, fewer than asked for where the GPU ran out of memory."""

    def improves(self, score: float) -> bool:
        """Count one evaluation of the present epoch; True where its score is the best so far (early stopping)."""
        self.stale += 1
        if not score > self.best:
            return False
        self.best, self.best_epoch, self.stale = score, self.epoch, 0
        return True

    @property
    def mean_epoch_seconds(self) -> float:
        """The mean over the epochs that are done, evaluation excluded."""
        return sum(self.seconds) / max(1, len(self.seconds))

    @property
    def mean_step_seconds(self) -> float:
        """The mean over the steps that are done."""
        return sum(self.seconds) / max(1, self.steps)
