"""The sizes of the chunks that the chunked losses work on: plain arithmetic, shared by the losses and the planner.

Shape letters: N tokens of a batch, M tokens of a call, V items, D hidden size, g tokens that share a set of ns
negatives, R sets of a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHUNK_ELEMENTS = 1 << 26
"""Logits (or gathered elements) a chunk may hold: 64 Mi, 256 MiB in fp32. Large enough that a GPU's matrix
products are at full speed, small beside any table that needs chunking."""

CPU_CHUNK_ELEMENTS = 1 << 23
"""The same on a CPU, whose caches make smaller chunks faster: Amazon Video's step takes a fifth less time."""

SMALLEST_TOKEN_CHUNK = 256
"""Fewer tokens at a time and the full softmax does nothing but read and write the table's gradient. From 262,144 items
on a chunk's logits therefore grow with the catalog: two buffers of [256, V], in 16 bit as much as a table of 256."""

LARGEST_TOKEN_CHUNK = 4096
"""More tokens than this do not make the matrix products faster, only the chunk larger."""

RANKING_CHUNK_ELEMENTS = 1 << 24
"""Scores a chunk of a ranking may hold: 16 Mi. Every score takes 12 bytes at once (its fp32 value and the int64 key
that it is compared by), 192 MiB in all."""

SETS_PER_WINDOW = 256
"""Sets that the tokens of a window are dealt to, at most. Many enough that neighbours of one sequence rarely meet in a
set, few enough that a pass over a part of a batch draws few sets that another pass draws as well."""

ITEM_ROWS = 1 << 16
"""Rows of the table's gradient that one 16-bit product fills at a time: the block is [65536, D]."""


COPY_READS = 3
"""Reads of an fp32 row from which on a 16-bit copy of it pays."""

TRACED_CHUNKS = 5
"""Chunks that a loss runs on meta tensors, at most: the first, some between, and the last."""


def chunk_starts(count: int, chunk: int, traced: bool) -> list[int]:
    """Return where each chunk of `count` rows begins.

    Where a step is only `traced`, on meta tensors, nothing is computed, and chunks of one size take the same memory one
    after another: a few stand for thousands, of which each would take milliseconds to trace.
    """
    starts = range(0, count, chunk)
    if not traced or len(starts) <= TRACED_CHUNKS:
        return [*starts]
    return [*starts[: TRACED_CHUNKS - 1], starts[-1]]


def softmax_chunk_tokens(tokens: int, catalog: int, on_cpu: bool = False) -> int:
    """Return the tokens per chunk of the full softmax, never more than M: a chunk's logits are [chunk, V]."""
    elements = CPU_CHUNK_ELEMENTS if on_cpu else CHUNK_ELEMENTS
    chunk = max(SMALLEST_TOKEN_CHUNK, min(LARGEST_TOKEN_CHUNK, elements // catalog))
    return max(1, min(tokens, chunk))


def sampled_chunk_sets(tokens: int, negatives: int, dim: int, tokens_per_set: int) -> int:
    """Return the sets per chunk of the sampled softmax: a chunk gathers [sets, ns, D] and scores [sets, g, ns].

    They follow from the call's own tokens, whatever the batch that it is a part of.
    """
    elements_per_set = negatives * (dim + tokens_per_set)
    return max(1, min(call_sets(tokens, tokens_per_set), CHUNK_ELEMENTS // elements_per_set))


def buckets(tokens: int) -> int:
    """Return b: the buckets of the scalable cross-entropy, and the tokens of each, 2 sqrt(M), never more than M.

    Mezentsev et al., 2024, with their alpha 2 and beta 1: as many buckets as tokens of each, together 4 M.
    """
    return max(1, min(tokens, math.isqrt(4 * tokens)))


def bucket_chunk(buckets: int, rows: int) -> int:
    """Return the buckets of a chunk that R rows are looked through for: a chunk's scores are [chunk, R]."""
    return max(1, min(buckets, CHUNK_ELEMENTS // rows))


def ranking_chunk_items(users: int, catalog: int) -> int:
    """Return the items per chunk when a catalog is ranked: a chunk's scores are [users, chunk]."""
    return max(1, min(catalog, RANKING_CHUNK_ELEMENTS // max(1, users)))


def set_count(tokens: int, tokens_per_set: int) -> int:
    """Return the number of sets that M tokens need, g in each."""
    return -(-tokens // tokens_per_set)


def table_copy_pays(tokens: int, tokens_per_set: int, negatives: int, catalog: int) -> bool:
    """Tell whether a 16-bit copy of an fp32 table is worth making: its rows are read more than three times on average.

    A row that is copied costs six bytes an entry, four read and two written; each read of the copy saves two.
    """
    return set_count(tokens, tokens_per_set) * negatives > COPY_READS * catalog


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The sets that a batch's tokens form: they depend on the whole batch, not on the calls that it is cut into.

    Tokens are cut into windows of R x g consecutive ones. Token n is in window w = n // (R x g) and in set
    w x R + n mod R, at place n // R of its window: the stride puts neighbours into different sets.
    """

    stride: int
    """R: sets of a window."""
    tokens_per_set: int
    """g: places of a set."""

    @classmethod
    def of(cls, batch_tokens: int, tokens_per_set: int) -> Windows:
        """Return the windows of a batch of N tokens: as few as sets of a window allow, and of about equal size."""
        windows = max(1, -(-batch_tokens // (tokens_per_set * SETS_PER_WINDOW)))
        return cls(stride=max(1, -(-batch_tokens // (windows * tokens_per_set))), tokens_per_set=tokens_per_set)

    @property
    def tokens(self) -> int:
        """The tokens of a window."""
        return self.stride * self.tokens_per_set

    def sets(self, first: int, count: int) -> range:
        """Return the sets that tokens `first` to `first + count` of the batch belong to.

        Where the tokens of a window take more than one place of its sets, all of its sets are listed.
        """
        if not count:
            return range(0)
        last = first + count - 1
        begin, end = first // self.tokens * self.stride, last // self.tokens * self.stride + self.stride
        # of a window that is touched in one place, a row of R tokens, only some sets
        if first // self.stride == last // self.stride or (first // self.stride + 1) % self.tokens_per_set == 0:
            begin += first % self.stride
        if first // self.stride == last // self.stride or last // self.stride % self.tokens_per_set == 0:
            end += last % self.stride + 1 - self.stride
        return range(begin, end)


def call_sets(tokens: int, tokens_per_set: int) -> int:
    """Return the sets of a call over M tokens that is a batch by itself."""
    return len(Windows.of(tokens, tokens_per_set).sets(0, tokens))
