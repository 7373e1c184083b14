"""A folder of parquet parts is one table; what does not fit together is named, what is there twice is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from srsplan.models.data import encoding, parquet_parts
from srsplan.models.data import parts as parts_module
from srsplan.models.data.interactions import Columns, Interactions, read_interactions
from srsplan.models.data.parts import parts_of, twins
from srsplan.models.errors import InputError


def table(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    columns = {"user_id": (0, 20), "item_id": (100, 140), "timestamp": (0, 9)}
    frame: pd.DataFrame = pd.DataFrame({name: draw.integers(*bounds, rows) for name, bounds in columns.items()})
    return frame


def parts(folder: Path, *frames: pd.DataFrame) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        frame.to_parquet(folder / f"part-{number:03}.parquet", row_group_size=40)
    return folder


def same(first: Interactions, second: Interactions) -> bool:
    names = ("users", "items", "timestamps", "user_ids", "item_ids")
    pairs: list[tuple[Any, Any]] = [(getattr(first, name), getattr(second, name)) for name in names]
    return all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


def test_parts_are_read_as_one_file_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_parts, "TASK_ROWS", 70)
    frame = table()
    frame.to_parquet(tmp_path / "whole.parquet")
    folder = parts(tmp_path / "clicks", frame[:100], frame[100:100], frame[100:])
    (folder / "part-002.parquet").rename(folder / "part-002.PQ")
    found = read_interactions(folder)
    assert same(found, read_interactions(tmp_path / "whole.parquet"))
    assert found.notes[:1] == ("clicks: 3 parts",)
    monkeypatch.chdir(folder)
    assert read_interactions(".").notes[:1] == ("clicks: 3 parts",)


def test_text_ids_of_parts_have_one_numbering(tmp_path: Path) -> None:
    frame = table().astype({"user_id": str, "item_id": str})
    frame.to_parquet(tmp_path / "whole.parquet")
    frame["user_id"] = frame["user_id"].astype("category")
    folder = parts(tmp_path / "clicks", frame[:10], frame[10:])
    frame[10:].astype({"user_id": str}).to_parquet(folder / "part-001.parquet")  # a dictionary is what it holds
    assert same(read_interactions(folder), read_interactions(tmp_path / "whole.parquet"))


def test_what_else_is_in_the_folder(tmp_path: Path) -> None:
    folder = parts(tmp_path / "clicks", table())
    for name in ("_SUCCESS", ".part-000.parquet.crc"):
        (folder / name).touch()
    assert "left aside" not in " ".join(read_interactions(folder).notes)
    (folder / "readme.md").touch()
    (folder / "day=1").mkdir()
    assert f"{folder}: 2 other than parquet left aside: day=1, readme.md" in read_interactions(folder).notes


def test_parts_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    first = table()
    for number, (other, message) in enumerate(
        (
            (first.astype({"item_id": str}), "the column 'item_id' is "),
            (first.drop(columns="timestamp"), "the column 'timestamp' is absent, in part-000.parquet it is int64"),
            (first.assign(price=1.5), "the column 'price' is double, in part-000.parquet it is absent"),
        )
    ):
        folder = parts(tmp_path / f"clicks-{number}", first, first[:50], other)
        with pytest.raises(InputError) as caught:
            read_interactions(folder)
        assert caught.value.message.startswith(f"{folder / 'part-002.parquet'}: {message}")
        assert "same columns" in caught.value.hint


def test_broken_folders_and_parts_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_text("user,item\n1,2\n")
    with pytest.raises(InputError, match="is a folder without parquet files"):
        read_interactions(tmp_path / "texts")
    folder = parts(tmp_path / "clicks", table(), table(seed=1))
    part = folder / "part-001.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"cannot read .*part-001\.parquet"):
        read_interactions(folder)
    part.write_bytes(b"")
    with pytest.raises(InputError, match=r"part-001\.parquet is empty"):
        read_interactions(folder)
    part.unlink()
    with pytest.raises(InputError, match="clicks: no column 'nobody'"):
        read_interactions(folder, columns=Columns(user="nobody"))


def test_a_part_that_is_there_twice_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "TAIL_BYTES", 100)
    folder = parts(tmp_path / "clicks", table(), table(seed=1))
    assert "warning" not in " ".join(read_interactions(folder).notes)
    shutil.copy(folder / "part-000.parquet", folder / "part-007.parquet")
    expected = "warning: part-000.parquet, part-007.parquet hold the same bytes: their interactions count 2 times"
    assert expected in read_interactions(folder).notes
    assert len(read_interactions(folder)) == 900
    twin = bytearray((folder / "part-007.parquet").read_bytes())
    twin[6] ^= 1  # the same size and the same footer: only the content tells them apart
    (folder / "part-007.parquet").write_bytes(twin)
    assert twins(parts_of(folder)) == ()


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "uint64", "Int32"])
@pytest.mark.parametrize("dense", [True, False])
def test_numbers_are_numbered_alike_by_table_and_by_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dense: bool
) -> None:
    frame = table().astype({"user_id": kind, "item_id": kind})
    frame.to_parquet(tmp_path / "a.parquet")
    if not dense:
        monkeypatch.setattr(encoding, "DENSE_RATIO", 0)
        monkeypatch.setattr(encoding, "DENSE_SPAN", 0)
    found = read_interactions(tmp_path / "a.parquet")
    assert found.user_ids.dtype == np.dtype(kind.lower())
    assert found.user_ids.tolist() == sorted(set(frame["user_id"].tolist()))
    assert found.item_ids.tolist() == sorted(set(frame["item_id"].tolist()))
    triples = zip(found.user_ids[found.users], found.item_ids[found.items - 1], found.timestamps, strict=True)  # type: ignore[arg-type]
    ordered = frame.sort_values(["user_id", "timestamp"], kind="stable")
    assert [tuple(map(int, row)) for row in triples] == [tuple(map(int, row)) for row in ordered.to_numpy()]


def test_numbers_far_apart_are_numbered_in_their_order(tmp_path: Path) -> None:
    ids = np.array([2**64 - 1, 0, 2**63, 5], dtype=np.uint64)
    pd.DataFrame({"user": ids, "item": ids.astype(np.int64), "time": [3, 2, 1, 0]}).to_parquet(tmp_path / "a.parquet")
    found = read_interactions(tmp_path / "a.parquet")
    assert found.user_ids.tolist() == [0, 5, 2**63, 2**64 - 1]
    assert found.item_ids.tolist() == [-(2**63), -1, 0, 5]
    assert found.items.tolist() == [3, 4, 1, 2]
