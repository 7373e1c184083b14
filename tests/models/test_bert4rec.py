"""BERT4Rec: against torch's own encoder on copied weights; masks in training and behind histories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sequences import on_cpu, packed
from torch import Tensor, nn

from srsplan.models.bert4rec import BERT4Rec
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.batches import Packed, TrainBatches, history_batches, passes
from srsplan.models.data.masking import LAST_ALONE, Masking
from srsplan.models.data.splits import Sequences
from srsplan.models.errors import InputError
from srsplan.models.kinds import masked_items, most_masked

SIZES = Architecture(dim=32, heads=4, blocks=2, dropout=0.0)
CATALOG = 20
MASK = CATALOG


def model() -> BERT4Rec:
    torch.manual_seed(0)
    bert = BERT4Rec(CATALOG, 9, SIZES)
    with torch.no_grad():
        for name, weight in bert.named_parameters():
            weight.copy_(0.4 * torch.randn_like(weight) + (1.0 if "norm" in name and "weight" in name else 0.0))
    return bert


def torchs_encoder(bert: BERT4Rec) -> nn.TransformerEncoder:
    """The encoder of torch, normalised after each sub-layer as BERT is, with the weights of ours."""
    layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, F.gelu, batch_first=True, norm_first=False)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {
        "self_attn.in_proj_": "attention.project_in.",
        "self_attn.out_proj.": "attention.project_out.",
        "linear1.": "feed_forward.inner.",
        "linear2.": "feed_forward.outer.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_forward_norm.",
    }
    ours = bert.state_dict()
    encoder.load_state_dict(
        {
            f"layers.{number}.{theirs}{kind}": ours[f"blocks.{number}.{name}{kind}"]
            for number in range(2)
            for theirs, name in names.items()
            for kind in ("weight", "bias")
        }
    )
    return encoder


@pytest.mark.parametrize(
    "rows", [[[3, MASK, 1], [19, 0]], [[MASK], [1, 2, 3, 4, 5, 6, 7, MASK, 9]], [[1, 2], [3, MASK]]]
)
def test_equal_to_torchs_encoder(rows: list[list[int]]) -> None:
    bert = model()
    padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    valid = torch.arange(padded.shape[1]) < lengths[:, None]
    vectors = torch.cat([bert.item_table, bert.mask[None]])[padded] + bert.position_embedding.weight[: padded.shape[1]]
    encoded = torchs_encoder(bert)(
        F.layer_norm(vectors, (32,), bert.norm.weight, bert.norm.bias), src_key_padding_mask=~valid
    )
    truth = bert.norm_out(F.gelu(bert.project_out(encoded[valid])))
    found = bert(on_cpu(rows))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)

    weights = [bert.item_embedding.weight, bert.mask, bert.position_embedding.weight, bert.project_out.weight]
    direction = torch.randn_like(found)
    true = torch.autograd.grad((truth * direction).sum(), weights)
    (found * direction).sum().backward()
    for weight, gradient in zip(weights, true, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-3)


def test_a_token_sees_its_whole_sequence_and_no_other() -> None:
    bert = model().eval()
    with torch.no_grad():
        before, after = (bert(on_cpu([[1, 2, 3, item], [4, 5]])) for item in (6, 7))
    assert (before != after).any(1).tolist() == [True] * 4 + [False] * 2


def test_the_head_runs_on_wanted_tokens_alone() -> None:
    bert, sequences = model().eval(), on_cpu([[1, MASK, 3], [4, MASK]])
    seen: list[Tensor] = []
    bert.project_out.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        every, some = bert(sequences), bert(replace(sequences, wanted=torch.tensor([1, 4])))
    assert [len(each) for each in seen] == [5, 2]
    torch.testing.assert_close(some, every[[1, 4]])


def masking(share: float = 0.4) -> Masking:
    return Masking(share=share, mask=CATALOG + 1)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.sampled_from([0.01, 0.15, 0.2, 0.5, 0.7, 1.0]),
    st.integers(0, 99),
)
def test_every_sequence_has_its_share_masked_and_nothing_else_changed(
    lengths: list[int], share: float, seed: int
) -> None:
    items = np.random.default_rng(seed).integers(1, CATALOG + 1, sum(lengths))
    sequences = Packed(items, np.cumsum([0, *lengths]))
    batch = masking(share).batch(sequences, np.random.default_rng(seed))
    assert batch.places is not None
    hidden = batch.items == CATALOG + 1
    assert np.flatnonzero(hidden).tolist() == batch.places.tolist()
    assert batch.targets.tolist() == items[hidden].tolist()
    assert batch.items[~hidden].tolist() == items[~hidden].tolist()
    for start, end in zip(batch.offsets, batch.offsets[1:], strict=False):
        count, last_alone = int(hidden[start:end].sum()), hidden[end - 1] and hidden[start:end].sum() == 1
        assert count == masked_items(int(end - start), share) or last_alone
    assert len(batch.targets) <= most_masked(len(items), len(lengths), max(lengths), share)


def test_masks_fall_anywhere_and_one_sequence_in_eleven_ends_with_the_only_one() -> None:
    sequences = packed([[*range(1, 11)]] * 20_000)
    batch = masking(0.2).batch(sequences, np.random.default_rng(0))
    hidden = (batch.items == CATALOG + 1).reshape(-1, 10)
    alone = hidden.sum(1) == 1
    assert hidden[alone, -1].all()
    assert alone.mean() == pytest.approx(LAST_ALONE, abs=0.007)
    np.testing.assert_allclose(hidden[~alone].mean(0), 0.2, atol=0.012)


def test_epochs_mask_anew_and_repeat() -> None:
    train = Sequences(np.array([0, 6, 12, 13]), np.arange(1, 14, dtype=np.int32))
    batches = TrainBatches(train, 2, 4, seed=1, masking=masking())
    first, again, other = (next(batches.epoch(number)) for number in (0, 0, 1))
    assert first.items.tolist() == again.items.tolist()
    assert first.items.tolist() != other.items.tolist()
    assert len(first) == 2  # a sequence of one item has nothing around its mask
    assert sorted(np.where(first.items == CATALOG + 1, -1, first.items).tolist()).count(-1) == len(first.targets)
    unmasked = first.items.copy()
    assert first.places is not None
    unmasked[first.places] = first.targets
    assert sorted(unmasked.tolist()) == [3, 4, 5, 6, 9, 10, 11, 12]  # the last four, the newest of them included


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(6, 20), st.integers(1, 5))
def test_passes_take_their_targets_with_them(lengths: list[int], tokens: int, sequences: int) -> None:
    whole = Packed(np.random.default_rng(0).integers(1, CATALOG + 1, sum(lengths)), np.cumsum([0, *lengths]))
    batch = masking().batch(whole, np.random.default_rng(1))
    parts, first = list(passes(batch, tokens, sequences)), 0
    assert np.concatenate([part.targets for part in parts]).tolist() == batch.targets.tolist()
    places = []
    for part in parts:
        assert part.places is not None
        assert (part.items[part.places] == CATALOG + 1).all()
        places += [first + place for place in part.places.tolist()]
        first += len(part.items)
    assert batch.places is not None
    assert places == batch.places.tolist()


def test_a_mask_stands_behind_every_history_and_takes_one_of_its_places() -> None:
    histories = Sequences(np.array([0, 5, 6, 8]), np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.int32))
    found = list(history_batches(histories, 10, 3, 100, masking()))
    assert len(found) == 1
    rows, batch = found[0]
    assert rows == slice(0, 3)
    assert batch.items.tolist() == [4, 5, 21, 6, 21, 7, 8, 21]
    assert batch.offsets.tolist() == [0, 3, 5, 8]
    assert [rows for rows, _ in history_batches(histories, 10, 3, 5, masking())] == [slice(0, 2), slice(2, 3)]


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([0.05, 0.15, 0.3, 0.5, 0.7, 0.95, 1.0]), st.data())
def test_no_pass_has_more_targets_than_are_planned(count: int, seq_len: int, share: float, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, seq_len), min_size=1, max_size=count))
    masked = sum(masked_items(length, share) for length in lengths)
    assert masked <= most_masked(sum(lengths), count, seq_len, share)
    full = most_masked(count * seq_len, count, seq_len, share)
    assert full == count * masked_items(seq_len, share), "exact where every sequence is full"


@pytest.mark.parametrize("share", [0, 0.0, -0.1, 1.01, float("nan"), True, "0.2"])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"mask_share .* is not above 0 and at most 1"):
        Configuration(loss="cce", catalog=9, batch_size=2, seq_len=5, model="bert4rec", mask_share=share)


def test_a_share_for_a_model_that_masks_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="'sasrec' masks nothing"):
        Configuration(loss="cce", catalog=9, batch_size=2, seq_len=5, mask_share=0.2)


def test_no_room_for_a_mask_is_refused() -> None:
    with pytest.raises(InputError, match="seq_len 1 has no room for a mask"):
        Configuration(loss="cce", catalog=9, batch_size=2, seq_len=1, model="bert4rec")


def test_unknown_models_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError) as raised:
        Configuration(loss="cce", catalog=9, batch_size=2, seq_len=5, model="bert4rek")
    assert raised.value.hint == "did you mean 'bert4rec'? models are sasrec, bert4rec, esasrec"


def test_a_configuration_says_its_share_and_its_targets() -> None:
    found = Configuration(loss="cce", catalog=9, batch_size=8, seq_len=10, model="bert4rec")
    assert (found.mask_share, found.tokens, found.targets) == (0.2, 80, 16)
    assert Configuration.from_dict(found.to_dict()) == found
    assert replace(found, model="sasrec", mask_share=None).targets == 80
