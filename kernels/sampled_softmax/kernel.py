"""The sampled softmax as Triton kernels: negatives drawn where they are used, shared by a set of tokens.

Shape letters: M tokens, V items, D hidden size, g tokens of a set, ns negatives of a set, B negatives of a tile.
Names are FlashAttention's: m_i running maximum, l_i running sum, acc the gradient of hidden as it accumulates, lse
log-sum-exp, BLOCK_M tokens and BLOCK_N negatives of a program's tiles; BLOCK_D is D rounded up to a power of two.

A set holds every R-th token of a window of R x g (kernels.chunking.Windows); one program handles all of them, or as
many as its registers hold (32): a set of 128 is handled by four, each of which gathers the set's rows, and adds to
their gradients, for itself. Sets and tokens are numbered in the batch; where a call covers a part of it, some places of
its first and last sets are empty.
It walks over the set's negatives a tile at a time, drawing them anew from (seed, step, set, slot) in forward and in
backward: neither [M, ns] logits nor the indices exist in memory. A tile's scores are one matrix product
[g, D] x [D, B], its gradients two more. The gradient of the table accumulates in fp32 by atomic adds, or,
deterministically, in 64-bit fixed point, where the order of additions is no matter. What fixed point cannot hold (NaN,
infinity, numbers beyond its range) makes all of the gradient NaN: it must not pass for a number.

A token's negatives that equal its target leave the sum and the count. The count is known only after the last tile:
forward keeps log sum exp of the kept negatives apart from the target's logit and joins the two at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from srsplan.kernels.samplers.kind import SamplerKind
from srsplan.kernels.triton_math import LIFT, LOW, LOWEST, log_add_exp, loss_of, surplus_of

WEIGHTED = tl.constexpr(int(SamplerKind.WEIGHTED))
GIVEN = tl.constexpr(int(SamplerKind.GIVEN))
IN_BATCH = tl.constexpr(int(SamplerKind.IN_BATCH))
MIXED = tl.constexpr(int(SamplerKind.MIXED))
"""Values of SAMPLER, for the compiler; UNIFORM is the case that is left."""

VARYING = ["seed", "step", "count", "stride", "group", "first_set", "first_token", "batch_slots", "from_batch"]
"""The integers that change from call to call: nothing is compiled for a value of theirs."""

FIXED_POINT = 2.0**36
"""Units of the deterministic sum per 1: numbers are 1.5e-11 apart, up to 6.7e7."""
FIXED_RANGE = tl.constexpr(2.0**62)
"""Units that a number of the deterministic sum, and the sum, must be below: half of what int64 holds."""


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
def number_of(number, LOADED: tl.constexpr):
    """Return a number of a launch, int64; LOADED: from memory, where a CUDA graph that is replayed finds a new one."""
    found = number
    if LOADED:
        found = tl.load(number)
    return tl.cast(found, tl.int64)


@triton.jit
def program_of(first_set, group, BLOCK_M: tl.constexpr):
    """Return the program's set and its members of it, int32 [BLOCK_M]; the parts of a set are programs side by side."""
    parts = tl.cdiv(group, BLOCK_M)
    program = tl.program_id(0)
    return first_set + program // parts, program % parts * BLOCK_M + tl.arange(0, BLOCK_M)


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
    first, second, set_number, slots, catalog, negatives, prob, alias, indices, batch_slots, from_batch,
    SAMPLER: tl.constexpr,
):  # fmt: skip
    """Draw int64 items [B] for some slots of a set with two keys.

    In-batch, indices are the targets to choose from, and catalog is how many there are. Mixed, the slots before
    `from_batch` choose from indices, of which there are `batch_slots`.
    """
    if SAMPLER == GIVEN:
        place = set_number.to(tl.int64) * negatives + slots
        return tl.load(indices + place, mask=slots < negatives, other=0).to(tl.int64)
    high = mixed(slots.to(tl.uint32) + first, second)
    low = high * 0x9E3779B1 + second
    # floor of a 64-bit fraction times V: the second key makes low of high another number in every set, so that over
    # sets no item is likelier than another by more than V / 2^64
    size = tl.cast(catalog, tl.uint32)
    if SAMPLER == MIXED:
        size = tl.where(slots < from_batch, tl.cast(batch_slots, tl.uint32), size)
    items = ((high.to(tl.uint64) * size + tl.umulhi(low, size)) >> 32).to(tl.int64)
    if SAMPLER == WEIGHTED:
        # 24 bits are what fp32 holds exactly
        fraction = (mixed(low, first) >> 8).to(tl.float32) * (1.0 / 16777216.0)
        items = tl.where(fraction < tl.load(prob + items), items, tl.load(alias + items).to(tl.int64))
    if SAMPLER == IN_BATCH:
        items = tl.load(indices + items).to(tl.int64)
    if SAMPLER == MIXED:
        there = slots < from_batch
        items = tl.where(there, tl.load(indices + items, mask=there, other=0).to(tl.int64), items)
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
    """Return the logQ correction before the count is known: log (1 - q_target) - log q_item, [g, B].

    Mixed, the rest is given as 0: the count is that of all draws (kernels.samplers.log_q).
    """
    if not LOG_Q:
        found = tl.zeros((1, 1), tl.float32)
    elif (SAMPLER == WEIGHTED) | (SAMPLER == IN_BATCH) | (SAMPLER == MIXED):  # their probabilities are looked up
        found = target_log_rest[:, None] - tl.load(log_prob + items)[None, :]
    else:
        found = tl.zeros((1, 1), tl.float32) + tl.log(tl.cast(catalog - 1, tl.float32))
    return found


@triton.jit
def score_tile(
    rows, table, target, rest, log_prob, first, second, set_number, start, catalog, negatives, prob, alias, indices,
    batch_slots, from_batch, columns, DIM: tl.constexpr, BLOCK_N: tl.constexpr, SAMPLER: tl.constexpr,
    LOG_Q: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, threshold, HARDEST: tl.constexpr,
):  # fmt: skip
    """Draw and score one tile of a set: items [B], which of them are drawn [B], their rows, corrected logits [g, B].

    LOWEST is the logit of what does not count: slots beyond the last, items that are the target, and with HARDEST those
    below the token's threshold [g]. It is told by
    this number: a mask beside the logits, summed up, would have the items drawn once more in a layout of its own.
    """
    slots = start + tl.arange(0, BLOCK_N)
    drawn = slots < negatives
    items = draw_items(
        first, second, set_number, slots, catalog, negatives, prob, alias, indices, batch_slots, from_batch, SAMPLER
    )
    scored = load_rows(table, items, columns, drawn, DIM).to(COMPUTE)
    logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
    logits += corrections(log_prob, items, rest, catalog, SAMPLER, LOG_Q)
    logits = tl.where(drawn[None, :] & (items[None, :] != target[:, None]), logits, LOWEST)
    if HARDEST:
        logits = tl.where(logits < threshold[:, None], LOWEST, logits)  # NaN is not below it and stays
    return items, drawn, scored, logits


@triton.jit(do_not_specialize=VARYING)
def sampled_forward(
    hidden, table, targets, losses, shifts, log_prob, thresholds,
    seed, step, catalog, negatives, prob, alias, indices, batch_slots, from_batch,
    count, stride, group, first_set, first_token, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLER: tl.constexpr, LOG_Q: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr, HARDEST: tl.constexpr,
):  # fmt: skip
    """Store losses [M] and shifts [M], both fp32: a negative's share is exp(logit + correction - shift)."""
    set_number, members = program_of(first_set, group, BLOCK_M)
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
    m_i = tl.full((BLOCK_M,), LOW, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    kept = tl.zeros((BLOCK_M,), tl.float32)
    threshold = rest
    if HARDEST:
        threshold = tl.load(thresholds + tokens, mask=inside, other=0.0)
    first, second = set_keys(number_of(seed, LOAD_SEED), number_of(step, LOAD_STEP), set_number)
    for start in range(0, negatives, BLOCK_N):
        _items, _drawn, _scored, logits = score_tile(
            rows, table, target, rest, log_prob, first, second, set_number, start, catalog, negatives, prob, alias,
            indices, batch_slots, from_batch, columns, DIM, BLOCK_N, SAMPLER, LOG_Q, COMPUTE, PRECISION, threshold,
            HARDEST,
        )  # fmt: skip
        m_new = tl.maximum(m_i, tl.max(logits, 1))
        l_i = l_i * tl.exp(m_i - m_new) + tl.sum(tl.exp(logits - m_new[:, None]), 1)
        kept += tl.sum((logits > LOW).to(tl.float32), 1)
        m_i = m_new
    log_kept = tl.log(tl.maximum(kept, 1.0)) if LOG_Q else kept * 0.0
    if LOG_Q and SAMPLER == MIXED:
        log_kept = kept * 0.0 + tl.log(tl.cast(negatives, tl.float32))
    others = tl.where(l_i == 0, LOWEST, m_i + tl.log(tl.where(l_i == 0, 1.0, l_i)) - log_kept)
    tl.store(losses + tokens, tl.where(live, loss_of(others, positive), 0.0), mask=inside)
    tl.store(shifts + tokens, log_add_exp(positive, others) + log_kept, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def sampled_scores(
    hidden, table, targets, scores,
    seed, step, catalog, negatives, prob, alias, indices, batch_slots, from_batch,
    count, stride, group, first_set, first_token, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SAMPLER: tl.constexpr, LOG_Q: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr,
):  # fmt: skip
    """Store the logits of the sets from `first_set` on, fp32 [sets, g, ns]; LOWEST is that of what does not count.

    They are the numbers that forward and backward hold, by the same products.
    """
    set_number, members = program_of(first_set, group, BLOCK_M)
    tokens, inside = tokens_of(set_number, members, stride, group, first_token, count)
    columns = tl.arange(0, BLOCK_D)
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
    rest = tl.zeros((BLOCK_M,), tl.float32)
    place = (set_number - first_set).to(tl.int64) * group + members
    first, second = set_keys(number_of(seed, LOAD_SEED), number_of(step, LOAD_STEP), set_number)
    for start in range(0, negatives, BLOCK_N):
        _items, drawn, _scored, logits = score_tile(
            rows, table, target, rest, scores, first, second, set_number, start, catalog, negatives, prob, alias,
            indices, batch_slots, from_batch, columns, DIM, BLOCK_N, SAMPLER, LOG_Q, COMPUTE, PRECISION, rest, False,
        )  # fmt: skip
        slots = start + tl.arange(0, BLOCK_N)
        mask = (members < group)[:, None] & drawn[None, :]
        tl.store(scores + place[:, None] * negatives + slots[None, :], logits, mask=mask)


@triton.jit
def add_rows(base, rows, columns, values, live, DIM: tl.constexpr, FIXED: tl.constexpr):
    """Add values [R, D] fp32 to rows of a [V, D] matrix: fp32, or 64-bit fixed point with FIXED units."""
    place = base + rows.to(tl.int64)[:, None] * DIM + columns[None, :]
    mask = live[:, None] & (columns < DIM)[None, :]
    if FIXED > 0:
        tl.atomic_add(place, (values * FIXED).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(place, values, mask=mask, sem="relaxed")


@triton.jit
def check_fixed_point(broken, rows, weight, surplus, shift, FIXED: tl.constexpr):
    """Store NaN in `broken` fp32 [1] where a program could add what fixed point does not hold.

    No number that it adds is above what all its rows [R, D] add up to with their weights [R], lifted, as shares are at
    most 1; and none is NaN where neither these are, nor the tokens' shifts [R] and surpluses [R].
    """
    reach = tl.sum(tl.abs(rows.to(tl.float32)) * (weight + tl.abs(surplus))[:, None]) + tl.sum(shift * 0.0)
    tl.store(broken, float("nan"), mask=(reach * (FIXED / LIFT) < FIXED_RANGE) == 0)  # NaN is not below it either


@triton.jit(do_not_specialize=["size"])
def from_fixed_point(sums, broken, scale, out, size, FIXED: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store in out fp32 [size] what sums int64 [size] stand for, times scale fp32 [1]; NaN beyond the range, and
    everywhere if `broken` fp32 [1] is."""
    place = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    units = tl.load(sums + place, mask=place < size, other=0).to(tl.float32)
    values = units * (1.0 / FIXED) * tl.load(scale) + tl.load(broken)
    tl.store(out + place, tl.where(tl.abs(units) < FIXED_RANGE, values, float("nan")), mask=place < size)


@triton.jit(do_not_specialize=VARYING)
def sampled_backward(
    hidden, table, targets, losses, shifts, log_prob, thresholds, weights, scale, grad_hidden, grad_table, broken,
    seed, step, catalog, negatives, prob, alias, indices, batch_slots, from_batch,
    count, stride, group, first_set, first_token, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SAMPLER: tl.constexpr,
    LOG_Q: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, LOAD_SEED: tl.constexpr,
    LOAD_STEP: tl.constexpr, FIXED: tl.constexpr, HIDDEN_GRAD: tl.constexpr, TABLE_GRAD: tl.constexpr,
    HARDEST: tl.constexpr,
):  # fmt: skip
    """Store grad_hidden [M, D] and add up grad_table [V, D], the gradients of the losses weighted by `weights` [M], or
    one of them.

    Shares are weighted relative to `scale`, the largest weight, and lifted before they are rounded to the compute type;
    the products are scaled after: a mean over a million tokens would underflow in fp16. The fixed-point sum is
    unscaled.
    """
    set_number, members = program_of(first_set, group, BLOCK_M)
    tokens, inside = tokens_of(set_number, members, stride, group, first_token, count)
    columns = tl.arange(0, BLOCK_D)
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, 0)
    rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
    weight = tl.load(weights + tokens, mask=inside, other=0.0) / tl.maximum(tl.abs(tl.load(scale)), 1e-37)
    weight = tl.where(live, weight * LIFT, 0.0)
    shift = tl.load(shifts + tokens, mask=inside, other=-LOWEST)
    unit = tl.load(scale) / LIFT
    table_unit = 1.0 / LIFT if FIXED > 0 else unit
    surplus = weight * surplus_of(tl.load(losses + tokens, mask=inside, other=0.0))
    if FIXED > 0:
        check_fixed_point(broken, rows, weight, surplus, shift, FIXED)
    if HIDDEN_GRAD:
        acc = surplus[:, None] * load_rows(table, target, columns, live, DIM).to(tl.float32)
    if TABLE_GRAD:
        own = surplus[:, None] * rows.to(tl.float32) * table_unit
        add_rows(grad_table, target, columns, own, live, DIM, FIXED)
    rest = tl.zeros((BLOCK_M,), tl.float32)
    if LOG_Q and ((SAMPLER == WEIGHTED) | (SAMPLER == IN_BATCH)):
        rest = tl.log(tl.maximum(1.0 - tl.exp(tl.load(log_prob + target)), 1e-30))
    threshold = rest
    if HARDEST:
        threshold = tl.load(thresholds + tokens, mask=inside, other=0.0)
    first, second = set_keys(number_of(seed, LOAD_SEED), number_of(step, LOAD_STEP), set_number)
    for start in range(0, negatives, BLOCK_N):
        items, drawn, scored, logits = score_tile(
            rows, table, target, rest, log_prob, first, second, set_number, start, catalog, negatives, prob, alias,
            indices, batch_slots, from_batch, columns, DIM, BLOCK_N, SAMPLER, LOG_Q, COMPUTE, PRECISION, threshold,
            HARDEST,
        )  # fmt: skip
        p = (tl.exp(logits - shift[:, None]) * weight[:, None]).to(COMPUTE)
        if HIDDEN_GRAD:
            acc += tl.dot(p, scored, input_precision=PRECISION)
        if TABLE_GRAD:
            pull = tl.dot(tl.trans(p), rows, input_precision=PRECISION) * table_unit
            add_rows(grad_table, items, columns, pull, drawn, DIM, FIXED)
    if HIDDEN_GRAD:
        place = grad_hidden + tokens[:, None] * DIM + columns[None, :]
        mask = inside[:, None] & (columns < DIM)[None, :]
        tl.store(place, (acc * unit).to(grad_hidden.dtype.element_ty), mask=mask)


@triton.jit
def sample(
    out, seed, step, catalog, negatives, prob, alias, indices, batch_slots, from_batch, SAMPLER: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store the items of set `program 0`, slots of tile `program 1`, in out int64 [sets, ns], for tests."""
    set_number = tl.program_id(0)
    slots = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, second = set_keys(seed, step, set_number)
    items = draw_items(
        first, second, set_number, slots, catalog, negatives, prob, alias, indices, batch_slots, from_batch, SAMPLER
    )
    tl.store(out + set_number.to(tl.int64) * negatives + slots, items, mask=slots < negatives)
