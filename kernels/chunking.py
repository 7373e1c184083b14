"""The sizes of the chunks that the chunked losses work on: plain arithmetic, shared by the losses and the planner.

Shape letters: M tokens, V items, D hidden size, g tokens that share a set of ns negatives.
"""

from __future__ import annotations

CHUNK_ELEMENTS = 1 << 26
"""Logits (or gathered elements) a chunk may hold: 64 Mi, 256 MiB in fp32. Large enough that a GPU's matrix
products are at full speed, small beside any table that needs chunking."""

SMALLEST_TOKEN_CHUNK = 256
"""Fewer tokens at a time and the full softmax does nothing but read and write the table's gradient. From 262,144 items
on a chunk's logits therefore grow with the catalog: two buffers of [256, V], in 16 bit as much as a table of 256."""

LARGEST_TOKEN_CHUNK = 4096
"""More tokens than this do not make the matrix products faster, only the chunk larger."""

RANKING_CHUNK_ELEMENTS = 1 << 24
"""Scores a chunk of a ranking may hold: 16 Mi. Every score takes 12 bytes at once (its fp32 value and the int64 key
that it is compared by), 192 MiB in all."""

ITEM_ROWS = 1 << 16
"""Rows of the table's gradient that one 16-bit product fills at a time: the block is [65536, D]."""


def softmax_chunk_tokens(tokens: int, catalog: int) -> int:
    """Return the tokens per chunk of the full softmax, never more than M: a chunk's logits are [chunk, V]."""
    chunk = max(SMALLEST_TOKEN_CHUNK, min(LARGEST_TOKEN_CHUNK, CHUNK_ELEMENTS // catalog))
    return max(1, min(tokens, chunk))


def sampled_chunk_sets(tokens: int, negatives: int, dim: int, tokens_per_set: int) -> int:
    """Return the sets per chunk of the sampled softmax: a chunk gathers [sets, ns, D] and scores [sets, g, ns]."""
    elements_per_set = negatives * (dim + tokens_per_set)
    return max(1, min(set_count(tokens, tokens_per_set), CHUNK_ELEMENTS // elements_per_set))


def ranking_chunk_items(users: int, catalog: int) -> int:
    """Return the items per chunk when a catalog is ranked: a chunk's scores are [users, chunk]."""
    return max(1, min(catalog, RANKING_CHUNK_ELEMENTS // max(1, users)))


def set_count(tokens: int, tokens_per_set: int) -> int:
    """Return the number of sets that M tokens form; token n belongs to set n mod sets, so that neighbours part ways."""
    return -(-tokens // tokens_per_set)


def table_copy_pays(sets: int, negatives: int, catalog: int) -> bool:
    """Tell whether a 16-bit copy of an fp32 table is worth making: its rows are read more than once on average."""
    return sets * negatives > catalog
