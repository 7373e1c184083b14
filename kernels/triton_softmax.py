"""The full softmax as Triton kernels: cut cross-entropy, no logits in memory, no atomic adds, no work on empty tiles.

Wijmans et al., 2024, Cut your losses in large-vocabulary language models, https://arxiv.org/abs/2411.09009.
Shape letters: M tokens, V items, D hidden size, R rows (tokens) of a block, B items of a tile, a span is SPAN tiles.

Forward walks over the catalog with a running log-sum-exp that begins at the target's logit. It is never above the final
one, so an entry that is negligible against it is negligible: one byte per block of rows and span remembers whether any
entry of it matters. Backward recomputes the rest twice, once by rows and once by items: that is one matrix product more
than adding both gradients in one pass would be, but each sum is then made in registers, in a fixed order, and the
result is bitwise repeatable.
"""

from __future__ import annotations

import triton
import triton.language as tl

from srsplan.kernels.triton_sampled import LOWEST, load_rows

SPAN = 8
"""Tiles that share a byte: 25,600 blocks x 1.66 million items make 41 MB of them, not 660."""

LIFT = tl.constexpr(1024.0)
"""Shares are lifted before they are rounded to 16 bit: fp16 then holds shares down to 6e-11 instead of 6e-8."""


@triton.jit
def tile_logits(rows, table, start, catalog, columns, DIM: tl.constexpr, TILE: tl.constexpr, COMPUTE: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """(items [B], which of them exist, their rows [B, D], logits [R, B])"""
    items = start + tl.arange(0, TILE)
    exists = items < catalog
    scored = load_rows(table, items, columns, exists, DIM).to(COMPUTE)
    return items, exists, scored, tl.dot(rows, tl.trans(scored), input_precision=PRECISION)


@triton.jit
def softmax_forward(
    hidden, table, targets, positives, partials, spans, count, catalog, split_items, span_count, threshold,
    ignore_index,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPAN_ITEMS: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """positives fp32 [M]; partials fp32 [splits, M], log-sum-exp of a split's items without the target."""
    block, split = tl.program_id(0), tl.program_id(1)
    tokens = block * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    target = tl.where(live, target, 0)
    rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
    positive = tl.sum(rows.to(tl.float32) * load_rows(table, target, columns, live, DIM).to(tl.float32), 1)
    largest = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    first = split * split_items
    for start in range(first, tl.minimum(first + split_items, catalog), SPAN_ITEMS):
        matters = tl.max((live & (target >= start) & (target < start + SPAN_ITEMS)).to(tl.int32), 0)
        for tile in range(start, tl.minimum(start + SPAN_ITEMS, catalog), TILE):
            items, exists, _, logits = tile_logits(rows, table, tile, catalog, columns, DIM, TILE, COMPUTE, PRECISION)
            others = exists[None, :] & (items[None, :] != target[:, None])
            logits = tl.where(others, logits, LOWEST)
            above = tl.maximum(largest, tl.max(logits, 1))
            total = total * tl.exp(largest - above) + tl.sum(tl.where(others, tl.exp(logits - above[:, None]), 0.0), 1)
            largest = above
            known = tl.maximum(positive, largest + tl.log(tl.maximum(total, 1e-37)))
            excess = tl.where(live, tl.max(logits, 1) - known, LOWEST)
            matters = tl.maximum(matters, (tl.max(excess, 0) > threshold).to(tl.int32))
        tl.store(spans + block.to(tl.int64) * span_count + start // SPAN_ITEMS, matters.to(tl.int8))
    partial = tl.where(total > 0, largest + tl.log(tl.maximum(total, 1e-37)), LOWEST)
    tl.store(partials + split.to(tl.int64) * count + tokens, partial, mask=inside)
    tl.store(positives + tokens, positive, mask=inside & (split == 0))


@triton.jit
def shares_of(logits, items, exists, target, live, loss, log_sum_exp, weight):
    """(softmax - one-hot) x weight, [R, B], lifted; the target's own entry without cancellation for a loss near 0."""
    surplus = -tl.where(loss < 0.01, loss - loss * loss * 0.5, 1.0 - tl.exp(-loss))
    share = tl.exp(tl.minimum(logits - log_sum_exp[:, None], 0.0))
    share = tl.where(items[None, :] == target[:, None], surplus[:, None], share)
    share = tl.where(exists[None, :] & live[:, None], share, 0.0)
    return share * (weight * LIFT)[:, None]


@triton.jit
def row_state(targets, losses, sums, weights, scale, tokens, count, ignore_index):
    """(target, live, loss, log-sum-exp, weight relative to the largest), each [R]"""
    inside = tokens < count
    target = tl.load(targets + tokens, mask=inside, other=ignore_index)
    live = target != ignore_index
    unit = tl.maximum(tl.abs(tl.load(scale)), 1e-37)
    weight = tl.load(weights + tokens, mask=inside, other=0.0) / unit
    loss = tl.load(losses + tokens, mask=inside, other=0.0)
    return tl.where(live, target, -1), live, loss, tl.load(sums + tokens, mask=inside, other=0.0), weight


@triton.jit
def softmax_backward_hidden(
    hidden, table, targets, losses, sums, weights, scale, spans, grad_hidden, count, catalog, span_count, ignore_index,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPAN_ITEMS: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_hidden [M, D]: a program makes the sum over the catalog for one block of rows."""
    block = tl.program_id(0)
    tokens = block * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    target, live, loss, log_sum_exp, weight = row_state(
        targets, losses, sums, weights, scale, tokens, count, ignore_index
    )
    rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
    grad = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, catalog, SPAN_ITEMS):
        if tl.load(spans + block.to(tl.int64) * span_count + start // SPAN_ITEMS) != 0:
            for tile in range(start, tl.minimum(start + SPAN_ITEMS, catalog), TILE):
                items, exists, scored, logits = tile_logits(
                    rows, table, tile, catalog, columns, DIM, TILE, COMPUTE, PRECISION
                )
                share = shares_of(logits, items, exists, target, live, loss, log_sum_exp, weight).to(COMPUTE)
                grad += tl.dot(share, scored, input_precision=PRECISION)
    place = grad_hidden + tokens.to(tl.int64)[:, None] * DIM + columns[None, :]
    grad = grad * (tl.load(scale) / LIFT)
    mask = (tokens < count)[:, None] & (columns < DIM)[None, :]
    tl.store(place, grad.to(grad_hidden.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward_table(
    hidden, table, targets, losses, sums, weights, scale, spans, grad_table, count, catalog, span_count, ignore_index,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPAN_ITEMS: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_table [V, D]: a program makes the sum over the tokens for one tile of items."""
    first = tl.program_id(0) * TILE
    columns = tl.arange(0, WIDTH)
    items = first + tl.arange(0, TILE)
    exists = items < catalog
    scored = load_rows(table, items, columns, exists, DIM).to(COMPUTE)
    grad = tl.zeros((TILE, WIDTH), tl.float32)
    span = spans + first // SPAN_ITEMS
    for start in range(0, count, ROWS):
        if tl.load(span) != 0:
            tokens = start + tl.arange(0, ROWS)
            target, live, loss, log_sum_exp, weight = row_state(
                targets, losses, sums, weights, scale, tokens, count, ignore_index
            )
            rows = load_rows(hidden, tokens, columns, live, DIM).to(COMPUTE)
            logits = tl.dot(rows, tl.trans(scored), input_precision=PRECISION)
            share = shares_of(logits, items, exists, target, live, loss, log_sum_exp, weight).to(COMPUTE)
            grad += tl.dot(tl.trans(share), rows, input_precision=PRECISION)
        span += span_count
    place = grad_table + items.to(tl.int64)[:, None] * DIM + columns[None, :]
    tl.store(place, grad * (tl.load(scale) / LIFT), mask=exists[:, None] & (columns < DIM)[None, :])
