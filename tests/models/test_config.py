"""Configurations that cannot be are refused at construction, with the rule and the values."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsplan.kernels.losses import LOSSES
from srsplan.models.checks import find_loss
from srsplan.models.config import Architecture, Configuration
from srsplan.models.errors import InputError

GOOD: dict[str, Any] = {"loss": "cce-", "catalog": 1000, "batch_size": 8, "seq_len": 20, "negatives": 64}


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"loss": "ccee"}, "unknown loss 'ccee'"),
        ({"catalog": 1}, "catalog 1"),
        ({"catalog": 10**9}, "catalog 1000000000 is above 100000000"),
        ({"catalog": 10**5000}, "catalog an enormous number is above"),
        ({"catalog": "1000"}, "catalog '1000' is not a whole number"),
        ({"loss": []}, "unknown loss a list of 0"),
        ({"loss": "x" * 500}, "unknown loss 'xxx"),
        ({"batch_size": 1 + (1 << 20)}, "batch_size 1048577 is above 1048576"),
        ({"seq_len": 2_000_000_000}, "seq_len 2000000000 is above 65536"),
        ({"tokens_per_set": 10**12}, "tokens_per_set 1000000000000 is above 1048576"),
        ({"tokens_per_set": True}, "tokens_per_set True"),
        ({"negatives": "64"}, "negatives '64'"),
        ({"negatives": 10**5000}, "are not fewer than the catalog's 1000"),
        ({"pass_tokens": True}, "pass_tokens True"),
        ({"pass_tokens": "99"}, "pass_tokens '99'"),
        ({"pass_tokens": 0}, "pass_tokens 0"),
        ({"pass_tokens": 19}, "pass_tokens 19 is smaller than one sequence of seq_len 20"),
        ({"pass_tokens": 1 << 37}, "pass_tokens 137438953472 is above"),
        ({"pass_sequences": 0}, "pass_sequences 0"),
        ({"pass_sequences": 2.0}, "pass_sequences 2.0"),
        ({"pass_sequences": 1 << 21}, "pass_sequences 2097152 is above"),
        ({"kernel": "fast"}, "unknown kernel 'fast'"),
        ({"kernel": "auto"}, "unknown kernel 'auto'"),
        ({"recompute": "no"}, "recompute 'no' is neither true nor false"),
        ({"precision": ["fp16"]}, "unknown precision a list of 1"),
        ({"sampler": {}}, "unknown sampler a dict of 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": -4}, "batch_size -4"),
        ({"batch_size": 2.5}, "batch_size 2.5"),
        ({"batch_size": True}, "batch_size True"),
        ({"seq_len": 0}, "seq_len 0"),
        ({"negatives": None}, "needs a number of negatives"),
        ({"negatives": 1000}, "negatives 1000 are not fewer than the catalog's 1000"),
        ({"loss": "cce"}, "negatives 64 mean nothing"),
        ({"loss": "ce-", "tokens_per_set": 32}, "tokens_per_set 32 is not possible"),
        ({"tokens_per_set": 0}, "tokens_per_set 0"),
        ({"in_batch_share": 0.5}, "'uniform' mixes nothing: in_batch_share 0.5 means nothing"),
        ({"sampler": "mixed", "in_batch_share": -0.1}, "in_batch_share -0.1 is outside [0, 1]"),
        ({"sampler": "mixed", "in_batch_share": True}, "in_batch_share True is outside [0, 1]"),
        ({"candidates": 300}, "'uniform' keeps all that it draws: candidates 300 mean nothing"),
        ({"sampler": "adaptive", "candidates": 1001}, "candidates 1001 are more than the catalog's 1000 items"),
        ({"sampler": "adaptive", "candidates": 63}, "candidates 63 are fewer than the 64 negatives that are kept"),
        ({"sampler": "adaptive", "candidates": 0}, "candidates 0 is not a whole number above zero"),
        ({"sampler": "adaptive", "in_batch_share": 0.5}, "'adaptive' mixes nothing: in_batch_share 0.5 means nothing"),
        ({"calibration": 0.5}, "'cce-' takes no calibration: 0.5 means nothing"),
        ({"loss": "gbce", "calibration": 1.2}, "calibration 1.2 is outside [0, 1]"),
        ({"loss": "gbce", "calibration": "0.5"}, "calibration '0.5' is outside [0, 1]"),
        ({"loss": "gbce", "calibration": float("nan")}, "calibration nan is outside [0, 1]"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"sampler": "zipf"}, "unknown sampler 'zipf'"),
        ({"loss": "cce", "negatives": None, "sampler": "in-batch"}, "'cce' does not draw negatives by 'in-batch'"),
    ],
)
def test_impossible_combinations(change: dict[str, Any], phrase: str) -> None:
    with pytest.raises(InputError) as caught:
        Configuration(**{**GOOD, **change})
    assert phrase in caught.value.message
    assert len(caught.value.message) < 200
    assert caught.value.hint


@pytest.mark.parametrize(
    ("sizes", "phrase"),
    [
        ({"dim": 100}, "dim 100 is not a multiple of 8"),
        ({"dim": 64, "heads": 3}, "heads 3 do not cut dim 64"),
        ({"dim": 64, "heads": 16}, "heads 16"),
        ({"dim": 8192}, "dim 8192 is above 4096"),
        ({"blocks": 0}, "blocks 0"),
        ({"blocks": 3000}, "blocks 3000 is above 64"),
        ({"heads": 10**9}, "heads 1000000000 is above 512"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": float("nan")}, "dropout nan"),
        ({"dropout": "0.1"}, "dropout '0.1'"),
        ({"dropout": True}, "dropout True"),
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


@pytest.mark.parametrize(
    ("change", "phrase", "hint"),
    [
        ({"batchsize": 3}, "unknown key 'batchsize'", "batch_size"),
        ({"architecture": {"dims": 64}}, "unknown key 'architecture.dims'", "dim"),
        ({"architecture": 3}, "architecture = 3", ""),
        ({"architecture": None}, "architecture = None", ""),
        ({"architecture": {"dim": "64"}}, "architecture.dim = '64'", ""),
        ({"architecture": {"blocks": True}}, "architecture.blocks = True", ""),
        ({"batch_size": "8"}, "batch_size = '8'", ""),
        ({"batch_size": True}, "batch_size = True", ""),
        ({"batch_size": 8.0}, "batch_size = 8.0", ""),
        ({"batch_size": 0}, "batch_size 0", "positive"),
        ({"negatives": "all"}, "negatives = 'all'", ""),
        ({"recompute": 1}, "recompute = 1", ""),
        ({"precision": "fp8"}, "precision = 'fp8'", ""),
        ({"loss": None}, "loss = None", ""),
        ({"catalog": 10**5000}, "an enormous number", ""),
    ],
)
def test_a_document_of_other_keys_or_types_is_refused(change: dict[str, Any], phrase: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        Configuration.from_dict({**Configuration(**GOOD).to_dict(), **change})
    assert phrase in caught.value.message
    assert len(caught.value.message) < 200
    assert hint in caught.value.hint


def test_a_document_may_leave_out_what_has_a_default() -> None:
    assert Configuration.from_dict(GOOD) == Configuration(**GOOD)
    found = Configuration.from_dict({**GOOD, "architecture": {"dim": 64}})
    assert found.architecture == Architecture(dim=64)
    with pytest.raises(InputError, match="catalog is missing"):
        Configuration.from_dict({"loss": "cce", "batch_size": 4, "seq_len": 4})


def test_planning_from_sizes_imports_no_pydantic() -> None:
    code = "import sys, srsplan.models.config as c; c.Architecture(); sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_and_the_rule() -> None:
    configuration = Configuration(**GOOD)
    assert (configuration.tokens, configuration.batch_tokens, configuration.balance) == (160, 160, 8)
    assert configuration.table_bytes == 4 * 1000 * 256
    assert find_loss("cce-") is LOSSES["cce-"]


@pytest.mark.parametrize(
    ("tokens", "sequences", "expected"),
    [
        (None, None, (160, 8, False)),
        (160, 8, (160, 8, False)),
        (1000, 1000, (160, 8, False)),  # more than the batch has
        (159, None, (159, 8, True)),
        (20, None, (20, 8, True)),  # one full sequence, or eight short ones
        (None, 8, (160, 8, False)),
        (None, 3, (60, 3, True)),
        (50, 3, (50, 3, True)),
        (70, 3, (60, 3, True)),  # three sequences have no more
        (None, 1, (20, 1, True)),
    ],
)
def test_what_no_pass_exceeds(tokens: int | None, sequences: int | None, expected: tuple[int, int, bool]) -> None:
    """Tokens and sequences of the fullest pass of batches of 8 x 20, and whether there may be several passes."""
    found = Configuration(**GOOD, pass_tokens=tokens, pass_sequences=sequences)
    assert (found.tokens, found.sequences, found.several_passes) == expected


def test_a_pass_has_no_more_sequences_than_tokens() -> None:
    short = Configuration(**{**GOOD, "batch_size": 100, "seq_len": 2, "pass_tokens": 7})
    assert (short.tokens, short.sequences) == (7, 7)
