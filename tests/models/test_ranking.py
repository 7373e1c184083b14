"""Chunked ranking against one big matrix product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from srsplan.kernels import chunking
from srsplan.models.training import ranking


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
@pytest.mark.parametrize("best", [1, 10, 200])
def test_chunks_give_the_ranking_of_the_whole_catalog(chunk: int, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "ranking_chunk_items", lambda users, catalog: chunk)
    torch.manual_seed(0)
    hidden, table = torch.randn(5, 8), torch.randn(100, 8)
    rows, items = (
        np.repeat(np.arange(5), 20),
        np.concatenate([np.random.default_rng(k).permutation(100)[:20] for k in range(5)]),
    )
    seen = ranking.seen_items(rows, items, 100, chunk, torch.device("cpu"))
    scores = hidden @ table.t()
    scores[torch.from_numpy(rows), torch.from_numpy(items)] = -torch.inf
    found = ranking.rank_hidden(hidden, table, seen, best)
    assert found.shape == (5, min(best, 100))
    unseen = min(best, 80)
    assert torch.equal(found[:, :unseen], scores.topk(unseen, dim=1).indices)
    assert torch.equal(ranking.rank_hidden(hidden, table, None, 3), (hidden @ table.t()).topk(3, dim=1).indices)


def test_a_chunk_of_scores_stays_small() -> None:
    for users in (1, 64, 1024):
        for catalog in (10, 1_000_000, 100_000_000):
            chunk = chunking.ranking_chunk_items(users, catalog)
            assert 1 <= chunk <= catalog
            assert users * chunk <= chunking.CHUNK_ELEMENTS
