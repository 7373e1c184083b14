"""The generator of the eager and the chunked forms: frozen, uniform, independent, the same however it is asked."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from srsplan.kernels import Sampling, cce_neg, ce_neg, chunking
from srsplan.kernels.samplers.alias_table import Distribution, distribution
from srsplan.kernels.samplers.draw import Stream, draw_items, draw_uniform
from srsplan.kernels.samplers.in_batch import InBatch, in_batch
from srsplan.kernels.samplers.mixed import mixed
from srsplan.profiler.memory.ledger import Ledger

CPU, META = torch.device("cpu"), torch.device("meta")
BITS = 2**64 - 1


def uniform(counts: Tensor, expected: NDArray[np.float64] | None = None) -> bool:
    """Whether counts pass a chi-square test."""
    return float(chisquare(counts.numpy(), expected).pvalue) > 1e-4


def independent(items: Tensor, others: Tensor, sides: int) -> bool:
    """Whether pairs of numbers below `sides` are equally frequent."""
    return uniform(torch.bincount((items * sides + others).reshape(-1), minlength=sides**2))


def splitmix64(state: int) -> int:
    """Steele, Lea, Flood, 2014, figure 17, without the last exclusive or, which upper bits do not see."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & BITS
    return (state ^ state >> 27) * 0x94D049BB133111EB & BITS


def test_the_generator_is_frozen() -> None:
    """A resumed run, and a pass of a batch on another machine or in another version, draw what the first did."""
    sampling = Sampling(seed=42, step=7)
    assert draw_uniform((2, 4), 10**6, sampling, 5, CPU).tolist() == [
        [734140, 406390, 336300, 533077],
        [824836, 36495, 430936, 290194],
    ]
    assert draw_uniform((1, 4), 10**8, sampling, 2**31, CPU).tolist() == [[15975563, 72537711, 78211719, 62262818]]
    assert draw_uniform((1, 4), 1000, sampling, 0, CPU, Stream.COINS).tolist() == [[553, 796, 551, 391]]


@pytest.mark.parametrize("catalog", [2, 1000, 10**8])
def test_it_is_the_published_one(catalog: int) -> None:
    """With integers of any size, and items as the floor of a 64-bit fraction times V, instead of int64 that wrap."""
    golden_ratio = 0x9E3779B97F4A7C15
    key = int.from_bytes(blake2b(b"3 11 0", digest_size=8).digest(), "little")
    starts = [splitmix64(key + number * golden_ratio & BITS) for number in range(9, 12)]
    truth = [[splitmix64(start + n * golden_ratio & BITS) * catalog >> 64 for n in range(50)] for start in starts]
    assert draw_uniform((3, 50), catalog, Sampling(seed=3, step=11), 9, CPU).tolist() == truth


@pytest.mark.parametrize("catalog", [1, 2, 37, 1000])
def test_uniform_draws_pass_a_chi_square_test(catalog: int) -> None:
    items = draw_uniform((40, 3200), catalog, Sampling(seed=1), 0, CPU)
    counts = torch.bincount(items.reshape(-1), minlength=catalog)
    assert len(counts) == catalog
    assert catalog == 1 or uniform(counts)


def test_a_hundred_million_items_are_equally_likely() -> None:
    """Of 2^36 fractions an item has 687 or 688; and the draws are spread over coarse and fine parts of the catalog."""
    catalog = 10**8
    fractions = 1 << 63 - catalog.bit_length()
    assert fractions == 2**36
    assert 1 / (fractions // catalog) < 0.0015
    items = draw_uniform((400, 2500), catalog, Sampling(seed=2), 0, CPU)
    assert 0 <= items.min() < 10**4 < catalog - 10**4 < items.max() < catalog
    for part in (items * 500 // catalog, items % 500):
        assert uniform(torch.bincount(part.reshape(-1), minlength=500))
    repeated = items.numel() - len(items.unique())
    expected = items.numel() ** 2 / 2 / catalog
    assert abs(repeated - expected) < 4 * expected**0.5


def test_draws_of_neighbours_are_independent() -> None:
    """Places next to each other and a window's sets apart, the same and the next place of other sets, steps, seeds."""
    items, *others = (
        draw_uniform((600, 500), 16, sampling, 0, CPU)
        for sampling in (Sampling(seed=3), Sampling(seed=3, step=1), Sampling(seed=4))
    )
    for one, other in (
        (items[:, :-1], items[:, 1:]), (items[:, :-256], items[:, 256:]), (items[:-1], items[1:]),
        (items[:-256], items[256:]), (items[:-1, :-1], items[1:, 1:]), *((items, each) for each in others),
    ):  # fmt: skip
        assert independent(one, other, 16)


def test_seeds_and_steps_do_not_stand_for_each_other() -> None:
    drawn = [
        draw_uniform((1, 8), 10**6, Sampling(seed=seed, step=step), 0, CPU)
        for seed, step in ((1, 12), (11, 2), (112, 0), (2**63 + 1, 12), (1, 2**32 + 12))
    ]
    assert len({tuple(each[0].tolist()) for each in drawn}) == len(drawn)


def test_weighted_draws_follow_their_weights() -> None:
    """An item's coin is independent of its slot: among draws of every slot, as many go to the alias as it says."""
    weights = 1 / np.arange(1, 301) ** 0.9
    drawn_by = distribution(weights)
    items = draw_items((40, 6400), 300, Sampling(seed=1), 0, CPU, drawn_by)
    assert uniform(torch.bincount(items.reshape(-1), minlength=300), weights / weights.sum() * items.numel())
    coins = draw_uniform((40, 6400), 16, Sampling(seed=1), 0, CPU, Stream.COINS)
    assert independent(draw_uniform((40, 6400), 16, Sampling(seed=1), 0, CPU), coins, 16)


@pytest.mark.parametrize("source", ["uniform", "weighted", "in-batch", "mixed"])
def test_a_set_draws_the_same_in_every_company(source: str) -> None:
    drawn_by: dict[str, Distribution | InBatch | None] = {
        "uniform": None, "weighted": distribution(np.arange(1.0, 91)), "in-batch": in_batch(torch.arange(50), 90),
        "mixed": mixed(torch.arange(50), 90, 30, 0.4),
    }  # fmt: skip
    sampling = Sampling(seed=8, step=2)
    whole = draw_items((40, 30), 90, sampling, 100, CPU, drawn_by[source])
    for first, count, negatives in ((0, 1, 30), (7, 5, 30), (39, 1, 3), (0, 40, 29)):
        part = draw_items((count, negatives), 90, sampling, 100 + first, CPU, drawn_by[source])
        assert torch.equal(part, whole[first : first + count, :negatives])


@pytest.mark.parametrize("tokens_per_set", [1, 4])
def test_losses_do_not_depend_on_the_chunk(tokens_per_set: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(37, 8), torch.randn(600, 8), torch.randint(600, (37,))
    sampling = Sampling(tokens_per_set=tokens_per_set, seed=1, step=2, blocks=tokens_per_set != 1)
    found = []
    for chunk in (1, 3, 100):
        monkeypatch.setattr(chunking, "sampled_chunk_sets", lambda *sizes, chunk=chunk: chunk)
        found.append(cce_neg(hidden, table, targets, 9, sampling=sampling, reduction="none"))
    if tokens_per_set == 1:
        found.append(ce_neg(hidden, table, targets, 9, sampling=sampling, reduction="none"))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-5, atol=1e-6)


def test_little_memory_is_held_beside_the_items() -> None:
    """In units of an int64 for every item; on meta tensors, as the planner traces it."""
    kinds = (torch.float32, torch.int32, torch.float32)
    weighted = Distribution(*(torch.empty(1000, dtype=kind, device=META) for kind in kinds))
    for drawn_by, units in ((None, 2), (InBatch(torch.empty(50, dtype=torch.long, device=META), weighted.log_prob), 2),
                            (weighted, 2.63)):  # fmt: skip
        ledger = Ledger()
        with ledger:
            items = draw_items((256, 4096), 1000, Sampling(), 0, META, drawn_by)
        assert items.shape == (256, 4096)
        assert ledger.trace.peak().allocated_bytes <= (units + 0.01) * 8 * items.numel()
