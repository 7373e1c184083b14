"""The logit below which a token's negatives leave its sum, for the Triton kernels: adaptive sampling.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set, g places of a set, S sets of a chunk.

Memory contract. The thresholds, fp32 [M]; while they are made the logits of a chunk of sets, fp32 [S, g, ns], with 12
bytes a place beside them, fp32 [sets, g] twice, and with `copy_table` a copy of the table in hidden's type. Never
[M, ns].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.launches.table import Launch
from srsplan.kernels.sampled_softmax import kernel as kernels
from srsplan.kernels.sampled_softmax.operators import Numbers, _Call
from srsplan.kernels.samplers.hardest import lowered, place_of_last
from srsplan.kernels.samplers.kind import SamplerKind

Fill = Callable[[Tensor, Tensor, int], None]
"""Stores the logits of consecutive sets in [S, g, ns]; takes the table that is read, and the first set's number."""


def for_scores(launch: Launch) -> Launch:
    """Return the launch of `sampled_scores`: forward's, one stage less, whose room the scores take that are stored."""
    return replace(launch, num_stages=max(1, launch.num_stages - 1))


@torch.library.custom_op("srsplan::sampled_thresholds", mutates_args=())
def sampled_thresholds(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    sampler: int,
    source: list[Tensor],
    numbers: list[int],
    seed: Tensor | None,
    step: Tensor | None,
    copy_table: bool,
    kept: int,
) -> Tensor:
    """Return a threshold for every token, fp32 [M], that leaves it the `kept` highest logits; the rest is as for
    `sampled_softmax`."""
    parts = Numbers(*numbers)

    def fill(scores: Tensor, table: Tensor, first_set: int) -> None:
        part = parts._replace(first_set=first_set, sets=len(scores))
        call = _Call(hidden, item_table, targets, SamplerKind(sampler), source, part, (seed, step))
        launch = for_scores(call.launch("sampled_forward", lambda _: None, table, log_q=False)[0])
        kernels.sampled_scores[call.grid(launch)](
            hidden, table, targets, scores, *call.arguments, **call.options(launch, log_q=False)
        )

    with torch.cuda.device_of(hidden):
        return _thresholds(hidden, item_table, parts, copy_table, kept, fill)


@sampled_thresholds.register_fake
def sampled_thresholds_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, sampler: int, source: list[Tensor], numbers: list[int],
    seed: Tensor | None, step: Tensor | None, copy_table: bool, kept: int,
) -> Tensor:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    return _thresholds(hidden, item_table, Numbers(*numbers), copy_table, kept, lambda *_: None)


def _thresholds(
    hidden: Tensor, item_table: Tensor, numbers: Numbers, copy_table: bool, kept: int, fill: Fill
) -> Tensor:
    sets, group, negatives = numbers.sets, numbers.group, numbers.negatives
    by_set = hidden.new_empty((sets, group), dtype=torch.float32)
    if not len(hidden):
        return by_set.new_empty(0)
    table = item_table.to(hidden.dtype) if copy_table else item_table
    chunk = chunking.sampled_chunk_sets(len(hidden), negatives, hidden.shape[1], group)
    scores = hidden.new_empty((chunk, group, negatives), dtype=torch.float32)
    least = scores.new_empty((chunk, group, 1)), scores.new_empty((chunk, group, 1), dtype=torch.int64)
    for start in chunking.chunk_starts(sets, chunk, hidden.is_meta):
        part, buffers = scores[: sets - start], (least[0][: sets - start], least[1][: sets - start])
        fill(part, table, numbers.first_set + start)
        torch.kthvalue(part, place_of_last(negatives, kept), -1, keepdim=True, out=buffers)
        by_set[start : start + chunk] = buffers[0].squeeze(-1)
    del table, scores, part, least, buffers
    return lowered(by_set).view(-1)[_places(numbers, len(hidden), hidden.device)]


def _places(numbers: Numbers, tokens: int, device: torch.device) -> Tensor:
    """Return where the tokens of a call stand in [sets, g], int64 [M]."""
    token = torch.arange(numbers.first_token, numbers.first_token + tokens, device=device)
    window = numbers.stride * numbers.group
    sets = (token // window).mul_(numbers.stride).add_(token % numbers.stride).sub_(numbers.first_set)
    place = token.remainder_(window).div_(numbers.stride, rounding_mode="floor")
    return sets.mul_(numbers.group).add_(place)
