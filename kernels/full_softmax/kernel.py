"""The full softmax as Triton kernels: cut cross-entropy, no logits in memory, no atomic adds.

Wijmans et al., 2024, Cut your losses in large-vocabulary language models, https://arxiv.org/abs/2411.09009.
Shape letters: M tokens, V items, D hidden size, R rows (tokens) of a block, B items of a tile.
Names are FlashAttention's: m_i running maximum, l_i running sum, acc running product with the values, lse log-sum-exp,
BLOCK_M tokens and BLOCK_N items of a program's tiles; BLOCK_D is D rounded up to a power of two.

A program keeps its block in shared memory and walks over the other side a tile at a time, so that a byte that is read
serves a whole block, and products are large enough for the widest tensor-core instruction (64 rows and more on Hopper).

Forward is attention over the catalog with the item table as keys and as values: beside the running log-sum-exp it keeps
the running mean of the other items' rows. Less the target's row it is the direction of the gradient of hidden, whose
length, 1 - the target's share, follows from the loss: what is rounded to 16 bit has the size of the table's entries
however small the gradient is. So forward and backward are four matrix products, not five. What is negligible is
remembered: a running log-sum-exp, begun at the target's logit, is never above the final one, so an entry that is
negligible against it is negligible; one byte per span of SPAN_ITEMS items and block of rows says whether any entry
matters. The bytes of a span stand one after another.

Backward makes the gradient of the table, by items: each sum is made in registers, in a fixed order, and the result is
bitwise repeatable. Its kernel comes twice: dense, where the copy of the next tile overlaps the products of this one,
and with a look at the span's bytes, LOOK blocks of rows at once, which pays where most of them are empty. Both are
launched, and the number of spans that matter decides on the card which of the two returns at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from srsplan.kernels.triton_math import LIFT, LOW, LOWEST, log_add_exp, loss_of, surplus_of

SPARSE_SHARE = 0.4
"""Share of spans that matter below which looking at each is worth more than overlapping copies."""

LOOK = tl.constexpr(1024)
"""Blocks of rows whose bytes the sparse form reads at once: 131,072 tokens in blocks of 128."""

LOG_LIFT = tl.constexpr(6.931471805599453)
"""The logarithm of LIFT."""

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp_of(logits, shift, FP32: tl.constexpr):
    """exp(logits - shift) where shift comes from `shift_of`; one multiply-add where 16-bit products allow its rounding.

    logits x log2 e is rounded to 2^-24 of itself, which is what fp32 has to lose when logits are 30.
    """
    return tl.exp2((logits - shift) * LOG2_E if FP32 else logits * LOG2_E - shift)


@triton.jit
def shift_of(logits, FP32: tl.constexpr):
    """Return the form of a logit that `exp_of` subtracts."""
    return logits if FP32 else logits * LOG2_E


@triton.jit
def load_block(base, first, offsets, columns, end, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows first + offsets [R] of a [*, D] matrix as [R, BLOCK_D]; 0 from row `end` on and beyond column D."""
    place = base + tl.cast(first, tl.int64) * DIM + (offsets[:, None] * DIM + columns[None, :])
    if BLOCK_D == DIM:
        block = tl.load(place, mask=(offsets < end - first)[:, None], other=0.0)
    else:
        block = tl.load(place, mask=(offsets < end - first)[:, None] & (columns < DIM)[None, :], other=0.0)
    return block


@triton.jit
def forward_tile(
    rows, table, start, catalog, target, live, positive, threshold, m_i, l_i, acc, matters, columns,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, GRAD: tl.constexpr,
    SPANS: tl.constexpr,
):  # fmt: skip
    """Take one tile into m_i (the largest logit), l_i (LIFT x sum of exp (logit - m_i)), acc (that sum of rows [R, D])
    and, with SPANS, what matters."""
    FP32: tl.constexpr = rows.dtype == tl.float32
    offsets = tl.arange(0, BLOCK_N)
    scored = load_block(table, start, offsets, columns, catalog, DIM, BLOCK_D).to(rows.dtype)
    logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
    logits = tl.where(offsets[None, :] != (target - start)[:, None], logits, LOWEST)
    if start + BLOCK_N > catalog:
        logits = tl.where((offsets < catalog - start)[None, :], logits, LOWEST)
    tile_max = tl.max(logits, 1)
    m_new = tl.maximum(m_i, tile_max)
    alpha = tl.exp2((m_i - m_new) * LOG2_E)
    p = exp_of(logits, shift_of(m_new - LOG_LIFT, FP32)[:, None], FP32)
    l_i = l_i * alpha + tl.sum(p, 1)
    if GRAD:
        acc = tl.dot(p.to(rows.dtype), scored, acc * alpha[:, None], input_precision=PRECISION)
    if SPANS:
        known = tl.maximum(positive, m_new + tl.log(tl.maximum(l_i, 1e-37) / LIFT))
        own = (target >= start) & (target < start + BLOCK_N)
        matters = matters | (live & (own | (tile_max - known > threshold))).to(tl.int32)
    return m_new, l_i, acc, matters


@triton.jit(do_not_specialize=["count"])
def softmax_forward(
    hidden, table, targets, losses, lse, directions, partials, positives, spans, count, catalog, split_items, threshold,
    ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPAN_TILES: tl.constexpr,
    PRECISION: tl.constexpr, GRAD: tl.constexpr, SPLIT: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """Store losses and log-sum-exps [M]; with GRAD directions [M, D]; with SPANS what matters, int8 [spans, blocks].

    A direction is the mean of the other items' rows by their softmax less the target's row; 0 for ignored tokens.
    With SPLIT a program sees one part of the catalog and stores partials [splits, M] (log-sum-exp of its items without
    the target), directions [splits, M, D] (the mean of its rows, without the target's) and positives [M];
    `softmax_join` joins them.
    """
    block, split = tl.program_id(0), tl.program_id(1)
    offsets = tl.arange(0, BLOCK_M)
    tokens = block * BLOCK_M + offsets
    columns = tl.arange(0, BLOCK_D)
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, -1).to(tl.int32)
    rows = load_block(hidden, block * BLOCK_M, offsets, columns, count, DIM, BLOCK_D)
    goal = table + tl.maximum(target, 0).to(tl.int64)[:, None] * DIM + columns[None, :]
    known = live[:, None] & (columns < DIM)[None, :]
    positive = tl.sum(rows.to(tl.float32) * tl.load(goal, mask=known, other=0.0).to(tl.float32), 1)
    m_i = tl.full((BLOCK_M,), LOW, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    matters = tl.zeros((BLOCK_M,), tl.int32)
    acc = tl.zeros((BLOCK_M, BLOCK_D if GRAD else 1), tl.float32)
    first = split * split_items
    last = tl.minimum(first + split_items, catalog)
    span = spans + (first // (BLOCK_N * SPAN_TILES)).to(tl.int64) * tl.num_programs(0) + block
    for start in range(first, last, BLOCK_N):
        m_i, l_i, acc, matters = forward_tile(
            rows, table, start, catalog, target, live, positive, threshold, m_i, l_i, acc, matters, columns,
            DIM, BLOCK_D, BLOCK_N, PRECISION, GRAD, SPANS,
        )  # fmt: skip
        if SPANS:  # noqa: SIM102 - this one is the compiler's
            if ((start // BLOCK_N + 1) % SPAN_TILES == 0) | (start + BLOCK_N >= last):
                tl.store(span, tl.max(matters, 0).to(tl.int8))
                span += tl.num_programs(0)
                matters = tl.zeros((BLOCK_M,), tl.int32)
    others = tl.where(l_i == 0, LOWEST, m_i + tl.log(tl.where(l_i == 0, LIFT, l_i) / LIFT))
    if SPLIT:
        place = split.to(tl.int64) * count + tokens
        tl.store(partials + place, others, mask=inside)
        tl.store(positives + tokens, positive, mask=inside & (split == 0))
    else:
        place = tokens.to(tl.int64)
        tl.store(losses + tokens, tl.where(live, loss_of(others, positive), 0.0), mask=inside)
        tl.store(lse + tokens, log_add_exp(others, positive), mask=inside)
    if GRAD:
        acc = acc * tl.where(live, 1.0 / tl.maximum(l_i, 1e-37), 0.0)[:, None]
        if not SPLIT:
            acc -= tl.load(goal, mask=known, other=0.0).to(tl.float32)
        tl.store(
            directions + place[:, None] * DIM + columns[None, :], acc.to(directions.dtype.element_ty),
            mask=inside[:, None] & (columns < DIM)[None, :],
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "splits"])
def softmax_join(
    table, targets, partials, positives, parts, losses, lse, directions, count, splits, ignore_index,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """Join the splits of `softmax_forward`: parts fp32 [splits, M, D] become directions [M, D]."""
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    positive = tl.load(positives + tokens, mask=inside, other=0.0)
    others = tl.full((BLOCK_M,), LOWEST, tl.float32)
    for split in range(splits):
        place = tl.cast(split, tl.int64) * count + tokens
        others = log_add_exp(others, tl.load(partials + place, mask=inside, other=LOWEST))
    tl.store(losses + tokens, tl.where(live, loss_of(others, positive), 0.0), mask=inside)
    tl.store(lse + tokens, log_add_exp(others, positive), mask=inside)
    if GRAD:
        mask = inside[:, None] & (columns < DIM)[None, :]
        goal = table + tl.where(live, target, 0)[:, None] * DIM + columns[None, :]
        acc = -tl.load(goal, mask=mask, other=0.0).to(tl.float32)
        for split in range(splits):
            place = tl.cast(split, tl.int64) * count + tokens
            p = tl.exp(tl.load(partials + place, mask=inside, other=LOWEST) - others)
            acc += p[:, None] * tl.load(parts + place[:, None] * DIM + columns[None, :], mask=mask, other=0.0)
        acc = tl.where(live[:, None], acc, 0.0)
        place = directions + tokens.to(tl.int64)[:, None] * DIM + columns[None, :]
        tl.store(place, acc.to(directions.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def scale_rows(
    directions, losses, weights, out, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """Store in out [M, D] the gradient of hidden: directions [M, D] times (1 - the target's share) x weights [M].

    The product is rounded once, with the weights, and so a loss scale, in it. 0 where the factor is 0.
    """
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = tokens < count
    mask = inside[:, None] & (columns < DIM)[None, :]
    loss = tl.load(losses + tokens, mask=inside, other=0.0)
    factor = (-surplus_of(loss) * tl.load(weights + tokens, mask=inside, other=0.0))[:, None]
    place = tokens.to(tl.int64)[:, None] * DIM + columns[None, :]
    rows = tl.load(directions + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, tl.where(factor != 0, rows * factor, 0.0).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def softmax_state(
    targets, losses, lse, weights, scale, state, count, padded, ignore_index, BLOCK_M: tl.constexpr, FP32: tl.constexpr
):
    """Store state fp32 [4, padded]: for each token the bits of its target, and three numbers that make its shares.

    A share of the softmax is exp_of(logit, state[1]) x state[3], the target's own is state[2]: (softmax - one-hot) x
    weight / scale, lifted; the target's without cancellation for a loss near 0. 0 for ignored tokens and
    beyond M.
    """
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    weight = tl.load(weights + tokens, mask=inside, other=0.0) / tl.maximum(tl.load(scale), 1e-37)
    weight = tl.where(live, weight * LIFT, 0.0)
    loss = tl.load(losses + tokens, mask=inside, other=0.0)
    place, step = state + tokens, tl.cast(padded, tl.int64)
    tl.store(place, tl.where(live, target, -1).to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(place + step, shift_of(tl.load(lse + tokens, mask=inside, other=0.0), FP32))
    tl.store(place + 2 * step, surplus_of(loss) * weight)
    tl.store(place + 3 * step, weight)


@triton.jit
def load_state(state, tokens, padded):
    """Load (target, shift, own share, weight) of tokens [R]."""
    place, step = state + tokens, tl.cast(padded, tl.int64)
    target = tl.load(place).to(tl.int32, bitcast=True)
    return target, tl.load(place + step), tl.load(place + 2 * step), tl.load(place + 3 * step)


@triton.jit
def table_tile(
    acc, scored, hidden, state, start, count, padded, items, columns,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what a tile of tokens gives to acc [B, D]. Tokens beyond M have a weight of 0."""
    offsets = tl.arange(0, BLOCK_M)
    rows = load_block(hidden, start, offsets, columns, count, DIM, BLOCK_D)
    target, shift, own, weight = load_state(state, start + offsets, padded)
    if rows.dtype == tl.float32:  # rounded as forward's are
        logits = tl.trans(tl.dot(rows, tl.trans(scored), input_precision=PRECISION))
    else:
        logits = tl.dot(scored, tl.trans(rows), input_precision=PRECISION)
    p = exp_of(logits, shift[None, :], rows.dtype == tl.float32) * weight[None, :]
    p = tl.where(items[:, None] == target[None, :], own[None, :], p)
    return tl.dot(p.to(rows.dtype), rows, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["count", "sparse_limit"])
def softmax_backward_table(
    hidden, table, state, scale, spans, live_spans, sparse_limit, grad_table, count, padded, catalog,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPAN_ROWS: tl.constexpr,
    SPAN_TILES: tl.constexpr, PRECISION: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """Store grad_table [V, D]: a program makes the sum over the tokens for one tile of items."""
    if (tl.load(live_spans) < sparse_limit) != SPARSE:
        return
    first = tl.program_id(0) * BLOCK_N
    offsets = tl.arange(0, BLOCK_N)
    items = first + offsets
    columns = tl.arange(0, BLOCK_D)
    scored = load_block(table, first, offsets, columns, catalog, DIM, BLOCK_D).to(hidden.dtype.element_ty)
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if SPARSE:
        ahead, blocks = tl.arange(0, LOOK), tl.cdiv(count, SPAN_ROWS)
        span = spans + (first // (BLOCK_N * SPAN_TILES)).to(tl.int64) * blocks
        for begin in range(0, blocks, LOOK):
            matters = tl.load(span + begin + ahead, mask=begin + ahead < blocks, other=0) != 0
            block = tl.min(tl.where(matters, ahead, LOOK), 0)
            while block < LOOK:
                start = (begin + block) * SPAN_ROWS
                for tile in range(start, tl.minimum(start + SPAN_ROWS, count), BLOCK_M):
                    acc = table_tile(
                        acc, scored, hidden, state, tile, count, padded, items, columns, DIM, BLOCK_D, BLOCK_M,
                        PRECISION,
                    )  # fmt: skip
                block = tl.min(tl.where(matters & (ahead > block), ahead, LOOK), 0)
    else:
        for start in range(0, count, BLOCK_M):
            acc = table_tile(
                acc, scored, hidden, state, start, count, padded, items, columns, DIM, BLOCK_D, BLOCK_M, PRECISION
            )
    place = grad_table + first.to(tl.int64) * DIM + (offsets[:, None] * DIM + columns[None, :])
    tl.store(place, acc * (tl.load(scale) / LIFT), mask=(items < catalog)[:, None] & (columns < DIM)[None, :])
