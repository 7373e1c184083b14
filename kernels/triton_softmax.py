"""The full softmax as Triton kernels: cut cross-entropy, no logits in memory, no atomic adds, no work on empty tiles.

Wijmans et al., 2024, Cut your losses in large-vocabulary language models, https://arxiv.org/abs/2411.09009.
Shape letters: M tokens, V items, D hidden size, R rows (tokens) of a block, B items of a tile.

A program keeps its block in shared memory and walks over the other side a tile at a time, so that a byte that is read
serves a whole block, and products are large enough for the widest tensor-core instruction (64 rows and more on Hopper).

Forward walks over the catalog with a running log-sum-exp that begins at the target's logit. It is never above the final
one, so an entry that is negligible against it is negligible: one byte per block of rows and span of SPAN_ITEMS items
remembers whether any entry of it matters. Backward recomputes the rest twice, once by rows and once by items: that is
one matrix product more than adding both gradients in one pass would be, but each sum is then made in registers, in a
fixed order, and the result is bitwise repeatable. Each backward kernel comes twice: dense, where a copy of the next
tile overlaps the products of this one, and with a look at every span, which pays only where most of them are empty.
Both are launched, and the number of spans that matter decides on the card which of the two returns at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from srsplan.kernels.triton_sampled import LOWEST

LOW = tl.constexpr(-1e20)
"""Where a running maximum begins: above LOWEST, which stands for an excluded entry, and below every logit."""

SPARSE_SHARE = 0.4
"""Of spans that matter: below it, looking at each is worth more than overlapping copies."""

LIFT = tl.constexpr(1024.0)
"""Shares are lifted before they are rounded to 16 bit: fp16 then holds shares down to 6e-11 instead of 6e-8."""

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp_of(logits, shift, FP32: tl.constexpr):
    """exp(logits - shift) where shift comes from `shift_of`; one multiply-add where 16-bit products allow its rounding.

    logits x log2 e is rounded to 2^-24 of itself, which is what fp32 has to lose when logits are 30.
    """
    return tl.exp2((logits - shift) * LOG2_E if FP32 else logits * LOG2_E - shift)


@triton.jit
def shift_of(logits, FP32: tl.constexpr):
    """A logit as `exp_of` takes it away."""
    return logits if FP32 else logits * LOG2_E


@triton.jit
def load_block(base, first, offsets, columns, end, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first + offsets [R] of a [*, D] matrix as [R, WIDTH]; 0 from row `end` on and beyond column D."""
    place = base + tl.cast(first, tl.int64) * DIM + (offsets[:, None] * DIM + columns[None, :])
    if WIDTH == DIM:
        block = tl.load(place, mask=(offsets < end - first)[:, None], other=0.0)
    else:
        block = tl.load(place, mask=(offsets < end - first)[:, None] & (columns < DIM)[None, :], other=0.0)
    return block


@triton.jit
def forward_tile(
    rows, table, start, catalog, target, live, positive, threshold, largest, total, matters, columns,
    DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Largest logit, sum of exp (logit - largest), and whether the span matters so far, each [R], one tile on."""
    offsets = tl.arange(0, TILE)
    scored = load_block(table, start, offsets, columns, catalog, DIM, WIDTH).to(rows.dtype)
    logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
    logits = tl.where(offsets[None, :] != (target - start)[:, None], logits, LOWEST)
    if start + TILE > catalog:
        logits = tl.where((offsets < catalog - start)[None, :], logits, LOWEST)
    tile_largest = tl.max(logits, 1)
    above = tl.maximum(largest, tile_largest)
    total *= tl.exp2((largest - above) * LOG2_E)
    FP32: tl.constexpr = rows.dtype == tl.float32
    total += tl.sum(exp_of(logits, shift_of(above, FP32)[:, None], FP32), 1)
    known = tl.maximum(positive, above + tl.log(tl.maximum(total, 1e-37)))
    own = (target >= start) & (target < start + TILE)
    matters = matters | (live & (own | (tile_largest - known > threshold))).to(tl.int32)
    return above, total, matters


@triton.jit
def softmax_forward(
    hidden, table, targets, positives, partials, spans, count, catalog, split_items, span_count, threshold,
    ignore_index,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPAN_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """positives fp32 [M]; partials fp32 [splits, M], log-sum-exp of a split's items without the target."""
    block, split = tl.program_id(0), tl.program_id(1)
    offsets = tl.arange(0, ROWS)
    tokens = block * ROWS + offsets
    columns = tl.arange(0, WIDTH)
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, -1).to(tl.int32)
    rows = load_block(hidden, block * ROWS, offsets, columns, count, DIM, WIDTH)
    goal = table + tl.maximum(target, 0).to(tl.int64)[:, None] * DIM + columns[None, :]
    goal = tl.load(goal, mask=live[:, None] & (columns < DIM)[None, :], other=0.0)
    positive = tl.sum(rows.to(tl.float32) * goal.to(tl.float32), 1)
    largest = tl.full((ROWS,), LOW, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    matters = tl.zeros((ROWS,), tl.int32)
    first = split * split_items
    last = tl.minimum(first + split_items, catalog)
    span = spans + block.to(tl.int64) * span_count + first // (TILE * SPAN_TILES)
    for start in range(first, last, TILE):
        largest, total, matters = forward_tile(
            rows, table, start, catalog, target, live, positive, threshold, largest, total, matters, columns,
            DIM, WIDTH, TILE, PRECISION,
        )  # fmt: skip
        if ((start // TILE + 1) % SPAN_TILES == 0) | (start + TILE >= last):
            tl.store(span, tl.max(matters, 0).to(tl.int8))
            span += 1
            matters = tl.zeros((ROWS,), tl.int32)
    partial = tl.where(total > 0, largest + tl.log(tl.maximum(total, 1e-37)), LOWEST)
    tl.store(partials + split.to(tl.int64) * count + tokens, partial, mask=inside)
    tl.store(positives + tokens, positive, mask=inside & (split == 0))


@triton.jit
def softmax_state(
    targets, losses, sums, weights, scale, state, count, padded, ignore_index, ROWS: tl.constexpr, FP32: tl.constexpr
):
    """state fp32 [4, padded]: of a token the bits of its target, and three numbers that make its shares.

    A share of the softmax is exp_of(logit, state[1]) x state[3], the target's own is state[2]: (softmax - one-hot) x
    weight / scale, lifted; the target's without cancellation for a loss near 0. 0 for ignored tokens and
    beyond M.
    """
    tokens = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    weight = tl.load(weights + tokens, mask=inside, other=0.0) / tl.maximum(tl.load(scale), 1e-37)
    weight = tl.where(live, weight * LIFT, 0.0)
    loss = tl.load(losses + tokens, mask=inside, other=0.0)
    surplus = -tl.where(loss < 0.01, loss - loss * loss * 0.5, 1.0 - tl.exp2(-loss * LOG2_E))
    place, step = state + tokens, padded.to(tl.int64)
    tl.store(place, tl.where(live, target, -1).to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(place + step, shift_of(tl.load(sums + tokens, mask=inside, other=0.0), FP32))
    tl.store(place + 2 * step, surplus * weight)
    tl.store(place + 3 * step, weight)


@triton.jit
def load_state(state, tokens, padded):
    """(target, shift, own share, weight) of tokens [R]."""
    place, step = state + tokens, padded.to(tl.int64)
    target = tl.load(place).to(tl.int32, bitcast=True)
    return target, tl.load(place + step), tl.load(place + 2 * step), tl.load(place + 3 * step)


@triton.jit
def hidden_tile(
    grad, rows, table, start, catalog, target, shift, own, weight, columns,
    DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad [R, D] and what a tile of items adds to it. Items that do not exist are rows of 0 and add nothing."""
    offsets = tl.arange(0, TILE)
    scored = load_block(table, start, offsets, columns, catalog, DIM, WIDTH).to(rows.dtype)
    logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
    share = exp_of(logits, shift[:, None], rows.dtype == tl.float32) * weight[:, None]
    share = tl.where(offsets[None, :] == (target - start)[:, None], own[:, None], share)
    return tl.dot(share.to(rows.dtype), scored, grad, input_precision=PRECISION)


@triton.jit
def softmax_backward_hidden(
    hidden, table, state, scale, spans, live_spans, sparse_limit, grad_hidden, count, padded, catalog, split_items,
    span_count,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPAN_ROWS: tl.constexpr,
    SPAN_TILES: tl.constexpr, PRECISION: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """grad_hidden [splits, M, D]: a program makes the sum over a split of the catalog for one block of rows."""
    if (tl.load(live_spans) < sparse_limit) != SPARSE:
        return
    block, split = tl.program_id(0), tl.program_id(1)
    offsets = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    target, shift, own, weight = load_state(state, block * ROWS + offsets, padded)
    rows = load_block(hidden, block * ROWS, offsets, columns, count, DIM, WIDTH)
    grad = tl.zeros((ROWS, WIDTH), tl.float32)
    first = split * split_items
    last = tl.minimum(first + split_items, catalog)
    if SPARSE:
        span = spans + (block * ROWS // SPAN_ROWS).to(tl.int64) * span_count + first // (TILE * SPAN_TILES)
        for start in range(first, last, TILE * SPAN_TILES):
            if tl.load(span) != 0:
                for tile in range(start, tl.minimum(start + TILE * SPAN_TILES, last), TILE):
                    grad = hidden_tile(
                        grad, rows, table, tile, catalog, target, shift, own, weight, columns,
                        DIM, WIDTH, TILE, PRECISION,
                    )  # fmt: skip
            span += 1
    else:
        for start in range(first, last, TILE):
            grad = hidden_tile(
                grad, rows, table, start, catalog, target, shift, own, weight, columns, DIM, WIDTH, TILE, PRECISION
            )
    place = (split.to(tl.int64) * count + block * ROWS) * DIM + (offsets[:, None] * DIM + columns[None, :])
    grad = (grad * (tl.load(scale) / LIFT)).to(grad_hidden.dtype.element_ty)
    tl.store(grad_hidden + place, grad, mask=(offsets < count - block * ROWS)[:, None] & (columns < DIM)[None, :])


@triton.jit
def table_tile(
    grad, scored, hidden, state, start, count, padded, items, columns,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad [B, D] and what a tile of tokens adds to it. Tokens beyond M have a weight of 0."""
    offsets = tl.arange(0, ROWS)
    rows = load_block(hidden, start, offsets, columns, count, DIM, WIDTH)
    target, shift, own, weight = load_state(state, start + offsets, padded)
    if rows.dtype == tl.float32:  # rounded as forward's are
        logits = tl.trans(tl.dot(rows, tl.trans(scored), input_precision=PRECISION))
    else:
        logits = tl.dot(scored, tl.trans(rows), input_precision=PRECISION)
    share = exp_of(logits, shift[None, :], rows.dtype == tl.float32) * weight[None, :]
    share = tl.where(items[:, None] == target[None, :], own[None, :], share)
    return tl.dot(share.to(rows.dtype), rows, grad, input_precision=PRECISION)


@triton.jit
def softmax_backward_table(
    hidden, table, state, scale, spans, live_spans, sparse_limit, grad_table, count, padded, catalog, span_count,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPAN_ROWS: tl.constexpr,
    SPAN_TILES: tl.constexpr, PRECISION: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """grad_table [V, D]: a program makes the sum over the tokens for one tile of items."""
    if (tl.load(live_spans) < sparse_limit) != SPARSE:
        return
    first = tl.program_id(0) * TILE
    offsets = tl.arange(0, TILE)
    items = first + offsets
    columns = tl.arange(0, WIDTH)
    scored = load_block(table, first, offsets, columns, catalog, DIM, WIDTH).to(hidden.dtype.element_ty)
    grad = tl.zeros((TILE, WIDTH), tl.float32)
    if SPARSE:
        span = spans + first // (TILE * SPAN_TILES)
        for start in range(0, count, SPAN_ROWS):
            if tl.load(span) != 0:
                for tile in range(start, tl.minimum(start + SPAN_ROWS, count), ROWS):
                    grad = table_tile(
                        grad, scored, hidden, state, tile, count, padded, items, columns, DIM, WIDTH, ROWS, PRECISION
                    )
            span += span_count
    else:
        for start in range(0, count, ROWS):
            grad = table_tile(
                grad, scored, hidden, state, start, count, padded, items, columns, DIM, WIDTH, ROWS, PRECISION
            )
    place = grad_table + first.to(tl.int64) * DIM + (offsets[:, None] * DIM + columns[None, :])
    tl.store(place, grad * (tl.load(scale) / LIFT), mask=(items < catalog)[:, None] & (columns < DIM)[None, :])
