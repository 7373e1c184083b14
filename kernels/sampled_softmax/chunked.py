"""The sampled softmax in plain PyTorch, a chunk of sets at a time.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set, S sets of a chunk, G places of a set: g of them,
or fewer where the call is smaller than a window of its batch.

Memory contract. Above the inputs, per chunk: the gathered rows [S, ns, D] (fp32, and a copy in 16 bit), the tokens
[S, g, D] and their [S, g, ns] logits and probabilities; the gradient of hidden, and one [V, D] gradient in fp32 unless
there is one to add to. No copy of the table or of hidden, never [M, ns].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.chunked_autograd import GradientSums, LossesAndGradients, Tokens, Wanted
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.blocks import block_draw, draws_blocks
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.hardest import least_kept
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.log_q import log_q_correction
from srsplan.kernels.samplers.sampling import Sampling


@dataclass(frozen=True)
class Draw:
    """The source of the chunks' negatives: a number to draw for every set, or int64 [sets, ns]; and which sets."""

    negatives: int | Tensor
    sampling: Sampling
    compute_dtype: torch.dtype
    distribution: Distribution | InBatch | None
    sets: CallSets

    def items(self, sets: range, catalog: int, device: torch.device) -> Tensor:
        """Return the negatives of some sets of the batch, int64 [S, ns]."""
        if isinstance(self.negatives, Tensor):
            return self.negatives[sets.start : sets.stop]
        if draws_blocks(self.negatives, self.sampling, self.distribution):
            return block_draw(self.negatives, catalog, self.sampling).items(sets.start, len(sets), device)
        return draw_items((len(sets), self.negatives), catalog, self.sampling, sets.start, device, self.distribution)


def sampled_chunks(tokens: Tokens, table: Tensor, wanted: Wanted | None, draw: Draw) -> LossesAndGradients:
    """Return losses [M], and the gradients that are wanted."""
    count = len(tokens.hidden)
    sets = draw.sets.numbers
    sums = None if wanted is None else GradientSums(tokens.hidden, table, wanted)
    if sums is not None:
        sums.hidden.zero_()
    losses = torch.zeros(count, dtype=torch.float32, device=table.device)
    run = _Run(tokens, losses, sums, tokens.safe_targets)
    for start in chunking.chunk_starts(len(sets), tokens.chunk, table.is_meta):
        part = sets[start : start + tokens.chunk]
        members = draw.sets.members(part, table.device)
        _sampled_chunk(run, members, table, draw.items(part, len(table), table.device), draw)
    return LossesAndGradients(losses) if sums is None else sums.with_losses(losses)


@dataclass(frozen=True)
class _Run:
    """A call's tokens, its losses fp32 [M] and gradients, which begin at 0, and its targets [M]."""

    tokens: Tokens
    losses: Tensor
    sums: GradientSums | None
    targets: Tensor


def _sampled_chunk(run: _Run, members: Tensor, table: Tensor, items: Tensor, draw: Draw) -> None:
    """Score the tokens `members` [S, g] against items [S, ns]; adds to their losses and gradients.

    A hole holds the hidden state 0 and adds 0, so that the row it is added to does not matter.
    """
    dtype, sums, last = draw.compute_dtype, run.sums, len(run.losses) - 1
    inside, members = (members >= 0) & (members <= last), members.clamp(0, last)
    hidden = run.tokens.hidden[members].masked_fill_(~inside[..., None], 0.0).to(dtype)  # [S, g, D]
    target = run.targets[members]  # [S, g]
    negative, positive = table[items].to(dtype), table[target].to(dtype)  # [S, ns, D], [S, g, D]
    positive_logit = (hidden * positive).sum(-1, dtype=torch.float32)
    logits = torch.bmm(hidden, negative.transpose(1, 2)).float()  # [S, g, ns]
    collision = items[:, None, :] == target[:, :, None]
    if draw.sampling.corrected:
        kept = items.shape[1] - collision.sum(2, keepdim=True)
        logits += log_q_correction(items[:, None, :], target[..., None], kept, len(table), draw.distribution)
    logits.masked_fill_(collision, -torch.inf)
    if draw.sampling.hardest is not None:
        logits.masked_fill_(logits < least_kept(logits, draw.sampling.hardest), -torch.inf)
    lse = torch.logaddexp(torch.logsumexp(logits, 2), positive_logit)
    _add_rows(run.losses, members, torch.where(inside, lse - positive_logit, 0.0))
    if sums is None:
        return
    relative = torch.where(inside, sums.relative[members], 0.0)[..., None]  # [S, G, 1]
    share = logits.sub_(lse[..., None]).exp_().to(dtype)  # [S, g, ns]
    surplus = (positive_logit - lse).exp_().sub_(1)[..., None]  # [S, G, 1]
    grad = torch.bmm(share, negative).float() + surplus * positive
    _add_rows(sums.hidden, members, (grad * (relative * sums.scale)).to(sums.hidden.dtype))
    weighted = hidden * relative.to(dtype)
    _add_rows(sums.table, items, torch.bmm(share.transpose(1, 2), weighted).float().mul_(sums.table_scale))
    _add_rows(sums.table, target, (weighted * surplus).float() * sums.table_scale)


def _add_rows(rows: Tensor, places: Tensor, added: Tensor) -> None:
    """Add `added` [..., *] to `rows` [R, *] at `places` [...]."""
    rows.index_add_(0, places.reshape(-1), added.reshape(-1, *rows.shape[1:]))
