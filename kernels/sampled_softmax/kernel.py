"""The sampled softmax as Triton kernels: negatives drawn where they are used, shared by a set of tokens.

Shape letters: M tokens, V items, D hidden size, g tokens of a set, ns negatives of a set, B negatives of a tile.
Names are FlashAttention's: m_i running maximum, l_i running sum, acc the gradient of hidden as it accumulates, lse
log-sum-exp, BLOCK_M tokens and BLOCK_N negatives of a program's tiles; BLOCK_D is D rounded up to a power of two.

A set holds every R-th token of a window of R x g (kernels.chunking.Windows); one program handles all of them, or as
many as its registers hold (32). Sets and tokens are numbered in the batch; where a call covers a part of it, some
places of its first and last sets are empty.
It walks over the set's negatives a tile at a time, drawing them anew from (seed, step, set, slot) in forward and in
backward: neither [M, ns] logits nor the indices exist in memory. A tile's scores are one matrix product
[g, D] x [D, B], its gradients two more. The gradient of the table accumulates in fp32 by atomic adds, or,
deterministically, in 64-bit fixed point, where the order of additions is no matter.

A token's negatives that equal its target leave the sum and the count. The count is known only after the last tile:
forward keeps log sum exp of the kept negatives apart from the target's logit and joins the two at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from srsplan.kernels.samplers.kind import SamplerKind
from srsplan.kernels.triton_math import LOWEST, log_add_exp, surplus_of

WEIGHTED = tl.constexpr(int(SamplerKind.WEIGHTED))
GIVEN = tl.constexpr(int(SamplerKind.GIVEN))
IN_BATCH = tl.constexpr(int(SamplerKind.IN_BATCH))
"""Values of SAMPLER, for the compiler; UNIFORM is the case that is left."""

VARYING = ["seed", "step", "count", "stride", "group", "first_set", "first_token"]
"""The integers that change from call to call: nothing is compiled for a value of theirs."""

FIXED_POINT = 2.0**36
"""Units of the deterministic sum per 1: numbers are 1.5e-11 apart, up to 1.3e8."""


@triton.jit
def mixed(bits, salt):
    """Mix uint32 to uint32, one to one for every salt: three multiplications, four shifts, four exclusive ors.

    A thread holds the items of a tile in several layouts and draws them for each: with ten rounds of Philox, drawing
    was two thirds of all instructions. The constants are those of triple32 (Wellons, 2018, Prospecting for hash
    functions); of its smaller sister with two multiplications neighbouring slots are visibly dependent.
    """
    bits = (bits ^ (bits >> 17)) * 0xED5AD4BB
    bits = (bits ^ (bits >> 11) ^ salt) * 0xAC4C1B51
    bits = (bits ^ (bits >> 15)) * 0x31848BAB
    return bits ^ (bits >> 14)


@triton.jit
def set_keys(seed, step, set_number):
    """Make the two uint32 that a set's draws begin with, by ten rounds of Philox."""
    zero = tl.full((1,), 0, tl.uint32)
    step = tl.cast(step, tl.int64)
    first, second, _, _ = tl.philox(
        tl.cast(seed, tl.int64), zero + set_number.to(tl.uint32), zero + step.to(tl.uint32),
        zero + (step >> 32).to(tl.uint32), zero,
    )  # fmt: skip
    return first, second


@triton.jit
def draw_items(
    first, second, set_number, slots, catalog, negatives, prob, alias, indices, SAMPLER: tl.constexpr
):  # fmt: skip
    """Draw int64 items [B] for some slots of a set with two keys.

    In-batch, indices are the targets to choose from, and catalog is how many there are.
    """
    if SAMPLER == GIVEN:
        place = set_number.to(tl.int64) * negatives + slots
        return tl.load(indices + place, mask=slots < negatives, other=0).to(tl.int64)
    high = mixed(slots.to(tl.uint32) + first, second)
    low = high * 0x9E3779B1 + second
    # floor of a 64-bit fraction times V: the second key makes low of high another number in every set, so that over
    # sets no item is likelier than another by more than V / 2^64
    size = tl.cast(catalog, tl.uint32)
    items = ((high.to(tl.uint64) * size + tl.umulhi(low, size)) >> 32).to(tl.int64)
    if SAMPLER == WEIGHTED:
        # 24 bits are what fp32 holds exactly
        fraction = (mixed(low, first) >> 8).to(tl.float32) * (1.0 / 16777216.0)
        items = tl.where(fraction < tl.load(prob + items), items, tl.load(alias + items).to(tl.int64))
    if SAMPLER == IN_BATCH:
        items = tl.load(indices + items).to(tl.int64)
    return items


@triton.jit
def tokens_of(set_number, members, stride, group, first_token, count):
    """Return the tokens of a set's members, numbered in the call, int64 [B]; and which of them the call covers [B]."""
    number = set_number.to(tl.int64)
    begin = number // stride * stride * group + number % stride - first_token
    tokens = begin + members.to(tl.int64) * stride
    return tokens, (members < group) & (tokens >= 0) & (tokens < count)


@triton.jit
def load_rows(base, rows, columns, live, DIM: tl.constexpr):
    """Load rows [R] of a [*, D] matrix as [R, BLOCK_D]; rows that are not live and columns beyond D are 0."""
    place = rows.to(tl.int64)[:, None] * DIM + columns[None, :]
    return tl.load(base + place, mask=live[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit
def corrections(log_prob, items, target_log_rest, catalog, SAMPLER: tl.constexpr, LOG_Q: tl.constexpr):
    """Return the logQ correction before the count is known: log (1 - q_target) - log q_item, [g, B]."""
    if not LOG_Q:
        found = tl.zeros((1, 1), tl.float32)
    elif (SAMPLER == WEIGHTED) | (SAMPLER == IN_BATCH):  # their probabilities are looked up
        found = target_log_rest[:, None] - tl.load(log_prob + items)[None, :]
    else:
        found = tl.zeros((1, 1), tl.float32) + tl.log(tl.cast(catalog - 1, tl.float32))
    return found


@triton.jit
def score_tile(
    rows, table, target, rest, log_prob, first, second, set_number, start, catalog, negatives, prob, alias, indices,
    columns, DIM: tl.constexpr, BLOCK_N: tl.constexpr, SAMPLER: tl.constexpr, LOG_Q: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Draw and score one tile of a set: items [B], which of them are drawn [B], their rows, corrected logits [g, B],
    and which of those count [g, B]: all that are drawn and not the target."""
    slots = start + tl.arange(0, BLOCK_N)
    drawn = slots < negatives
    items = draw_items(first, second, set_number, slots, catalog, negatives, prob, alias, indices, SAMPLER)
    scored = load_rows(table, items, columns, drawn, DIM).to(COMPUTE)
    logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
    logits += corrections(log_prob, items, rest, catalog, SAMPLER, LOG_Q)
    counts = drawn[None, :] & (items[None, :] != target[:, None])
    return items, drawn, scored, logits, counts


@triton.jit(do_not_specialize=VARYING)
def sampled_forward(
    hidden, table, targets, losses, shifts, log_prob,
    seed, step, catalog, negatives, prob, alias, indices,
    count, stride, group, first_set, first_token, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLER: tl.constexpr, LOG_Q: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store losses [M] and shifts [M], both fp32: a negative's share is exp(logit + correction - shift)."""
    set_number = first_set + tl.program_id(0)
    members = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens, inside = tokens_of(set_number, members, stride, group, first_token, count)
    columns = tl.arange(0, BLOCK_D)
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, 0)
    rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
    positive = tl.sum(rows.to(tl.float32) * load_rows(table, target, columns, live, DIM).to(tl.float32), 1)
    rest = tl.zeros((BLOCK_M,), tl.float32)
    if LOG_Q and ((SAMPLER == WEIGHTED) | (SAMPLER == IN_BATCH)):
        rest = tl.log(tl.maximum(1.0 - tl.exp(tl.load(log_prob + target)), 1e-30))
    m_i = tl.full((BLOCK_M,), LOWEST, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    kept = tl.zeros((BLOCK_M,), tl.float32)
    first, second = set_keys(seed, step, set_number)
    for start in range(0, negatives, BLOCK_N):
        _items, _drawn, _scored, logits, counts = score_tile(
            rows, table, target, rest, log_prob, first, second, set_number, start, catalog, negatives, prob, alias,
            indices, columns, DIM, BLOCK_N, SAMPLER, LOG_Q, COMPUTE, PRECISION,
        )  # fmt: skip
        logits = tl.where(counts, logits, LOWEST)
        m_new = tl.maximum(m_i, tl.max(logits, 1))
        l_i = l_i * tl.exp(m_i - m_new) + tl.sum(tl.where(counts, tl.exp(logits - m_new[:, None]), 0.0), 1)
        kept += tl.sum(counts.to(tl.float32), 1)
        m_i = m_new
    log_kept = tl.log(tl.maximum(kept, 1.0)) if LOG_Q else kept * 0.0
    others = tl.where(l_i > 0, m_i + tl.log(tl.maximum(l_i, 1e-37)) - log_kept, LOWEST)
    lse_i = log_add_exp(positive, others)
    tl.store(losses + tokens, tl.where(live, lse_i - positive, 0.0), mask=inside)
    tl.store(shifts + tokens, lse_i + log_kept, mask=inside)


@triton.jit
def add_rows(base, rows, columns, values, live, DIM: tl.constexpr, FIXED: tl.constexpr):
    """Add values [R, D] fp32 to rows of a [V, D] matrix: fp32, or 64-bit fixed point with FIXED units."""
    place = base + rows.to(tl.int64)[:, None] * DIM + columns[None, :]
    mask = live[:, None] & (columns < DIM)[None, :]
    if FIXED > 0:
        tl.atomic_add(place, (values * FIXED).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(place, values, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=VARYING)
def sampled_backward(
    hidden, table, targets, losses, shifts, log_prob, weights, scale, grad_hidden, grad_table,
    seed, step, catalog, negatives, prob, alias, indices,
    count, stride, group, first_set, first_token, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SAMPLER: tl.constexpr,
    LOG_Q: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """Store grad_hidden [M, D] and add up grad_table [V, D], the gradients of the losses weighted by `weights` [M].

    Shares are weighted relative to `scale`, the largest weight, before they are rounded to the compute type, and the
    products are scaled after: a mean over a million tokens would underflow in fp16. The fixed-point sum is unscaled.
    """
    set_number = first_set + tl.program_id(0)
    members = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens, inside = tokens_of(set_number, members, stride, group, first_token, count)
    columns = tl.arange(0, BLOCK_D)
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, 0)
    rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
    unit = tl.load(scale)
    weight = tl.where(live, tl.load(weights + tokens, mask=inside, other=0.0) / tl.maximum(tl.abs(unit), 1e-37), 0.0)
    shift = tl.load(shifts + tokens, mask=inside, other=0.0)
    loss = tl.load(losses + tokens, mask=inside, other=0.0)
    table_unit = 1.0 if FIXED > 0 else unit
    surplus = weight * surplus_of(loss)
    acc = surplus[:, None] * load_rows(table, target, columns, live, DIM).to(tl.float32)
    add_rows(grad_table, target, columns, surplus[:, None] * rows.to(tl.float32) * table_unit, live, DIM, FIXED)
    rest = tl.zeros((BLOCK_M,), tl.float32)
    if LOG_Q and ((SAMPLER == WEIGHTED) | (SAMPLER == IN_BATCH)):
        rest = tl.log(tl.maximum(1.0 - tl.exp(tl.load(log_prob + target)), 1e-30))
    first, second = set_keys(seed, step, set_number)
    for start in range(0, negatives, BLOCK_N):
        items, drawn, scored, logits, counts = score_tile(
            rows, table, target, rest, log_prob, first, second, set_number, start, catalog, negatives, prob, alias,
            indices, columns, DIM, BLOCK_N, SAMPLER, LOG_Q, COMPUTE, PRECISION,
        )  # fmt: skip
        p = tl.where(counts, tl.exp(tl.minimum(logits - shift[:, None], 0.0)), 0.0) * weight[:, None]
        p = p.to(COMPUTE)
        acc += tl.dot(p, scored, input_precision=PRECISION)
        pull = tl.dot(tl.trans(p), rows, input_precision=PRECISION) * table_unit
        add_rows(grad_table, items, columns, pull, drawn, DIM, FIXED)
    place = grad_hidden + tokens[:, None] * DIM + columns[None, :]
    tl.store(place, (acc * unit).to(grad_hidden.dtype.element_ty), mask=inside[:, None] & (columns < DIM)[None, :])


@triton.jit
def sample(
    out, seed, step, catalog, negatives, prob, alias, indices, SAMPLER: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Store the items of set `program 0`, slots of tile `program 1`, in out int64 [sets, ns], for tests."""
    set_number = tl.program_id(0)
    slots = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, second = set_keys(seed, step, set_number)
    items = draw_items(first, second, set_number, slots, catalog, negatives, prob, alias, indices, SAMPLER)
    tl.store(out + set_number.to(tl.int64) * negatives + slots, items, mask=slots < negatives)
