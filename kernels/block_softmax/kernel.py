"""The sampled softmax with negatives in blocks, as Triton kernels: no atomic additions, bitwise repeatable.

Shape letters: M tokens, V items, D hidden size, g tokens of a set, ns negatives of a set; n, R, q, t, w as in
kernels.samplers.blocks, which says which blocks a set takes. Names are FlashAttention's, as in the other kernels.

`permute` puts the step's permutation of the catalog in memory, four bytes an item. `blocks_forward` is attention over a
set's negatives with the item table as keys and as values: beside the running log-sum-exp it keeps the running mean of
the rows, which is all of the gradient of hidden that the loss's weights do not decide. So backward gathers no row of
the table twice: in `blocks_backward` a program holds the 32 items of one block, finds the sets that took it by
arithmetic, adds up what their tokens give, then what the tokens give whose target is one of its items, and writes its
32 rows of the table's gradient once. Forward and backward are four matrix products, as in the full softmax.

What is stored for hidden's gradient is a direction, the mean of the negatives' rows minus the target's: as large as the
table's entries are, however small the probabilities.
"""

from __future__ import annotations

import triton
import triton.language as tl

from srsplan.kernels.block_softmax import grid
from srsplan.kernels.sampled_softmax.kernel import load_rows, mixed, number_of, program_of, tokens_of
from srsplan.kernels.samplers import blocks
from srsplan.kernels.triton_math import LIFT, LOW, LOWEST, loss_of

BLOCK_ITEMS = tl.constexpr(grid.BLOCK_ITEMS)
PAIRS = tl.constexpr(blocks.PAIRS)
FIRST_FACTOR, SECOND_FACTOR = tl.constexpr(blocks.ROUND_FACTORS[0]), tl.constexpr(blocks.ROUND_FACTORS[1])
GOLDEN = tl.constexpr(blocks.GOLDEN)
MIX_ONE, MIX_TWO = tl.constexpr(blocks.MIX_64[0][1]), tl.constexpr(blocks.MIX_64[1][1])

LOG_LIFT = tl.constexpr(6.931471805599453)
"""The logarithm of LIFT."""

VARYING = ["seed", "step", "count", "stride", "first_set", "sets", "first_token", "upper", "width", "blocks"]
"""The integers that change from call to call: nothing is compiled for a value of theirs."""


@triton.jit
def mixed_64(bits):
    """Return splitmix64's output for a state, uint64."""
    bits = (bits ^ (bits >> 30)) * MIX_ONE
    bits = (bits ^ (bits >> 27)) * MIX_TWO
    return bits ^ (bits >> 31)


@triton.jit
def step_state(seed, step, LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr):
    """Return the state that a step's keys are made from, uint64 [1]; what is loaded is given as a pointer."""
    zero = tl.full((1,), 0, tl.uint64)
    state = mixed_64(zero + number_of(seed, LOAD_SEED).to(tl.uint64) + GOLDEN)
    return mixed_64(state + (zero + number_of(step, LOAD_STEP).to(tl.uint64)) * GOLDEN)


@triton.jit
def key_of(state, NUMBER: tl.constexpr):
    """Return a key of a step as two uint32 [1]."""
    key = mixed_64(state + (tl.full((1,), NUMBER + 1, tl.uint64) * GOLDEN))
    return (key >> 32).to(tl.uint32), key.to(tl.uint32)


@triton.jit
def half_round(half, key):
    """Return 32 bits for a half of a place and a key, uint32 [*]."""
    bits = (half + key) * FIRST_FACTOR
    return (bits ^ (bits >> 16)) * SECOND_FACTOR


@triton.jit
def added_in(left, right, upper, key):
    """Return left plus what the right half gives, modulo `upper`."""
    left = left + tl.umulhi(half_round(right, key), upper)
    return tl.where(left >= upper, left - upper, left)


@triton.jit(do_not_specialize=["seed", "step", "upper"])
def permute(
    order, seed, step, catalog, upper, bits, LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr, BLOCK: tl.constexpr
):
    """Store the items of the step's permutation, in order, in order int32 [V]."""
    state = step_state(seed, step, LOAD_SEED, LOAD_STEP)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    upper, size = tl.cast(upper, tl.uint32), tl.cast(catalog, tl.uint32)
    shift = tl.cast(bits, tl.uint32)
    place = places.to(tl.uint32)
    left, right = place >> shift, place & ((tl.full((1,), 1, tl.uint32) << shift) - 1)
    permuted = left < upper
    for pair in tl.static_range(PAIRS):
        high, low = key_of(state, pair)
        left = tl.where(permuted, added_in(left, right, upper, high), left)
        right = tl.where(permuted, right ^ (half_round(left, low) >> (32 - shift)), right)
    turn, _ = key_of(state, PAIRS)
    items = (left << shift) + right + tl.umulhi(turn, tl.zeros_like(turn) + size)
    items = tl.where(items >= size, items - size, items)
    tl.store(order + places, items.to(tl.int32), mask=places < catalog)


@triton.jit(do_not_specialize=["seed", "step", "count", "upper"])
def target_places(
    targets, places, seed, step, catalog, upper, bits, count, ignore_index,
    LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the places of targets [M] in the step's permutation, int32 [M]: V where a target is ignored."""
    state = step_state(seed, step, LOAD_SEED, LOAD_STEP)
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + tokens, mask=tokens < count, other=ignore_index)
    live = target != ignore_index
    upper, size = tl.cast(upper, tl.uint32), tl.cast(catalog, tl.uint32)
    shift = tl.cast(bits, tl.uint32)
    turn, _ = key_of(state, PAIRS)
    offset = tl.umulhi(turn, tl.zeros_like(turn) + size)
    place = tl.where(live, target, 0).to(tl.uint32)
    place = tl.where(place >= offset, place - offset, place + size - offset)
    left, right = place >> shift, place & ((tl.full((1,), 1, tl.uint32) << shift) - 1)
    permuted = left < upper
    for back in tl.static_range(PAIRS):
        high, low = key_of(state, PAIRS - 1 - back)
        right = tl.where(permuted, right ^ (half_round(left, low) >> (32 - shift)), right)
        taken = tl.umulhi(half_round(right, high), tl.zeros_like(right) + upper)
        left = tl.where(permuted, tl.where(left >= taken, left - taken, left + upper - taken), left)
    place = (left << shift) + right
    tl.store(places + tokens, tl.where(live, place.to(tl.int32), catalog), mask=tokens < count)


@triton.jit
def first_bits(wrap, first, second):
    """Return what a wrap q of the sets draws from, uint32 of its shape."""
    return mixed(wrap.to(tl.uint32) + first, second)


@triton.jit
def turned_by(bits, round, first, blocks, width):
    """Return r_qj, int32, the blocks that sets of wrap q are turned by in round j; below 2 n."""
    turn = tl.umulhi(bits, tl.zeros_like(bits) + tl.cast(blocks, tl.uint32))
    within = mixed(bits + 1 + tl.cast(round, tl.uint32), first)
    within = tl.umulhi(within, tl.zeros_like(within) + tl.cast(width, tl.uint32))
    return (turn + within).to(tl.int32) + round * width


@triton.jit
def tile_items(order, wrap_bits, first, place, start, negatives, blocks, width, BLOCK_N: tl.constexpr):
    """Return int64 items [B] of a set's slots from `start` on, and which of them are drawn [B].

    A tile holds whole blocks, or a part of one.
    """
    lanes = start - start // BLOCK_ITEMS * BLOCK_ITEMS + tl.arange(0, BLOCK_N)
    begin = tl.zeros((BLOCK_N,), tl.int32)
    for part in tl.static_range((BLOCK_N + BLOCK_ITEMS - 1) // BLOCK_ITEMS):
        block = turned_by(wrap_bits, start // BLOCK_ITEMS + part, first, blocks, width)
        block = tl.where(block >= blocks, block - blocks, block) + place
        block = tl.where(block >= blocks, block - blocks, block)
        begin = tl.where(lanes // BLOCK_ITEMS == part, block, begin)
    drawn = start + tl.arange(0, BLOCK_N) < negatives
    return tl.load(order + (begin * BLOCK_ITEMS + lanes % BLOCK_ITEMS), mask=drawn, other=0).to(tl.int64), drawn


@triton.jit(do_not_specialize=VARYING)
def blocks_forward(
    hidden, table, targets, order, losses, shifts, directions, seed, step, catalog, negatives, blocks, width,
    count, stride, group, first_set, first_token, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LOG_Q: tl.constexpr,
    PRECISION: tl.constexpr, GRAD: tl.constexpr, LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr,
):  # fmt: skip
    """Store losses [M], shifts [M] (a negative's share is exp(logit - shift)), and with GRAD directions [M, D]: the
    mean of the negatives' rows by their softmax less the target's row."""
    set_number, members = program_of(first_set, group, BLOCK_M)
    tokens, inside = tokens_of(set_number, members, stride, group, first_token, count)
    columns = tl.arange(0, BLOCK_D)
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, 0)
    rows = load_rows(hidden, tokens, columns, live, DIM)
    positive = tl.sum(rows.to(tl.float32) * load_rows(table, target, columns, live, DIM).to(tl.float32), 1)
    first, second = key_of(step_state(seed, step, LOAD_SEED, LOAD_STEP), PAIRS + 1)
    wrap_bits = first_bits(set_number // blocks + tl.zeros_like(first), first, second)
    place = set_number % blocks
    m_i = tl.full((BLOCK_M,), LOW, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    kept = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D if GRAD else 1), tl.float32)
    for start in range(0, negatives, BLOCK_N):
        items, drawn = tile_items(order, wrap_bits, first, place, start, negatives, blocks, width, BLOCK_N)
        scored = load_rows(table, items, columns, drawn, DIM).to(rows.dtype)
        logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
        counts = drawn[None, :] & (items[None, :] != target[:, None])
        logits = tl.where(counts, logits, LOWEST)
        m_new = tl.maximum(m_i, tl.max(logits, 1))
        alpha = tl.exp(m_i - m_new)
        p = tl.exp(logits - (m_new - LOG_LIFT)[:, None])
        l_i = l_i * alpha + tl.sum(p, 1)
        kept += tl.sum((logits > LOW).to(tl.float32), 1)
        if GRAD:
            acc = tl.dot(p.to(rows.dtype), scored, acc * alpha[:, None], input_precision=PRECISION)
        m_i = m_new
    rest = kept * 0.0
    if LOG_Q:
        rest = tl.log(tl.cast(tl.maximum(catalog - 1, 1), tl.float32)) - tl.log(tl.maximum(kept, 1.0))
    l_safe = tl.where(l_i == 0, 1.0, l_i)
    others = tl.where(l_i == 0, LOWEST, m_i + tl.log(l_safe / LIFT) + rest)
    loss = loss_of(others, positive)
    tl.store(losses + tokens, tl.where(live, loss, 0.0), mask=inside)
    tl.store(shifts + tokens, positive + loss - rest, mask=inside)
    if GRAD:
        mean = acc / l_safe[:, None] - load_rows(table, target, columns, live, DIM).to(tl.float32)
        tl.store(
            directions + tokens[:, None] * DIM + columns[None, :], mean.to(directions.dtype.element_ty),
            mask=inside[:, None] & (columns < DIM)[None, :],
        )  # fmt: skip


@triton.jit
def takers(
    lanes, number, wrap, wrap_bits, first, block, low, high, distance, blocks, width, rounds,
    SETS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return for the lanes [B] of a tile: the set that took `block` (int64), whether one did, and its round.

    A tile holds SETS sets with GROUP lanes each, of neighbouring rounds downward from the one of `distance`.
    """
    turns = number * SETS + (lanes // GROUP if SETS > 1 else 0)
    round = distance // width
    round = tl.minimum(round, rounds - 1) - turns
    round = tl.where(round < 0, round + rounds, round)
    valid = turns < rounds
    round = tl.where(valid, round, 0)
    taken = turned_by(wrap_bits, round, first, blocks, width)
    taken = tl.where(taken >= blocks, taken - blocks, taken)
    place = block - taken
    place = tl.where(place < 0, place + blocks, place)
    return tl.cast(wrap, tl.int64) * blocks + place, valid & (place >= low) & (place < high), round


@triton.jit(do_not_specialize=VARYING)
def blocks_backward(
    hidden, table, order, state, scale, sorted_tokens, starts, grad_table,
    seed, step, catalog, negatives, blocks, width, rounds, padded, count, stride, group, first_set, sets, first_token,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SETS: tl.constexpr,
    GROUP: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, LOAD_SEED: tl.constexpr, LOAD_STEP: tl.constexpr,
):  # fmt: skip
    """Store the rows of grad_table [V, D] that belong to one block, or a part of one: from the sets that took it, then
    from the tokens whose target is among its items."""
    program = tl.program_id(0)
    begin = program * BLOCK_N
    block = begin // BLOCK_ITEMS
    slots = begin % BLOCK_ITEMS + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    lanes = tl.arange(0, BLOCK_M)
    there = begin + tl.arange(0, BLOCK_N) < catalog
    items = tl.load(order + begin + tl.arange(0, BLOCK_N), mask=there, other=0)
    scored = load_rows(table, items, columns, there, DIM).to(hidden.dtype.element_ty)
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    first, second = key_of(step_state(seed, step, LOAD_SEED, LOAD_STEP), PAIRS + 1)
    length = tl.cast(padded, tl.int64)
    last_set = first_set + sets
    last_wrap = tl.where(block < blocks, (last_set + blocks - 1) // blocks, first_set // blocks)
    for wrap in range(first_set // blocks, last_wrap):
        low = tl.maximum(first_set - wrap * blocks, 0)
        high = tl.minimum(last_set - wrap * blocks, blocks)
        wrap_bits = first_bits(wrap + tl.zeros_like(first), first, second)
        turn = tl.umulhi(wrap_bits, tl.zeros_like(wrap_bits) + tl.cast(blocks, tl.uint32)).to(tl.int32)
        distance = block - turn - low
        distance = tl.where(distance < 0, distance + blocks, distance)
        distance = tl.where(distance < 0, distance + blocks, distance)
        looked_at = tl.minimum((high - low + width - 1) // width + 1, rounds)
        for number in range((looked_at + SETS - 1) // SETS * PARTS):
            taker, took, round = takers(
                lanes, number // PARTS, wrap, wrap_bits, first, block, low, high, distance, blocks, width, rounds,
                SETS, GROUP,
            )  # fmt: skip
            member = lanes % GROUP + number % PARTS * GROUP
            tokens, inside = tokens_of(taker, member, stride, group, first_token, count)
            inside = inside & took
            rows = load_rows(hidden, tokens, columns, inside, DIM)
            place = state + tokens
            target = tl.load(place, mask=inside, other=0.0).to(tl.int32, bitcast=True)
            shift = tl.load(place + length, mask=inside, other=0.0)
            weight = tl.load(place + 3 * length, mask=inside, other=0.0)
            logits = tl.dot(scored, tl.trans(rows), input_precision=PRECISION)
            p = tl.exp(logits - shift[None, :]) * weight[None, :]
            used = slots[:, None] + (tl.zeros_like(lanes) + round * BLOCK_ITEMS)[None, :] < negatives
            p = tl.where(used & (items[:, None] != target[None, :]), p, 0.0)
            acc = tl.dot(p.to(rows.dtype), rows, acc, input_precision=PRECISION)
    end = tl.load(starts + program + 1)
    for start in range(tl.load(starts + program), end, BLOCK_M):
        inside = start + lanes < end
        tokens = tl.load(sorted_tokens + start + lanes, mask=inside, other=0)
        rows = load_rows(hidden, tokens, columns, inside, DIM)
        target = tl.load(state + tokens, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        own = tl.load(state + tokens + 2 * length, mask=inside, other=0.0)
        p = tl.where((items[:, None] == target[None, :]) & there[:, None] & inside[None, :], own[None, :], 0.0)
        acc = tl.dot(p.to(rows.dtype), rows, acc, input_precision=PRECISION)
    mask = there[:, None] & (columns < DIM)[None, :]
    place = grad_table + items.to(tl.int64)[:, None] * DIM + columns[None, :]
    tl.store(place, acc * (tl.load(scale) / LIFT), mask=mask)
