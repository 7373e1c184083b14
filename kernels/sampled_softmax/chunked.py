"""The sampled softmax in plain PyTorch, a chunk of sets at a time.

Shape letters: M tokens, V items, D hidden size, g tokens that share a set, ns negatives of a set, S sets of a chunk.

Memory contract. Above the inputs, per chunk: the gathered rows [S, ns, D] (fp32, and a copy in 16 bit), [S, g, ns]
logits and probabilities; one [V, D] gradient in fp32 and the gradient of hidden. No copy of the table, never [M, ns].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.chunked_autograd import GradientSums, LossesAndGradients, Tokens
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.log_q import log_q_correction
from srsplan.kernels.samplers.sampling import Sampling


@dataclass(frozen=True)
class Draw:
    """The source of the chunks' negatives: a number to draw for every set, or int64 [sets, ns]."""

    negatives: int | Tensor
    group: int
    sampling: Sampling
    compute_dtype: torch.dtype
    distribution: Distribution | InBatch | None

    def sets(self, first: int, count: int, catalog: int, device: torch.device) -> Tensor:
        """Return the negatives of `count` sets from the first on, int64 [S, ns]."""
        if isinstance(self.negatives, Tensor):
            return self.negatives[first : first + count]
        return draw_items((count, self.negatives), catalog, self.sampling, first, device, self.distribution)


def sampled_chunks(tokens: Tokens, table: Tensor, weights: Tensor | None, draw: Draw) -> LossesAndGradients:
    """Return losses [M], and with weights [M] the gradients of their weighted sum.

    Token n = j * sets + k is member j of set k: hidden seen as [g, sets, D], padded where M is no multiple of sets.
    """
    count, dim = tokens.hidden.shape
    sets = chunking.set_count(count, draw.group) if count else 0
    padding = sets * draw.group - count
    hidden = F.pad(tokens.hidden, (0, 0, 0, padding)).view(draw.group, sets, dim)
    targets = F.pad(tokens.safe_targets, (0, padding)).view(draw.group, sets)
    sums = None
    if weights is not None:
        sums = GradientSums(hidden.view(-1, dim), table, F.pad(weights, (0, padding)))
    losses = torch.empty(draw.group, sets, dtype=torch.float32, device=table.device)
    for start in chunking.chunk_starts(sets, tokens.chunk, table.is_meta):
        part = slice(start, min(start + tokens.chunk, sets))
        items = draw.sets(start, part.stop - start, len(table), table.device)
        _sampled_chunk(_SetChunk(hidden, targets, losses, part), table, items, sums, draw)
    losses = losses.view(-1)[:count]
    if sums is None:
        return LossesAndGradients(losses)
    return LossesAndGradients(losses, sums.hidden[:count], sums.table)


@dataclass(frozen=True)
class _SetChunk:
    """Some sets of a batch: hidden [g, sets, D], targets and losses [g, sets], and which sets."""

    hidden: Tensor
    targets: Tensor
    losses: Tensor
    part: slice


def _sampled_chunk(chunk: _SetChunk, table: Tensor, items: Tensor, sums: GradientSums | None, draw: Draw) -> None:
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
        logits += log_q_correction(items[:, None, :], target[..., None], kept, len(table), draw.distribution)
    logits.masked_fill_(collision, -torch.inf)
    lse = torch.logaddexp(torch.logsumexp(logits, 2), positive_logit)
    chunk.losses[:, part] = (lse - positive_logit).t()
    if sums is None:
        return
    shape = chunk.targets.shape
    relative = sums.relative.view(shape)[:, part].t()[..., None]  # [S, g, 1]
    share = logits.sub_(lse[..., None]).exp_().to(dtype)  # [S, g, ns]
    surplus = (positive_logit - lse).exp_().sub_(1)[..., None]  # [S, g, 1]
    grad = torch.bmm(share, negative).float() + surplus * positive
    sums.hidden.view(*shape, -1)[:, part] = (grad * (relative * sums.scale)).transpose(0, 1).to(sums.hidden.dtype)
    weighted = hidden * relative.to(dtype)
    _add_rows(sums.table, items, torch.bmm(share.transpose(1, 2), weighted).float().mul_(sums.scale))
    _add_rows(sums.table, target, (weighted * surplus).float() * sums.scale)


def _add_rows(grad_table: Tensor, items: Tensor, rows: Tensor) -> None:
    """Add rows [..., D] to the table's gradient at their items [...]."""
    grad_table.index_add_(0, items.reshape(-1), rows.reshape(-1, rows.shape[-1]).float())
