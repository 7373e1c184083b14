"""Configurations that cannot be are refused at construction, with the rule and the values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsplan.kernels.losses import LOSSES
from srsplan.models.config import Architecture, Configuration, find_loss
from srsplan.models.errors import InputError

GOOD: dict[str, Any] = {"loss": "cce-", "catalog": 1000, "batch_size": 8, "seq_len": 20, "negatives": 64}


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"loss": "ccee"}, "unknown loss 'ccee'"),
        ({"catalog": 1}, "catalog 1"),
        ({"catalog": 10**9}, "catalog 1000000000"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": -4}, "batch_size -4"),
        ({"batch_size": 2.5}, "batch_size 2.5"),
        ({"batch_size": True}, "batch_size True"),
        ({"seq_len": 0}, "seq_len 0"),
        ({"negatives": None}, "needs a number of negatives"),
        ({"negatives": 1000}, "negatives 1000 are not fewer than the catalog's 1000"),
        ({"loss": "cce"}, "negatives 64 mean nothing"),
        ({"loss": "bce"}, "takes 1 negative, not 64"),
        ({"loss": "ce-", "tokens_per_set": 32}, "tokens_per_set 32 is not possible"),
        ({"tokens_per_set": 0}, "tokens_per_set 0"),
        ({"valid_tokens": 161}, "outside 1..160"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"sampler": "zipf"}, "unknown sampler 'zipf'"),
        ({"loss": "bce", "negatives": 1, "sampler": "popularity"}, "'bce' does not draw negatives by 'popularity'"),
        ({"loss": "cce", "negatives": None, "sampler": "in-batch"}, "'cce' does not draw negatives by 'in-batch'"),
    ],
)
def test_impossible_combinations(change: dict[str, Any], phrase: str) -> None:
    with pytest.raises(InputError) as caught:
        Configuration(**{**GOOD, **change})
    assert phrase in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("sizes", "phrase"),
    [
        ({"dim": 100}, "dim 100 is not a multiple of 8"),
        ({"dim": 64, "heads": 3}, "heads 3 do not cut dim 64"),
        ({"dim": 64, "heads": 16}, "heads 16"),
        ({"dim": 8192}, "dim 8192"),
        ({"blocks": 0}, "blocks 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_impossible_architectures(sizes: dict[str, Any], phrase: str) -> None:
    with pytest.raises(InputError) as caught:
        Architecture(**sizes)
    assert phrase in caught.value.message


@given(
    catalog=st.integers(2, 10**7),
    batch_size=st.integers(1, 10**4),
    seq_len=st.integers(1, 10**4),
    dim=st.integers(1, 32).map(lambda eighth: 16 * eighth),
)
def test_a_configuration_survives_json(catalog: int, batch_size: int, seq_len: int, dim: int) -> None:
    configuration = Configuration(
        loss="cce", catalog=catalog, batch_size=batch_size, seq_len=seq_len, architecture=Architecture(dim=dim)
    )
    assert Configuration.from_dict(json.loads(json.dumps(configuration.to_dict()))) == configuration


def test_unknown_keys_are_named() -> None:
    document = Configuration(**GOOD).to_dict()
    with pytest.raises(InputError, match="'batchsize'") as caught:
        Configuration.from_dict({**document, "batchsize": 3})
    assert "batch_size" in caught.value.hint
    with pytest.raises(InputError, match="'dims'"):
        Configuration.from_dict({**document, "architecture": {"dims": 64}})


def test_sizes_and_the_rule() -> None:
    configuration = Configuration(**GOOD)
    assert (configuration.tokens, configuration.fullest_tokens, configuration.balance) == (160, 160, 8)
    assert configuration.table_bytes == 4 * 1000 * 256
    assert find_loss("cce-") is LOSSES["cce-"]
