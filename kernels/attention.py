"""Self-attention over packed sequences, causal or not: B sequences of different lengths, one after another in M tokens.

Shape letters: M tokens, B sequences, H heads, K head size; b sequences of a group, l its longest.

On CUDA kernels with variable lengths run: FlashAttention in 16 bit, memory-efficient attention otherwise. Both drop
attention weights out. They are the operators under `torch.nn.attention.varlen` (torch 2.10, without dropout) and under
`scaled_dot_product_attention` of jagged nested tensors, called directly: one path for torch 2.6 and later, and for meta
tensors. Elsewhere sequences of like length are padded together, group by group, inside this function only.

Dao, 2023, FlashAttention-2, https://arxiv.org/abs/2307.08691.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

aten = torch.ops.aten

SHORTEST_SHARE = 0.9
"""A group's shortest sequence has at least this share of its longest: at most a tenth of its tokens are padding. Of
shares from 0.5 to 0.9 the last is the fastest on a CPU, by up to a third over 0.5; above 0.67 they differ by a tenth.
"""

FLASH_CAPABILITY = (8, 0)
NO_MASK, CAUSAL_FROM_TOP_LEFT = 0, 1
"""Masks of memory-efficient attention, by their numbers in PyTorch."""


@dataclass(frozen=True, eq=False)
class Packing:
    """The bounds of packed sequences, and on devices without a kernel for them the groups that are padded together."""

    cu_seqlens: Tensor
    """int32 [B + 1] on the device: sequence k is tokens cu_seqlens[k] to cu_seqlens[k + 1]."""
    longest: int
    """Tokens of the longest sequence."""
    groups: tuple[tuple[int, int], ...] = ()
    """Sequences and tokens of the longest of each group, (b, l)."""
    padded: Tensor | None = None
    """int64 [sum b l]: the tokens of the groups, one after another; padding repeats its sequence's last token."""
    places: Tensor | None = None
    """int64 [M]: where in `padded` each token stands."""
    lengths: Tensor | None = None
    """int64 [B]: the tokens of the sequences, in the order of the groups."""


def pack(offsets: NDArray[np.int64], device: torch.device) -> Packing:
    """Return the packing of sequences with these bounds [B + 1], for attention on `device`; no sequence is empty."""
    cu_seqlens = torch.from_numpy(offsets.astype(np.int32)).to(device, non_blocking=True)
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    if device.type in ("cuda", "meta"):
        return Packing(cu_seqlens, longest)
    groups, places, order = _grouped(offsets[:-1], lengths)
    padded = np.concatenate([tokens.ravel() for tokens in groups])
    on_device = (torch.from_numpy(array).to(device) for array in (padded, places, lengths[order]))
    return Packing(cu_seqlens, longest, tuple((len(tokens), tokens.shape[1]) for tokens in groups), *on_device)


def packed_attention(joined: Tensor, packing: Packing, dropout: float = 0.0, *, causal: bool = True) -> Tensor:
    """Attend within every sequence, each token to itself and those before it: [M, 3, H, K] -> [M, H, K].

    Where not `causal`, each token attends to its whole sequence. joined: queries, keys and values. `dropout` is the
    probability that an attention weight is dropped. Memory above input and result: fp32 row sums, [H, M] with
    FlashAttention and [B, H, longest] otherwise; on devices without such kernels the padded groups.
    """
    if packing.padded is not None and packing.places is not None:
        return _by_groups(joined, packing, packing.padded, packing.places, dropout, causal)
    bounds = (packing.cu_seqlens, packing.cu_seqlens, packing.longest, packing.longest)
    if _has_flash(joined):
        query, key, value = joined.unbind(1)
        return cast(Tensor, aten._flash_attention_forward(query, key, value, *bounds, dropout, causal, False)[0])
    query, key, value = joined.unsqueeze(0).unbind(2)
    keeps_sums = torch.is_grad_enabled() and joined.requires_grad
    mixed = aten._efficient_attention_forward(
        query, key, value, None, *bounds, dropout, CAUSAL_FROM_TOP_LEFT if causal else NO_MASK, keeps_sums
    )[0]
    return cast(Tensor, mixed.squeeze(0))


def _has_flash(joined: Tensor) -> bool:
    if joined.dtype == torch.float32:
        return False
    return joined.is_meta or torch.cuda.get_device_capability(joined.device) >= FLASH_CAPABILITY


def _by_groups(
    joined: Tensor, packing: Packing, padded: Tensor, places: Tensor, dropout: float, causal: bool
) -> Tensor:
    """Attend group by group: what stands at padding is seen by padding only, and nobody looks at its result.

    Padding comes last, so that a causal mask hides it; without one the keys there are masked. All groups are gathered
    at once: one gather and its gradient take a third less time than one for each group.
    """
    mixed = []
    parts = joined.index_select(0, padded).split([sequences * longest for sequences, longest in packing.groups])
    hidden_keys = [None] * len(parts) if causal else _key_masks(packing)
    for shape, part, mask in zip(packing.groups, parts, hidden_keys, strict=True):
        query, key, value = part.unflatten(0, shape).permute(2, 0, 3, 1, 4).unbind(0)  # [b, H, l, K] each
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        mixed.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed).index_select(0, places)


def _key_masks(packing: Packing) -> list[Tensor | None]:
    """Return a mask bool [b, 1, 1, l] for every group, True at a sequence's tokens."""
    if packing.lengths is None:
        raise ValueError("a packing in groups needs its sequences' lengths where attention is not causal")
    parts = packing.lengths.split([sequences for sequences, _ in packing.groups])
    return [
        (torch.arange(longest, device=part.device) < part[:, None])[:, None, None]
        for part, (_, longest) in zip(parts, packing.groups, strict=True)
    ]


def _grouped(
    starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens [b, l] of every group, the longest sequences first, each token's place in all groups, and the
    order [B] of the sequences.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    groups, places, first, padded = [], np.empty(int(lengths.sum()), dtype=np.int64), 0, 0
    while first < len(order):
        longest = int(descending[first])
        last = int(np.searchsorted(-descending, -SHORTEST_SHARE * longest, side="right"))
        rows, columns = order[first:last, None], np.arange(longest)
        tokens = starts[rows] + np.minimum(columns, lengths[rows] - 1)
        valid = columns < lengths[rows]
        places[tokens[valid]] = padded + np.flatnonzero(valid)
        groups.append(tokens)
        first, padded = last, padded + tokens.size
    return groups, places, order
