"""`srsplan predict`: files in, the run's own ranking out, in the ids of the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import run_folders
import torch
from command import Ended, srsplan
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import ITEMS, SEQ_LEN, number
from sequences import on_cpu

from srsplan.models import load_run
from srsplan.models.data.column_names import FOUND_BY_NAME
from srsplan.models.loading import TrainedRun
from srsplan.models.prediction import predicting, recommending
from srsplan.models.prediction.histories import read_histories
from srsplan.models.prediction.predicting import PredictionOrder, prepare, read_users, write

HISTORIES = {9: [3, 4, 5], 10: [0, 1, 2, 3, 4, 5, 6, 7], 2: [29], 77: [8, 8, 20]}
"""Users and items 0 to 29, the oldest first; one history is longer than the model sees, one repeats an item."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.finished_run(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose items are text, some of it whole numbers."""
    return run_folders.finished_run(tmp_path_factory.mktemp("text"), lambda item: str(item) if item % 2 else f"ü{item}")


@pytest.fixture
def run(folder: Path) -> TrainedRun:
    return load_run(folder)


def interactions(path: Path, histories: dict[Any, list[int]] = HISTORIES, prefix: str = "") -> Path:
    """A file of these histories, rows in no order but for the time; user ids are `prefix` and the number."""
    rows = [(f"{prefix}{user}", number(item), at) for user, items in histories.items() for at, item in enumerate(items)]
    if path.suffix != ".txt":
        rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    if path.suffix == ".parquet":
        users, items, times = zip(*rows, strict=True)
        ids = pa.array(users) if prefix else pa.array(map(int, users))
        pq.write_table(pa.table({"user_id": ids, "item_id": pa.array(items, pa.int32()), "timestamp": times}), path)
        return path
    header, separator = {
        ".csv": ("user_id,item_id,timestamp", ","),
        ".inter": ("user_id:token\titem_id:token\ttimestamp:float", "\t"),
        ".txt": (None, " "),
    }[path.suffix]
    lines = [separator.join(map(str, row[:2] if header is None else row)) for row in rows]
    path.write_text("\n".join([*([header] if header else []), *lines]) + "\n")
    return path


def read(path: Path) -> dict[Any, list[Any]]:
    """The items of each user, in the order of users and ranks in the file."""
    table = pq.read_table(path) if path.suffix == ".parquet" else pa_csv.read_csv(path)
    assert table.column_names == ["user_id", "item_id", "rank", "score"]
    found: dict[Any, list[Any]] = {}
    for user, item, rank, _ in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found.setdefault(user, []).append(item)
        assert rank == len(found[user])
    return found


def predicted(output: Path, **order: Any) -> dict[Any, list[Any]]:
    write(prepare(PredictionOrder(output=output, device="cpu", **order)), lambda done, users: None)
    return read(output)


@pytest.mark.parametrize("kind", [".csv", ".parquet", ".inter", ".txt"])
@pytest.mark.parametrize("prefix", ["", "u"])
@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_every_format_gives_what_the_run_ranks(
    run: TrainedRun, tmp_path: Path, kind: str, prefix: str, output: str
) -> None:
    data = interactions(tmp_path / f"data{kind}", prefix=prefix)
    found = predicted(tmp_path / output, run=run.folder, data=data, best=4)
    ids = [f"u{user}" for user in HISTORIES] if prefix else [*HISTORIES]
    lists = run.rank([[number(item) for item in items] for items in HISTORIES.values()], 4)
    assert found == dict(zip(ids, lists, strict=True))
    assert list(found) == sorted(ids)


def test_parquet_keeps_the_types_of_ids(run: TrainedRun, tmp_path: Path) -> None:
    predicted(tmp_path / "out.parquet", run=run.folder, data=interactions(tmp_path / "data.parquet"))
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert [str(kind) for kind in schema.types] == ["int64", "int64", "int32", "float"]


def test_scores_are_those_of_the_model(run: TrainedRun, tmp_path: Path) -> None:
    data = interactions(tmp_path / "data.csv")
    predicted(tmp_path / "out.parquet", run=run.folder, data=data, best=ITEMS, keep_seen=True)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    found = {row["item_id"]: row["score"] for row in rows if row["user_id"] == 2}
    with torch.no_grad():
        scores = run.model.item_table @ run.model(on_cpu([HISTORIES[2]]))[-1]
    assert found == pytest.approx({number(item): float(score) for item, score in enumerate(scores)}, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_what_was_seen_is_left_out_unless_kept(run: TrainedRun, tmp_path: Path) -> None:
    data = interactions(tmp_path / "data.csv")
    left = predicted(tmp_path / "left.csv", run=run.folder, data=data, best=ITEMS)
    kept = predicted(tmp_path / "kept.csv", run=run.folder, data=data, best=ITEMS, keep_seen=True)
    for user, items in HISTORIES.items():
        assert sorted([*left[user], *{number(item) for item in items}]) == sorted(kept[user]) == run.item_ids.tolist()


def test_text_items_are_found_where_the_file_holds_numbers(text_folder: Path, tmp_path: Path) -> None:
    """A file with items 1, 3 and 5 alone is read as numbers; the run's ids are text."""
    data = tmp_path / "data.csv"
    data.write_text("user_id,item_id\na,1\na,3\nb,5\n")
    found = predicted(tmp_path / "out.csv", run=text_folder, data=data, best=3)
    run = load_run(text_folder)
    assert found == dict(zip("ab", run.rank([["1", "3"], ["5"]], 3), strict=True))
    assert any(item.startswith("ü") for items in found.values() for item in map(str, items))


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=5).filter(
    lambda text: text not in ("NaN", "nan", "null", "NULL")
)


@given(
    histories=st.dictionaries(TEXT, st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=6),
    items=st.lists(TEXT, min_size=6, max_size=6, unique=True), known=st.sets(st.integers(0, 5), min_size=1),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_ids_of_any_text_come_back(
    tmp_path_factory: pytest.TempPathFactory, histories: dict[str, list[int]], items: list[str], known: set[int]
) -> None:
    """Of each user exactly the known items remain, in their order, under the user's own name."""
    expected = {user: [items[item] for item in row if item in known] for user, row in histories.items()}
    if not any(expected.values()):
        return
    path = tmp_path_factory.getbasetemp() / "ids.parquet"
    rows = [(user, items[item]) for user, row in histories.items() for item in row]
    pq.write_table(pa.table(dict(zip(("user", "item"), map(list, zip(*rows, strict=True)), strict=True))), path)
    model_ids = np.array([items[item] for item in sorted(known)], dtype=object)
    found = read_histories(path, model_ids, FOUND_BY_NAME)
    sequences = found.sequences
    back = {
        user: model_ids[sequences.values[first:last] - 1].tolist()
        for user, first, last in zip(found.user_ids, sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    }
    assert back == expected
    there = found.with_items()
    assert there.user_ids.tolist() == [user for user in found.user_ids if expected[user]]
    assert there.sequences.lengths.tolist() == [len(expected[user]) for user in there.user_ids]
    asked = found.of_those_there(["not there", *reversed(list(there.user_ids))])
    assert asked.user_ids.tolist() == there.user_ids.tolist()[::-1]
    assert asked.sequences.lengths.tolist() == there.sequences.lengths.tolist()[::-1]


def test_unknown_items_and_users_are_noted(run: TrainedRun, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("user_id,item_id\na,1000\na,5\na,6\nb,5\nc,1010\n")
    prepared = prepare(PredictionOrder(run=run.folder, data=data, device="cpu"))
    assert prepared.histories.user_ids.tolist() == ["a", "c"]
    assert prepared.histories.notes[-2:] == (
        "3 of 5 interactions are with 2 items that the model does not know: the histories are without them",
        "1 of 3 users have no item that the model knows: they get no recommendations",
    )
    found = predicted(tmp_path / "out.csv", run=run.folder, data=data, best=2)
    assert found == dict(zip("ac", run.rank([[1000], [1010]], 2), strict=True))


def test_one_user_and_one_item_are_enough(run: TrainedRun, tmp_path: Path) -> None:
    data = tmp_path / "one.csv"
    data.write_text("user_id,item_id\n7,1000\n7,1000\n")
    assert predicted(tmp_path / "out.csv", run=run.folder, data=data, best=3) == {7: run.rank([[1000, 1000]], 3)[0]}


def test_users_asked_for_come_in_the_order_of_asking(run: TrainedRun, tmp_path: Path) -> None:
    data, asked = interactions(tmp_path / "data.csv"), tmp_path / "users.txt"
    asked.write_text("user_id\n77\n10\n404\n77\n\n9\n")
    assert read_users(asked) == ["77", "10", "404", "77", "9"]
    order = PredictionOrder(run=run.folder, data=data, users_file=asked, device="cpu")
    assert prepare(order).histories.user_ids.tolist() == [77, 10, 9]
    assert prepare(order).histories.notes[-1] == "1 of the 4 users asked for are not in data.csv"
    found = predicted(tmp_path / "out.csv", run=run.folder, data=data, users=["10", "2"])
    assert list(found) == [10, 2]
    assert found == predicted(tmp_path / "all.csv", run=run.folder, data=data, users=["2", "10"])


def test_parts_and_batches_change_nothing(run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = interactions(tmp_path / "data.csv")
    whole = predicted(tmp_path / "whole.parquet", run=run.folder, data=data)
    monkeypatch.setattr(predicting, "PART_ROWS", 1)
    monkeypatch.setattr(recommending, "USERS_AT_ONCE", 1)
    seen: list[tuple[int, int]] = []
    order = PredictionOrder(run=run.folder, data=data, output=tmp_path / "parts.parquet", device="cpu")
    assert write(prepare(order), lambda done, users: seen.append((done, users))) == 10 * len(HISTORIES)
    assert read(tmp_path / "parts.parquet") == whole
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups == len(HISTORIES)
    assert seen == [(done, 4) for done in (1, 2, 3, 4)]


def test_the_model_sees_the_last_items(run: TrainedRun, tmp_path: Path) -> None:
    data = interactions(tmp_path / "long.csv", {1: HISTORIES[10], 2: HISTORIES[10][-SEQ_LEN:]})
    found = predicted(tmp_path / "out.csv", run=run.folder, data=data, best=ITEMS, keep_seen=True)
    assert found[1] == found[2]


def test_what_is_stopped_leaves_the_old_file(run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = interactions(tmp_path / "data.csv"), tmp_path / "out.parquet"
    predicted(output, run=run.folder, data=data, best=1)
    content = output.read_bytes()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(predicting, "PART_ROWS", 1)
    monkeypatch.setattr(recommending, "USERS_AT_ONCE", 1)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    order = PredictionOrder(run=run.folder, data=data, output=output, overwrite=True, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        write(prepare(order), stop)
    assert output.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> Iterator[Any]:
    """`srsplan predict RUN --data ... ARGUMENTS`, where the data are in the present folder."""
    monkeypatch.chdir(tmp_path)
    interactions(tmp_path / "data.csv")

    def called(*arguments: object, run: object = folder, data: str = "data.csv") -> Ended:
        return srsplan(capsys, monkeypatch, "predict", run, "--data", data, *arguments)

    return called  # type: ignore[return-value]


def test_a_few_users_are_printed(command: Any, run: TrainedRun) -> None:
    ended = command("--user", 9, "--user", 2, "-k", 3)
    assert ended.code == 0
    first, second = ended.out.splitlines()
    for line, user in ((first, 9), (second, 2)):
        items = run.rank([[number(item) for item in HISTORIES[user]]], 3)[0]
        assert line.startswith(f"{user}: {items[0]} (")
        assert [part.split()[0] for part in line.partition(": ")[2].split(", ")] == [str(item) for item in items]


def test_json_holds_the_rows_or_names_the_file(command: Any) -> None:
    document = command("--user", 9, "-k", 2, "--json").json
    assert document["users"] == 1
    assert [(row["user_id"], row["rank"]) for row in document["recommendations"]] == [(9, 1), (9, 2)]
    document = command("-o", "out.csv", "--json").json
    assert (document["output"], document["rows"], document["seen_items_filtered"]) == ("out.csv", 40, True)
    assert len(Path("out.csv").read_text().splitlines()) == 41


def too_many(folder: Path) -> None:
    interactions(folder / "data.csv", {user: [1] for user in range(21)})


WRONG: dict[str, tuple[tuple[object, ...], dict[str, str], str]] = {
    "a user who is not there": (("--user", 5), {}, "1 user not in data.csv: '5'"),
    "a user without known items": (("--user", "a"), {"data": "other.csv"}, "without an item that the model knows: 'a'"),
    "no run": ((), {"run": "."}, "not the folder of a run"),
    "an unknown suffix": (("-o", "out.xlsx"), {}, "unknown extension '.xlsx'"),
    "more than the catalog": (("-k", 31), {}, "k 31 is above the catalog of 30 items"),
    "no items at all": (("-k", 0), {}, "k 0 is not a whole number above zero"),
    "a file that exists": (("-o", "data.csv"), {}, "--output data.csv exists"),
    "a file of another's": (("-o", "data.csv", "--overwrite"), {}, "srsplan did not write it as it is"),
    "another's parquet": (("-o", "mine.parquet", "--overwrite"), {}, "srsplan did not write it as it is"),
    "no such folder": (("-o", "none/out.csv"), {}, "there is no folder /"),
    "two ways to ask": (("--user", 9, "--users", "data.csv"), {}, "contradict each other"),
    "no list of users": (("--users", "none.txt"), {}, "no list of users at none.txt"),
    "an empty list": (("--users", "empty.txt"), {}, "the list of users empty.txt is empty"),
    "no known item": ((), {"data": "unknown.csv"}, "holds no item that the model knows: ids are such as 5 there"),
    "an unknown device": (("--device", "tpu"), {}, "unknown --device 'tpu'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_message(command: Any, tmp_path: Path, case: str) -> None:
    arguments, places, phrase = WRONG[case]
    (tmp_path / "empty.txt").write_text("user_id\n")
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    (tmp_path / "other.csv").write_text("user_id,item_id\na,5\nb,1000\n")
    (tmp_path / "unknown.csv").write_text("user_id,item_id\na,5\nb,6\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ended = command(*arguments, **places)
    assert (ended.code, ended.out) == (2, "")
    assert phrase in ended.message
    assert ended.message.count("error:") == ended.message.count("try:") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_many_users_want_a_file(command: Any, tmp_path: Path) -> None:
    too_many(tmp_path)
    ended = command()
    assert ended.code == 2
    assert "the recommendations of 21 users are too many to print" in ended.message


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_table_is_replaced_where_that_is_said(command: Any, name: str) -> None:
    assert command("-o", name, "-k", 1).code == 0
    assert command("-o", name, "-k", 2).code == 2
    assert command("-o", name, "-k", 2, "--overwrite").code == 0
    assert sum(map(len, read(Path(name)).values())) == 2 * len(HISTORIES)
