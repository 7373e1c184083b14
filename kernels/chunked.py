"""Cut cross-entropy and its sampled form in plain PyTorch, a chunk at a time: the signatures of the Triton kernels.

Shape letters: M tokens, V items, D hidden size, g tokens that share a set, ns negatives of a set,
T tokens of a chunk (softmax), S sets of a chunk (sampled).

Forward computes the gradients beside the loss while a chunk's probabilities are at hand (three matrix products instead
of the four of a recomputing backward); backward only multiplies them by the incoming scalar. With reduction "none" the
weights are not known before backward, which then runs the chunks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from srsplan.kernels import chunking
from srsplan.kernels.eager import IGNORE_INDEX, Reduction
from srsplan.kernels.samplers.alias import Distribution, InBatch
from srsplan.kernels.samplers.sampling import Sampling, correction, draw_items, given_or_drawn


def cce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy over the whole catalog without [M, V] in memory; equal to `ce` to rounding.

    Arguments and result are those of `eager.ce`. `compute_dtype` is that of the matrix products; None takes autocast's
    where it is on, else `hidden`'s. Gradients accumulate in fp32.

    Memory above the inputs: two [T, V] buffers in the compute type, one [V, D] gradient in fp32, the gradient of
    `hidden`, and in 16 bit a [V, D] copy of the table and one [65536, D] block. Never [M, V].
    """
    catalog = item_table.shape[0]
    compute_dtype = compute_dtype or _autocast_dtype(hidden)

    def run(tokens: _Tokens, weights: Tensor | None) -> _Outcome:
        return _softmax_chunks(tokens, item_table.detach(), weights, compute_dtype)

    chunk = chunking.softmax_chunk_tokens(max(1, targets.shape[0]), catalog)
    return _chunked_loss(hidden, item_table, _Tokens(hidden.detach(), targets, ignore_index, chunk), run, reduction)


def cce_neg(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    distribution: Distribution | InBatch | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy of the target against `negatives` drawn items, without [M, ns, D] or [M, ns] in memory.

    Arguments and result are those of `eager.ce_neg`, and so are the numbers for equal negatives. An int draws
    `negatives` uniform items per set of `sampling.tokens_per_set` tokens; a tensor gives them, int64 [sets, ns], and
    then its rows say how many sets there are (M rows: a set for every token). `distribution` draws by weight, or from
    the batch's own targets (kernels.alias).

    Memory above the inputs: per chunk the gathered rows [S, ns, D] (fp32, and a copy in 16 bit), [S, g, ns] logits and
    probabilities; one [V, D] gradient in fp32 and the gradient of `hidden`. No copy of the table.
    """
    given_or_drawn(negatives, distribution)
    compute_dtype = compute_dtype or _autocast_dtype(hidden)
    count = targets.shape[0]
    if isinstance(negatives, Tensor):
        sets, per_set = negatives.shape
        group = -(-count // max(1, sets))
    else:
        group, per_set = sampling.tokens_per_set, negatives

    def run(tokens: _Tokens, weights: Tensor | None) -> _Outcome:
        draw = _Draw(negatives, group, sampling, compute_dtype, distribution)
        return _sampled_chunks(tokens, item_table.detach(), weights, draw)

    chunk = chunking.sampled_chunk_sets(max(1, count), per_set, item_table.shape[1], max(1, group))
    return _chunked_loss(hidden, item_table, _Tokens(hidden.detach(), targets, ignore_index, chunk), run, reduction)


@dataclass(frozen=True)
class _Tokens:
    """What a chunked loss runs over: hidden [M, D], targets [M], how ignored ones are marked, the chunk size."""

    hidden: Tensor
    targets: Tensor
    ignore_index: int
    chunk: int

    @property
    def keep(self) -> Tensor:
        return self.targets != self.ignore_index

    @property
    def safe_targets(self) -> Tensor:
        return torch.where(self.keep, self.targets, 0)


@dataclass(frozen=True)
class _Outcome:
    """Losses fp32 [M], and, where weights were given, both gradients."""

    losses: Tensor
    grad_hidden: Tensor | None = None
    grad_table: Tensor | None = None


@dataclass(frozen=True)
class _Draw:
    """Where a sampled chunk gets its negatives."""

    negatives: int | Tensor
    group: int
    sampling: Sampling
    compute_dtype: torch.dtype
    distribution: Distribution | InBatch | None

    def sets(self, first: int, count: int, catalog: int, device: torch.device) -> Tensor:
        """int64 [count, ns]"""
        if isinstance(self.negatives, Tensor):
            return self.negatives[first : first + count]
        return draw_items((count, self.negatives), catalog, self.sampling, first, device, self.distribution)


_Run = Callable[[_Tokens, "Tensor | None"], _Outcome]


class _ChunkedLoss(torch.autograd.Function):
    """Autograd around a chunked run; the gradients come from forward, or for reduction "none" from backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, item_table: Tensor, tokens: _Tokens, run: _Run, weights: Tensor | None
    ) -> Tensor:
        outcome = _without_autocast(run, tokens, weights)
        ctx.tokens, ctx.run, ctx.weights = tokens, run, weights
        ctx.grads = (outcome.grad_hidden, outcome.grad_table)
        return outcome.losses if weights is None else outcome.losses * weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_table = ctx.grads
        ctx.grads = (None, None)
        if grad_hidden is None:  # reduction "none", or a second backward
            weights = grad_losses if ctx.weights is None else grad_losses * ctx.weights
            outcome = _without_autocast(ctx.run, ctx.tokens, torch.where(ctx.tokens.keep, weights, 0.0))
            return outcome.grad_hidden, outcome.grad_table, None, None, None
        if len(grad_losses):  # the gradient of a sum: one scalar for all
            grad_hidden.mul_(grad_losses[0])
            grad_table.mul_(grad_losses[0])
        return grad_hidden, grad_table, None, None, None


def _chunked_loss(hidden: Tensor, item_table: Tensor, tokens: _Tokens, run: _Run, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction!r} is none of mean, sum, none")
    keep = tokens.keep
    grad = torch.is_grad_enabled() and (hidden.requires_grad or item_table.requires_grad)
    weights = keep.float()
    if reduction == "mean":
        weights = weights / keep.sum().clamp(min=1)
    in_forward = weights if grad and reduction != "none" else None
    losses: Tensor = _ChunkedLoss.apply(hidden, item_table, tokens, run, in_forward)
    if reduction == "none":
        return torch.where(keep, losses, 0.0)
    return losses.sum() if in_forward is not None else (losses * weights).sum()


def _without_autocast(run: _Run, tokens: _Tokens, weights: Tensor | None) -> _Outcome:
    """Types are chosen here by `compute_dtype`; autocast must not change them once more."""
    kind = tokens.hidden.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return run(tokens, weights)
    with torch.autocast(kind, enabled=False):
        return run(tokens, weights)


def _autocast_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _softmax_chunks(tokens: _Tokens, table: Tensor, weights: Tensor | None, dtype: torch.dtype) -> _Outcome:
    """Losses [M], and with weights [M] the gradients of their weighted sum."""
    count, chunk = tokens.hidden.shape[0], tokens.chunk
    catalog = table.shape[0]
    scored = table.to(dtype)
    losses = torch.empty(count, dtype=torch.float32, device=table.device)
    logits, shares = (torch.empty(min(chunk, count), catalog, dtype=dtype, device=table.device) for _ in range(2))
    sums = None if weights is None else _GradientSums(tokens.hidden, table, weights)
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        size = rows.stop - start
        losses[rows] = _softmax_chunk(tokens, rows, scored, (logits[:size], shares[:size]), sums)
    return _Outcome(losses) if sums is None else _Outcome(losses, sums.hidden, sums.table)


def _softmax_chunk(
    tokens: _Tokens, rows: slice, scored: Tensor, buffers: tuple[Tensor, Tensor], sums: _GradientSums | None
) -> Tensor:
    """Losses of some rows, fp32 [T]; their gradients go to `sums`. Buffers: two [T, V] in the compute type."""
    scores, share = buffers
    hidden = tokens.hidden[rows].to(scored.dtype)
    target = tokens.safe_targets[rows, None]
    torch.mm(hidden, scored.t(), out=scores)
    torch.softmax(scores, 1, out=share)
    # log-sum-exp from the largest entry: its share is at least 1 / V, so that its logarithm is safe in 16 bit
    largest, at = scores.max(1, keepdim=True)
    log_sum_exp = largest.float() - share.gather(1, at).float().log()
    losses = log_sum_exp - scores.gather(1, target).float()
    if sums is not None:
        share.scatter_add_(1, target, torch.full_like(target, -1, dtype=scored.dtype))
        sums.add_softmax(rows, share, hidden, scored)
    return losses.squeeze(1)


class _GradientSums:
    """Both gradients while chunks are added; fp32 for the table, `hidden`'s type for hidden.

    Weights are split into a scale and relative weights up to 1: a mean over a million tokens would underflow in fp16.
    """

    def __init__(self, hidden: Tensor, table: Tensor, weights: Tensor) -> None:
        self.hidden = torch.empty_like(hidden)
        self.table = torch.zeros_like(table, dtype=torch.float32)
        self.scale = weights.abs().max() if len(weights) else weights.sum()
        self.relative = weights / self.scale.clamp(min=torch.finfo(torch.float32).tiny)

    def add_softmax(self, rows: slice, share: Tensor, hidden: Tensor, scored: Tensor) -> None:
        """share [T, V] is softmax minus one-hot; hidden [T, D]; scored [V, D], all in the compute type."""
        relative = self.relative[rows, None]
        self.hidden[rows] = (share @ scored) * (relative * self.scale)
        weighted = hidden * relative.to(hidden.dtype)
        if hidden.dtype == torch.float32:
            self.table.addmm_(share.t(), weighted.mul_(self.scale))
            return
        for first in range(0, len(self.table), chunking.ITEM_ROWS):
            block = slice(first, first + chunking.ITEM_ROWS)
            self.table[block] += (share[:, block].t() @ weighted) * self.scale

    def add_rows(self, items: Tensor, rows: Tensor) -> None:
        """Add rows [..., D] to the gradient of their items [...]."""
        self.table.index_add_(0, items.reshape(-1), rows.reshape(-1, rows.shape[-1]).float())


def _sampled_chunks(tokens: _Tokens, table: Tensor, weights: Tensor | None, draw: _Draw) -> _Outcome:
    """Losses [M], and with weights [M] the gradients of their weighted sum.

    Token n = j * sets + k is member j of set k: hidden seen as [g, sets, D], padded where M is no multiple of sets.
    """
    count, dim = tokens.hidden.shape
    sets = chunking.set_count(count, draw.group) if count else 0
    padding = sets * draw.group - count
    hidden = F.pad(tokens.hidden, (0, 0, 0, padding)).view(draw.group, sets, dim)
    targets = F.pad(tokens.safe_targets, (0, padding)).view(draw.group, sets)
    sums = None
    if weights is not None:
        sums = _GradientSums(hidden.view(-1, dim), table, F.pad(weights, (0, padding)))
    losses = torch.empty(draw.group, sets, dtype=torch.float32, device=table.device)
    for start in range(0, sets, tokens.chunk):
        part = slice(start, min(start + tokens.chunk, sets))
        items = draw.sets(start, part.stop - start, len(table), table.device)
        _sampled_chunk(_SetChunk(hidden, targets, losses, part), table, items, sums, draw)
    losses = losses.view(-1)[:count]
    return _Outcome(losses) if sums is None else _Outcome(losses, sums.hidden[:count], sums.table)


@dataclass(frozen=True)
class _SetChunk:
    """Some sets of a batch: hidden [g, sets, D], targets and losses [g, sets], and which sets."""

    hidden: Tensor
    targets: Tensor
    losses: Tensor
    part: slice


def _sampled_chunk(chunk: _SetChunk, table: Tensor, items: Tensor, sums: _GradientSums | None, draw: _Draw) -> None:
    """Score one chunk: items [S, ns], its rows of losses and, where asked, of the gradients are filled in."""
    dtype, part = draw.compute_dtype, chunk.part
    hidden = chunk.hidden[:, part].transpose(0, 1).to(dtype)  # [S, g, D]
    target = chunk.targets[:, part].t()  # [S, g]
    negative, positive = table[items].to(dtype), table[target].to(dtype)  # [S, ns, D], [S, g, D]
    positive_logit = (hidden * positive).sum(-1, dtype=torch.float32)
    logits = torch.bmm(hidden, negative.transpose(1, 2)).float()  # [S, g, ns]
    collision = items[:, None, :] == target[:, :, None]
    if draw.sampling.log_q:
        kept = items.shape[1] - collision.sum(2, keepdim=True)
        logits += correction(items[:, None, :], target[..., None], kept, len(table), draw.distribution)
    logits.masked_fill_(collision, -torch.inf)
    log_sum_exp = torch.logaddexp(torch.logsumexp(logits, 2), positive_logit)
    chunk.losses[:, part] = (log_sum_exp - positive_logit).t()
    if sums is None:
        return
    shape = chunk.targets.shape
    relative = sums.relative.view(shape)[:, part].t()[..., None]  # [S, g, 1]
    share = logits.sub_(log_sum_exp[..., None]).exp_().to(dtype)  # [S, g, ns]
    surplus = (positive_logit - log_sum_exp).exp_().sub_(1)[..., None]  # [S, g, 1]
    grad = torch.bmm(share, negative).float() + surplus * positive
    sums.hidden.view(*shape, -1)[:, part] = (grad * (relative * sums.scale)).transpose(0, 1).to(sums.hidden.dtype)
    weighted = hidden * relative.to(dtype)
    sums.add_rows(items, torch.bmm(share.transpose(1, 2), weighted).float().mul_(sums.scale))
    sums.add_rows(target, (weighted * surplus).float() * sums.scale)
