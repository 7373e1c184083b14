"""`srsplan export`: what other programs run or load gives what the run itself ranks."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import run_folders
import torch
from command import Ended, srsplan
from run_folders import ITEMS, SEQ_LEN, number
from sequences import on_cpu
from torch import Tensor, nn

from srsplan.models import load_run
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.splits import Sequences
from srsplan.models.errors import InputError
from srsplan.models.export.onnx_file import MARK, OnnxOrder, export_onnx, run_onnx
from srsplan.models.export.padded import PaddedRecommender, check_padding, expected
from srsplan.models.export.rectools_checkpoint import weights, write_checkpoint
from srsplan.models.export.targets import check_target
from srsplan.models.loading import TrainedRun
from srsplan.models.prediction.recommending import Wanted, recommend
from srsplan.models.registry import build_model
from srsplan.models.sasrec import SASRec
from srsplan.models.sequence_model import PackedItems, SequenceModel

needs_onnx = pytest.mark.skipif(
    not (find_spec("onnxscript") and find_spec("onnxruntime")), reason="needs srsplan[export]: onnxscript, onnxruntime"
)
needs_rectools = pytest.mark.skipif(not find_spec("rectools"), reason="needs RecTools: pip install 'rectools[torch]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.finished_run(tmp_path_factory.mktemp("run"))


def wide_run(folder: Path, catalog: int = 40, seq_len: int = 6) -> TrainedRun:
    """A run of random weights of all sizes, biases and norms included; items are text."""
    sizes = Architecture(dim=16, blocks=2, heads=2)
    configuration = Configuration(
        loss="cce", catalog=catalog, batch_size=1, seq_len=seq_len, precision="fp32", architecture=sizes
    )
    torch.manual_seed(1)
    model = build_model(configuration).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    ids = np.array([f"i{item}" for item in range(catalog)], dtype=object)
    return TrainedRun(folder=folder, configuration=configuration, model=model, item_ids=ids)


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("longest", [1, 4, 6, 15])
def test_a_rectangle_gives_what_packed_sequences_give(keep_seen: bool, longest: int) -> None:
    """Whatever stands in the padding, and however much longer than what the model sees the histories are."""
    model = wide_run(Path()).model
    recommender = PaddedRecommender(model, Wanted(best=40, seq_len=6, keep_seen=keep_seen))
    random = np.random.default_rng(longest)
    lengths = torch.from_numpy(random.integers(1, longest + 1, 5))
    lengths[0] = longest
    items = torch.from_numpy(random.integers(0, 40, (5, longest)))
    rows = [row[:length].tolist() for row, length in zip(items, lengths, strict=True)]
    offsets = np.cumsum([0, *map(len, rows)])
    histories = Sequences(offsets, np.array([item + 1 for row in rows for item in row], np.int32))
    [packed] = recommend(model, histories, recommender.wanted)
    with torch.no_grad():
        found, scores = recommender(items, lengths)
    assert found.tolist() == packed.items.tolist()
    torch.testing.assert_close(scores, torch.from_numpy(packed.scores), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, expected(recommender, items, lengths), rtol=1e-4, atol=1e-4)


class LooksAhead(SequenceModel):
    """A model whose tokens see all of their sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 8), requires_grad=False)

    @property
    def item_table(self) -> Tensor:
        return self.table

    def forward(self, sequences: PackedItems) -> Tensor:
        bounds = sequences.packing.cu_seqlens.tolist()
        parts = (self.table[sequences.items[first:last]] for first, last in pairwise(bounds))
        means = [part.mean(0, keepdim=True).expand_as(part) for part in parts]
        return torch.cat(means)


class Masked(SequenceModel):
    """A model of 40 items that ranks from a mask, which has a row of its own behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide_run(Path(), catalog=41).model
        self.eval().requires_grad_(False)

    @property
    def item_table(self) -> Tensor:
        return self.inner.item_table[:40]

    def forward(self, sequences: PackedItems) -> Tensor:
        hidden: Tensor = self.inner(sequences)
        return hidden


@pytest.mark.parametrize("longest", [1, 4, 5, 9])
def test_a_mask_stands_behind_the_last_items(longest: int) -> None:
    """It is one of the tokens that the model sees: 6 here, so that 5 items are."""
    model, wanted = Masked(), Wanted(best=40, seq_len=6, keep_seen=True, mask=40)
    rows = [[*range(longest)], [7]]
    lengths = torch.tensor([longest, 1])
    items = torch.tensor([row + [33] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        states = torch.cat([model(on_cpu([[*row[-5:], 40]]))[-1:] for row in rows])
        scores = states @ model.item_table.t()
        found = PaddedRecommender(model, wanted)(items, lengths)[1]
    torch.testing.assert_close(found, scores.sort(dim=1, descending=True).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected(PaddedRecommender(model, wanted), items, lengths), found, rtol=1e-4, atol=1e-4)


def test_a_model_that_sees_padding_is_refused() -> None:
    with pytest.raises(InputError, match="a LooksAhead cannot be exported: padding changes"):
        check_padding(PaddedRecommender(LooksAhead(), Wanted(best=5, seq_len=6)))
    check_padding(PaddedRecommender(wide_run(Path()).model, Wanted(best=5, seq_len=6)))


@needs_onnx
def test_onnxruntime_finds_what_the_run_ranks(folder: Path, tmp_path: Path) -> None:
    order = OnnxOrder(run=folder, output=tmp_path / "model.onnx", best=ITEMS)
    assert export_onnx(order) == ("checked: onnxruntime finds the scores of the run for 4 histories",)
    run = load_run(folder)
    assert pq.read_table(tmp_path / "model.items.parquet")["item_id"].to_pylist() == run.item_ids.tolist()
    random = np.random.default_rng(0)
    for users, longest in ((1, 1), (1, 3), (4, SEQ_LEN), (7, 3 * SEQ_LEN)):
        lengths = torch.from_numpy(random.integers(1, longest + 1, users))
        items = torch.from_numpy(random.integers(0, ITEMS, (users, longest)))
        top = run_onnx(order.output, items, torch.clamp(lengths, max=longest))[0]
        rows = [row[:length].tolist() for row, length in zip(items, lengths, strict=True)]
        ranked = run.rank([[number(item) for item in row] for row in rows], ITEMS)
        assert [[number(item) for item in row if item >= 0] for row in top.tolist()] == ranked
    document = _metadata(order.output)
    assert document.pop("srsplan")
    check_target(order.output, "--onnx", ".onnx", MARK, overwrite=True)  # it may be written again
    assert document == {
        "k": str(ITEMS), "seq_len": str(SEQ_LEN), "seen_items_filtered": "true", "items": "model.items.parquet",
    }  # fmt: skip


def _metadata(path: Path) -> dict[str, str]:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_weights_of_rectools_have_its_names_and_shapes() -> None:
    model = wide_run(Path()).model
    assert isinstance(model, SASRec)
    found = {name.removeprefix("torch_model."): tuple(tensor.shape) for name, tensor in weights(model).items()}
    norm, square = (16,), (16, 16)
    block = {
        "attention_norm.weight": norm, "attention_norm.bias": norm,
        "attention.in_proj_weight": (48, 16), "attention.in_proj_bias": (48,),
        "attention.out_proj.weight": square, "attention.out_proj.bias": norm,
        "feed_forward_norm.weight": norm, "feed_forward_norm.bias": norm,
        "feed_forward.ff_linear_1.weight": square, "feed_forward.ff_linear_1.bias": norm,
        "feed_forward.ff_linear_2.weight": square, "feed_forward.ff_linear_2.bias": norm,
    }  # fmt: skip
    assert found == {
        "item_model.item_net_blocks.0.ids_emb.weight": (41, 16),
        "pos_encoding_layer.pos_emb.weight": (6, 16),
        "transformer_layers.norm.weight": norm, "transformer_layers.norm.bias": norm,
        **{f"transformer_layers.blocks.{at}.{name}": shape for at in (0, 1) for name, shape in block.items()},
    }  # fmt: skip
    table = weights(model)["torch_model.item_model.item_net_blocks.0.ids_emb.weight"]
    assert not table[0].any()
    assert torch.equal(table[1:], model.item_table)


@needs_rectools
@pytest.mark.filterwarnings("default")
def test_rectools_recommends_what_the_run_ranks(tmp_path: Path) -> None:
    import pandas as pd
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    run = wide_run(tmp_path)
    write_checkpoint(run, tmp_path / "model.ckpt")
    loaded = SASRecModel.load_from_checkpoint(tmp_path / "model.ckpt")
    random = np.random.default_rng(0)
    histories = {
        f"u{user}": [f"i{item}" for item in random.choice(40, length, replace=False)]
        for user, length in enumerate((1, 3, 6, 9, 2))
    }
    rows = [
        (user, item, 1, pd.Timestamp(at, unit="D")) for user, row in histories.items() for at, item in enumerate(row)
    ]
    data = Dataset.construct(pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "datetime"]))
    for filter_seen in (True, False):
        found = loaded.recommend(list(histories), data, 7, filter_viewed=filter_seen)
        lists = {user: found[found.user_id == user].item_id.tolist() for user in histories}
        assert list(lists.values()) == run.rank(list(histories.values()), 7, keep_seen=not filter_seen)


def test_a_zero_vector_is_refused_where_it_means_padding(tmp_path: Path) -> None:
    run = wide_run(tmp_path)
    run.model.item_table[3] = 0
    with pytest.raises(InputError, match="an item has the vector zero"):
        write_checkpoint(run, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> Any:
    """`srsplan export run ARGUMENTS` in a folder of its own."""
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "old.onnx").write_text("old")
    (tmp_path / "old.ckpt").write_text("old")
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object, run: str = "run") -> Ended:
        return srsplan(capsys, monkeypatch, "export", run, *arguments)

    return called


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing asked for": ((), "give either --onnx FILE or --to LIBRARY FILE"),
    "both asked for": (("--onnx", "a.onnx", "--to", "rectools", "b"), "give either"),
    "a file of another's": (("--onnx", "old.onnx", "--overwrite"), "srsplan did not write it as it is"),
    "a checkpoint of another's": (("--to", "rectools", "old.ckpt", "--overwrite"), "srsplan did not write it as it is"),
    "no checkpoint's name": (("--to", "rectools", "model.pt"), "unknown extension '.pt'"),
    "no file": (("--to", "rectools"), "--to rectools needs a file to write"),
    "a file too many": (("--onnx", "a.onnx", "b"), "b is one file too many"),
    "a library that is not known": (("--to", "rectool", "b"), "did you mean rectools?"),
    "RePlay": (("--to", "replay", "b"), "takes keys and values from the input of a block as it is"),
    "RecBole": (("--to", "recbole", "b"), "normalises the sum after every sub-layer"),
    "a file that exists": (("--onnx", "old.onnx"), "old.onnx exists"),
    "a checkpoint that exists": (("--to", "rectools", "old.ckpt"), "old.ckpt exists"),
    "an unknown suffix": (("--onnx", "a.bin"), "unknown extension '.bin'"),
    "no items": (("--onnx", "a.onnx", "-k", 0), "k 0 is not a whole number above zero"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_message(command: Any, tmp_path: Path, case: str) -> None:
    arguments, phrase = WRONG[case]
    before = sorted(tmp_path.iterdir())
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert phrase in ended.message
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.onnx").read_text() == (tmp_path / "old.ckpt").read_text() == "old"


@needs_onnx
@pytest.mark.parametrize(("arguments", "phrase"), [(("-k", 31), "k 31 is above the catalog of 30"), ((), "no run")])
def test_what_only_the_run_tells_is_one_message(command: Any, arguments: tuple[object, ...], phrase: str) -> None:
    ended = command("--onnx", "a.onnx", *arguments, **({} if arguments else {"run": "."}))
    assert ended.code == 2
    assert phrase.replace("no run", "not the folder of a run") in ended.message


def test_without_the_exporter_the_extra_is_named(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srsplan.models.export.onnx_file.find_spec", lambda name: None)
    ended = command("--onnx", "a.onnx")
    assert ended.code == 2
    assert "pip install 'srsplan[export]'" in ended.message


def test_a_checkpoint_says_how_it_is_loaded(command: Any) -> None:
    ended = command("--to", "rectools", "model.ckpt")
    assert (ended.code, ended.out) == (0, "written: model.ckpt\n")
    assert "SASRecModel.load_from_checkpoint('model.ckpt')" in ended.message
    assert command("--to", "rectools", "model.ckpt", "--overwrite", "--json").json["files"] == ["model.ckpt"]
