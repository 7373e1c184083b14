"""`srsplan.models.load_run`: the folder of a run is all it takes to recommend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sequences import on_cpu

import srsplan.models
from srsplan.models.config import Architecture, Configuration
from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.errors import InputError
from srsplan.models.loading import TrainedRun
from srsplan.models.sasrec import SASRec
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.run import Order, finish, fitted, opened, read_data
from srsplan.models.training.settings import Settings

USERS, ITEMS, SEEN = 120, 30, 12


def rows() -> list[tuple[int, int, int]]:
    """Users walk through items 1000, 1010, 1020, ... in order, from starts of their own."""
    return [(user, 1000 + 10 * ((user + step) % ITEMS), step) for user in range(USERS) for step in range(SEEN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the walk; the data it was trained on are gone."""
    home = tmp_path_factory.mktemp("runs")
    data = home / "walks.csv"
    data.write_text("\n".join(["user_id,item_id,timestamp", *(",".join(map(str, row)) for row in rows())]) + "\n")
    configuration = Configuration(
        loss="cce", catalog=ITEMS, batch_size=16, seq_len=8, precision="fp32",
        architecture=Architecture(dim=16, blocks=1),
    )  # fmt: skip
    order = Order(
        configuration=configuration, settings=Settings(epochs=15, learning_rate=0.01),
        data=DataOptions(path=data, strategy="leave-one-out"), minimums=Minimums(), folder=home / "out",
        device=torch.device("cpu"),
    )  # fmt: skip
    found = read_data(order)
    with opened(fitted(order, found), found) as prepared:
        finish(prepared, NoCallbacks())
    data.unlink()
    return home / "out"


@pytest.fixture
def run(folder: Path) -> TrainedRun:
    return srsplan.models.load_run(folder)


def test_it_recommends_the_next_item_by_its_id(run: TrainedRun) -> None:
    histories = [[1000, 1010, 1020], [1200 + 10 * step for step in range(9)], [1280, 1290, 1000]]
    assert [best[0] for best in run.rank(histories, k=3)] == [1030, 1290, 1010]
    assert run.rank([], k=3) == []


def test_ids_are_those_of_the_file(run: TrainedRun, folder: Path) -> None:
    assert run.item_ids.tolist() == sorted({item for _, item, _ in rows()})
    table = pq.read_table(folder / "items.parquet")
    assert table.column_names == ["index", "item_id"]
    assert table["index"].to_pylist() == list(range(ITEMS))


def test_what_was_seen_is_left_out_unless_kept(run: TrainedRun) -> None:
    history = [1000, 1010, 1020]
    left = run.rank([history], k=ITEMS)[0]
    assert sorted([*left, *history]) == run.item_ids.tolist()
    assert sorted(run.rank([history], k=ITEMS, keep_seen=True)[0]) == run.item_ids.tolist()
    assert len(run.rank([history], k=5)[0]) == 5


def test_scores_are_those_of_a_model_loaded_by_hand(run: TrainedRun, folder: Path) -> None:
    """safetensors and a model of the same sizes are enough."""
    model = SASRec(ITEMS, 8, run.configuration.architecture)
    model.load_state_dict(load_file(folder / "best.safetensors"))
    model.eval()
    history = [1050, 1060, 1070]
    with torch.no_grad():
        items = [(item - 1000) // 10 for item in history]
        scores = model.item_table @ model(on_cpu([items]))[-1]
    expected = [1000 + 10 * int(row) for row in scores.argsort(descending=True)]
    assert run.rank([history], k=ITEMS, keep_seen=True)[0] == expected
    assert not run.model.training
    assert not any(parameter.requires_grad for parameter in run.model.parameters())


@pytest.mark.parametrize(
    ("histories", "phrase"),
    [([[1000], []], "history 1 is empty"), ([[5]], "the item 5, which was not"), ([["1000"]], "the item '1000'")],
)
def test_wrong_histories(run: TrainedRun, histories: list[list[object]], phrase: str) -> None:
    with pytest.raises(InputError, match=phrase):
        run.rank(histories)


def reworded(folder: Path, old: str, new: str) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace(old, new))


def other_items(folder: Path, index: list[int], column: str = "item_id") -> None:
    pq.write_table(pa.table({"index": index, column: np.arange(len(index))}), folder / "items.parquet")


def as_version_2(folder: Path) -> None:
    """With the keys of that version, some of which are unknown by now."""
    document = json.loads((folder / "config.json").read_text())
    del document["configuration"]["pass_tokens"], document["configuration"]["pass_sequences"]
    document["configuration"] |= {"micro_batches": 2, "valid_tokens": None}
    (folder / "config.json").write_text(json.dumps({**document, "version": 2, "srsplan": "0.1.0"}))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no run": (lambda f: shutil.rmtree(f), "not the folder of a run"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "no configuration at"),
    "half a configuration": (lambda f: (f / "config.json").write_text('{"version": 3'), "is damaged"),
    "a configuration of version 2": (
        lambda f: as_version_2(f),
        "of another version of srsplan, 0.1.0: its form is 2, this reads 3",
    ),
    "an impossible size": (
        lambda f: reworded(f, '"dim": 16', '"dim": 17'),
        "dim 17 is not a multiple of 8",
    ),
    "other sizes": (
        lambda f: reworded(f, '"dim": 16', '"dim": 32'),
        "of another model",
    ),
    "no weights": (lambda f: (f / "best.safetensors").unlink(), "no checkpoint at"),
    "other weights": (lambda f: (f / "best.safetensors").write_bytes(b"x" * 99), "is damaged: its checksum"),
    "no items": (lambda f: (f / "items.parquet").unlink(), "no list of item ids"),
    "no parquet": (lambda f: (f / "items.parquet").write_bytes(b"PAR1"), "cannot read the item ids"),
    "other columns": (lambda f: other_items(f, list(range(ITEMS)), "label"), "cannot read the item ids"),
    "items in another order": (lambda f: other_items(f, [1, 0, *range(2, ITEMS)]), "not in the order"),
    "too few items": (lambda f: other_items(f, [0, 1]), "holds 2 items, the model has 30"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, case: str) -> None:
    damage, phrase = DAMAGED[case]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(InputError, match=phrase) as caught:
        srsplan.models.load_run(copy)
    assert caught.value.hint


def test_the_public_surface_of_models() -> None:
    assert srsplan.models.__all__ == ["TrainedRun", "load_run"]
