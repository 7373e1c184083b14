"""eSASRec: its blocks against RecTools' on copied weights, what surrounds them by hand, who sees whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sequences import on_cpu

from srsplan.kernels.attention import pack
from srsplan.models.config import Architecture
from srsplan.models.esasrec import ESASRec, LiGRBlock

REFERENCE = Path(__file__).with_name("ligr_reference.npz")
"""Made by make_ligr_reference.py with RecTools 0.19.0."""
NAMES = {
    "multi_head_attn.in_proj_weight": "attention.project_in.weight",
    "multi_head_attn.in_proj_bias": "attention.project_in.bias",
    "multi_head_attn.out_proj.weight": "attention.project_out.weight",
    "multi_head_attn.out_proj.bias": "attention.project_out.bias",
    "layer_norm_1.weight": "attention_norm.weight",
    "layer_norm_1.bias": "attention_norm.bias",
    "layer_norm_2.weight": "feed_forward_norm.weight",
    "layer_norm_2.bias": "feed_forward_norm.bias",
    "feed_forward.ff_linear_1.weight": "feed_forward.gate.weight",
    "feed_forward.ff_linear_2.weight": "feed_forward.outer.weight",
    "feed_forward.ff_linear_3.weight": "feed_forward.inner.weight",
    "gating_linear_1.weight": "attention_gate.weight",
    "gating_linear_1.bias": "attention_gate.bias",
    "gating_linear_2.weight": "feed_forward_gate.weight",
    "gating_linear_2.bias": "feed_forward_gate.bias",
}
CPU = torch.device("cpu")


def model(dropout: float = 0.0) -> ESASRec:
    torch.manual_seed(0)
    return ESASRec(20, 9, Architecture(dim=16, heads=2, blocks=2, dropout=dropout))


def test_blocks_are_those_of_rectools() -> None:
    reference = np.load(REFERENCE)
    x = torch.from_numpy(reference["states"])
    packing = pack(np.cumsum([0, *reference["lengths"]]), CPU)
    for number in range(2):
        block = LiGRBlock(Architecture(dim=16, heads=2, dropout=0.0))
        theirs = f"weight:transformer_blocks.{number}."
        block.load_state_dict({ours: torch.from_numpy(reference[theirs + name]) for name, ours in NAMES.items()})
        x = block(x, packing)
    torch.testing.assert_close(x, torch.from_numpy(reference["found"]), rtol=1e-5, atol=1e-5)


def test_the_blocks_take_items_with_positions_and_nothing_follows_them() -> None:
    esasrec, rows = model().eval(), [[3, 7, 1], [19, 0]]
    table, positions = esasrec.item_embedding.weight, esasrec.position_embedding.weight
    x = torch.cat([table[row] + positions[: len(row)] for row in rows])
    sequences = on_cpu(rows)
    with torch.no_grad():
        for block in esasrec.blocks:
            x = block(x, sequences.packing)
        torch.testing.assert_close(esasrec(sequences), x)


def test_a_token_sees_those_before_it_alone() -> None:
    esasrec = model().eval()
    with torch.no_grad():
        before, after = (esasrec(on_cpu([[1, 2, 3, item], [4, 5]])) for item in (6, 7))
    changed = (before != after).any(1).tolist()
    assert changed == [False, False, False, True, False, False]


def test_matrices_begin_as_glorot_says_and_biases_with_0() -> None:
    torch.manual_seed(1)
    large = ESASRec(4000, 50, Architecture(dim=64, heads=2, blocks=1))
    for name, weight in large.named_parameters():
        if weight.ndim == 2:
            assert float(weight.detach().std()) == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.05), name
        elif "norm" not in name:
            assert not weight.any(), name


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_gates_are_made_of_what_enters_a_sub_layer(part: str) -> None:
    """With a gate that is shut nothing of its sub-layer comes through, with one that is open all of it."""
    block, x = LiGRBlock(Architecture(dim=16, heads=2, dropout=0.0)), torch.randn(4, 16)
    packing = pack(np.array([0, 4]), CPU)
    other = "feed_forward" if part == "attention" else "attention"
    with torch.no_grad():
        for name, bias in ((part, 50.0), (other, -200.0)):
            block.get_parameter(f"{name}_gate.weight").zero_()
            block.get_parameter(f"{name}_gate.bias").fill_(bias)
        normed = block.get_submodule(f"{part}_norm")(x)
        layer = block.get_submodule(part)
        added = layer(normed, packing) if part == "attention" else layer(normed)
        torch.testing.assert_close(block(x, packing), x + added, rtol=1e-5, atol=1e-6)


def test_dropout_in_training_only() -> None:
    esasrec, sequences = model(dropout=0.5), on_cpu([[1, 2, 3]])

    def differ() -> bool:
        first, second = (esasrec(sequences) for _ in range(2))
        return not torch.equal(first, second)

    assert differ()
    esasrec.eval()
    assert not differ()


def test_wanted_tokens_are_those_of_all() -> None:
    esasrec = model().eval()
    every = on_cpu([[1, 2, 3], [4, 5]])
    some = replace(every, wanted=torch.tensor([0, 4]))
    with torch.no_grad():
        torch.testing.assert_close(esasrec(some), esasrec(every)[[0, 4]])
