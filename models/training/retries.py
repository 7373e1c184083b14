"""Retries: where the GPU runs out of memory, the same work is done again in smaller pieces.

A step is repeated in smaller passes, whose gradients accumulate, so the model that is trained is the same. An
evaluation is repeated with fewer users at once. Only where nothing can be cut any more does the error end the training,
as a DeviceOutOfMemory with the measured bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from srsplan.models.config import Configuration
from srsplan.models.data.batches import Batch, passes
from srsplan.models.errors import DeviceOutOfMemory
from srsplan.models.training.callbacks import Callbacks
from srsplan.models.training.inputs import step_inputs, targets_of
from srsplan.models.training.progress import Progress
from srsplan.models.training.step import TrainingStep

T = TypeVar("T")

ADAM_STATE = frozenset({"step", "exp_avg", "exp_avg_sq"})
"""torch.optim.Adam and AdamW keep these for each parameter once they have taken a step."""


def train_batch(step: TrainingStep, batch: Batch, progress: Progress, callbacks: Callbacks) -> Tensor:
    """Take one optimizer step on the batch, in smaller passes where the GPU's memory runs out; return the mean loss."""
    configuration, device = step.configuration, step.device
    while True:
        tokens = max(progress.pass_tokens, batch.longest)  # passes may have become smaller than this batch's longest
        cut = list(passes(batch, tokens, configuration.sequences))
        try:
            targets = targets_of(batch, device) if configuration.draws_from_batch else None
            inputs = (step_inputs(each, device) for each in cut)
            return step.run_passes(inputs, len(batch.targets), targets, draw=batch.draw)
        except torch.cuda.OutOfMemoryError:
            fullest = max(len(each.items) for each in cut)
            if fullest <= batch.longest:
                raise
        release(step.optimizer)
        step.break_off()
        progress.pass_tokens = max(batch.longest, fullest // 2)
        callbacks.on_out_of_memory(
            f"the GPU ran out of memory: from here on a pass has {progress.pass_tokens:,} tokens at most, at the same "
            f"batch size {configuration.batch_size:,}: gradients accumulate"
        )


def with_fewer_users(work: Callable[[int], T], progress: Progress, callbacks: Callbacks) -> T:
    """Call `work` with the number of users to rank at once; half as many where the GPU runs out of memory."""
    while True:
        try:
            return work(progress.evaluation_batch)
        except torch.cuda.OutOfMemoryError:
            if progress.evaluation_batch == 1:
                raise
        release()
        progress.evaluation_batch //= 2
        callbacks.on_out_of_memory(
            f"the GPU ran out of memory in evaluation: {progress.evaluation_batch} users at once from here on"
        )


def release(optimizer: torch.optim.Optimizer | None = None) -> None:
    """Free what a failed attempt left behind: gradients, half-made optimizer state, the allocator's cached blocks."""
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        drop_incomplete_state(optimizer)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def drop_incomplete_state(optimizer: torch.optim.Optimizer) -> None:
    """Remove the state of parameters whose moments were not all allocated.

    Adam fills a parameter's state one tensor after the other. Where memory runs out between them, torch keeps what it
    has, takes it for a complete state in the next step, and fails with a KeyError.
    """
    for parameter in [key for key, state in optimizer.state.items() if ADAM_STATE - state.keys()]:
        del optimizer.state[parameter]


@contextmanager
def out_of_memory_explained(configuration: Configuration) -> Iterator[None]:
    """Translate CUDA's out-of-memory error into DeviceOutOfMemory, with the measured bytes."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        raise DeviceOutOfMemory(
            f"the GPU ran out of memory: {allocated:,} bytes allocated and {reserved:,} reserved at the peak, with "
            f"batch size {configuration.batch_size}, sequence length {configuration.seq_len} and negatives "
            f"{configuration.negatives}",
            "plan again with a smaller --budget, or take a smaller --seq-len or --dim, and start anew with --overwrite",
        ) from error
