"""Interactions: formats that agree, columns that are found, cores, and wrong files that are refused by name."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED
from pyarrow import parquet

from srsplan.models.data import limits
from srsplan.models.data.interactions import Columns, Interactions, read_interactions
from srsplan.models.errors import InputError

SMALL = "user_id,item_id,timestamp\n7,30,5\n3,10,9\n7,10,1\n3,20,9\n7,10,9\n"
AS_READ = [(3, 10, 9), (3, 20, 9), (7, 10, 1), (7, 30, 5), (7, 10, 9)]


def write(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows(found: Interactions) -> list[tuple[Any, ...]]:
    """(user label, item label, time) in the order of the arrays."""
    users, items = found.user_ids[found.users].tolist(), found.item_ids[found.items - 1].tolist()
    times = [None] * len(found) if found.timestamps is None else found.timestamps.tolist()
    return list(zip(users, items, times, strict=True))


@pytest.mark.parametrize(
    "name", ["a.csv", "A.CSV", "a.b.csv.gz", "a.tsv", "a.tsv.gz", "a.inter", "semi.csv", "tab.csv"]
)
def test_text_formats_agree(tmp_path: Path, name: str) -> None:
    text = SMALL
    if name.startswith("semi"):
        text = text.replace(",", ";")
    elif name.startswith("tab") or ".csv" not in name.lower():
        text = text.replace(",", "\t")
    if name.endswith(".inter"):
        text = text.replace("_id", "_id:token").replace("timestamp", "timestamp:float")
    found = read_interactions(write(tmp_path, text, name))
    assert rows(found) == AS_READ
    assert found.users.dtype == found.items.dtype == np.dtype(np.int32)
    assert found.users.tolist() == [0, 0, 1, 1, 1]
    assert (len(found), found.user_count, found.catalog) == (5, 2, 3)


@pytest.mark.parametrize("text", [SMALL, SMALL.replace("7,", "u7,").replace(",10", ",naïve")])
def test_parquet_reads_as_csv(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    pd.read_csv(path).assign(rating=1.0).to_parquet(tmp_path / "a.parquet")
    assert rows(read_interactions(tmp_path / "a.parquet")) == rows(read_interactions(path))


def test_parquet_categories_bytes_and_whole_floats(tmp_path: Path) -> None:
    users = pd.Categorical(["b", "a", "b"])
    frame = pd.DataFrame({"user": users, "item": [b"x", b"y", b"y"], "ts": [2.0, 1.0, 1.0]})
    frame.to_parquet(tmp_path / "a.pq")
    found = read_interactions(tmp_path / "a.pq")
    assert rows(found) == [("a", "y", 1), ("b", "y", 1), ("b", "x", 2)]
    assert found.timestamps is not None
    assert found.timestamps.dtype == np.int64


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
def test_txt_is_in_the_order_of_the_file(tmp_path: Path, separator: str) -> None:
    text = "".join(f"{user}{separator}{item} \n" for user, item in [(2, 5), (1, 9), (2, 1), (1, 5)])
    found = read_interactions(write(tmp_path, text, "a.txt"))
    assert rows(found) == [(1, 9, None), (1, 5, None), (2, 5, None), (2, 1, None)]
    assert "order" in " ".join(found.notes)


def test_txt_with_a_header_is_read_by_name(tmp_path: Path) -> None:
    found = read_interactions(write(tmp_path, SMALL.replace(",", " "), "a.txt"))
    assert rows(found) == AS_READ


@pytest.mark.evidence
def test_video_and_movielens() -> None:
    video = read_interactions(SHARED / "data" / "video.txt")
    assert (len(video), video.user_count, video.catalog) == (287_107, 31_013, 23_715)
    lines = (SHARED / "data" / "video.txt").read_text().splitlines()
    assert [f"{user} {item}" for user, item, _ in rows(video)] == lines

    movies = read_interactions(SHARED / "data" / "ml-100k.inter")
    assert (len(movies), movies.user_count, movies.catalog) == (100_000, 943, 1_682)
    frame = pd.read_csv(SHARED / "data" / "ml-100k.inter", sep="\t")
    expected = frame.sort_values(["user_id:token", "timestamp:float"], kind="stable").drop(columns="rating:float")
    assert rows(movies) == list(expected.itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "header", ["userId,movieId,timestamp", "VisitorID,Item ID,Event-Time", "uid,sku,date", "session_id,track_id,ts"]
)
def test_columns_are_found_by_name_and_told(tmp_path: Path, header: str) -> None:
    found = read_interactions(write(tmp_path, SMALL.replace("user_id,item_id,timestamp", header)))
    assert rows(found) == AS_READ
    assert all(repr(name) in found.notes[0] for name in header.split(","))


def test_columns_are_overridable(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("\n", ",0\n").replace("user_id,item_id,timestamp,0", "user_id,b,c,item_id"))
    found = read_interactions(path, columns=Columns(item="b", timestamp="c"))
    assert rows(found) == AS_READ
    assert "item column 'b'" in found.notes[0]


def test_inter_columns_are_named_with_or_without_their_type(tmp_path: Path) -> None:
    text = "a:token\tb:token\n1\t2\n2\t3\n"
    for columns in (Columns(user="a", item="b"), Columns(user="a:token", item="b:token")):
        assert rows(read_interactions(write(tmp_path, text, "a.inter"), columns=columns)) == [
            (1, 2, None),
            (2, 3, None),
        ]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["3", "1", "2"], [1, 2, 3]),
        (["2.5", "1", "2"], [1, 2, 2.5]),
        (["2024-01-03", "2024-01-01", "2024-01-02"], [19723, 19724, 19725]),
        (["2024-01-01T00:00:03Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:02Z"], None),
        (["2024-01-01 00:00:03.5", "2024-01-01", "2024-01-01T00:00:02"], None),
        (["1969-12-31 00:00:00", "1960-01-01 00:00:00", "1965-01-01 00:00:00"], None),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_times_may_be_numbers_dates_or_text(
    tmp_path: Path, suffix: str, times: list[str], expected: list[float] | None
) -> None:
    frame = pd.DataFrame({"user": [1, 1, 1], "item": [30, 10, 20], "time": times})
    frame.loc[3] = [2, 10, times[0]]
    path = tmp_path / f"a{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    found = read_interactions(path)
    assert [item for _, item, _ in rows(found)[:3]] == [10, 20, 30]
    assert found.timestamps is not None
    assert found.timestamps.dtype in (np.int64, np.float64)
    if expected and not (suffix == ".parquet" and "-" in times[0]):
        assert found.timestamps[:3].tolist() == expected


def test_dates_of_parquet_keep_nanoseconds(tmp_path: Path) -> None:
    stamps = pd.to_datetime([1_700_000_000_000_000_003, 1_700_000_000_000_000_001, 1_700_000_000_000_000_002])
    pd.DataFrame({"user": [1, 1, 2], "item": [1, 2, 3], "time": stamps}).to_parquet(tmp_path / "a.parquet")
    found = read_interactions(tmp_path / "a.parquet")
    assert [item for _, item, _ in rows(found)] == [2, 1, 3]


def test_ids_that_turn_into_text_late_are_text_everywhere(tmp_path: Path) -> None:
    lines = "".join(f"{number % 1000},{number % 70}\n" for number in range(300_000))
    for name, text in (("a.csv", f"user,item\n{lines}last,x\n"), ("a.txt", lines.replace(",", " ") + "last x\n")):
        found = read_interactions(write(tmp_path, text, name))
        assert (found.user_count, found.catalog, len(found)) == (1001, 71, 300_001)
        assert {type(label) for label in found.user_ids} == {str}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b b", "c,", 'd"', "é", "日本", "-1", "NA", "None"]),
            st.integers(-(2**62), 2**62),
            st.integers(0, 2**60),
        ),
        min_size=2,
        max_size=40,
    ).filter(lambda found: len({u for u, _, _ in found}) > 1 and len({i for _, i, _ in found}) > 1)
)
def test_any_csv_is_sorted_stably_with_its_labels(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    pd.DataFrame(given_rows, columns=["user", "item", "time"]).to_csv(path, index=False)
    found = read_interactions(path)
    by_label = sorted(given_rows, key=lambda row: (row[0].encode(), row[2]))
    assert rows(found) == by_label
    assert found.users.tolist() == sorted(found.users.tolist())
    assert set(found.items.tolist()) == set(range(1, found.catalog + 1))


def naive_core(given_rows: list[tuple[int, int]], of_user: int, of_item: int) -> list[tuple[int, int]]:
    while True:
        users, items = Counter(u for u, _ in given_rows), Counter(i for _, i in given_rows)
        kept = [(u, i) for u, i in given_rows if users[u] >= of_user and items[i] >= of_item]
        if kept == given_rows:
            return kept
        given_rows = kept


@pytest.mark.parametrize(("of_user", "of_item"), [(3, 0), (0, 4), (3, 3), (5, 4)])
def test_the_core_is_a_fixed_point(tmp_path: Path, of_user: int, of_item: int) -> None:
    random = np.random.default_rng(1)
    pairs = [(int(u), int(i)) for u, i in zip(random.zipf(1.4, 600) % 90, random.integers(0, 80, 600), strict=True)]
    path = write(tmp_path, "user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs))
    found = read_interactions(path, min_user_interactions=of_user, min_item_interactions=of_item)
    expected = sorted(naive_core(pairs, of_user, of_item), key=lambda pair: pair[0])
    assert [(u, i) for u, i, _ in rows(found)] == expected
    assert len(np.unique(found.items)) == found.catalog
    assert f"kept {len(expected)} of 600" in found.notes[-1]


@pytest.mark.evidence
def test_five_core_of_movielens() -> None:
    path = SHARED / "data" / "ml-100k.inter"
    found = read_interactions(path, min_user_interactions=5, min_item_interactions=5)
    assert (len(found), found.user_count, found.catalog) == (99_287, 943, 1_349)


HEAD = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.csv", "", "is empty", ""),
        ("a.csv", "\n\n", "no column looks like the user", "header"),
        ("a.csv", HEAD, "only a header", ""),
        ("a.xlsx", "x", "unknown extension '.xlsx'", ".parquet"),
        ("a.parquet.gz", "x", "unknown extension '.gz'", ".csv"),
        ("a.parquet", "not parquet at all", "cannot read", "complete"),
        ("a.csv", "a,b\n1,2\n", "(columns are a, b)", "--user-column"),
        ("a.csv", "user,b\n1,2\n", "no column looks like the item (columns are user, b)", "--item-column"),
        ("a.csv", "user,user,item\n1,2,3\n", "'user' would be used twice", ""),
        ("a.csv", HEAD + "1,2,3\n1,,3\n2,2,3\n2,,4\n", "no item id in 2 of 4 rows, the first is data row 2", ""),
        ("a.csv", HEAD + "1,2,3\n1,3,3\nNaN,2,3\n2,5,4\n", "no user id in 1 of 4 rows, the first is data row 3", ""),
        ("a.csv", HEAD + "1,a,3\n1, ,3\n2,b,4\n", "no item id in 1 of 3 rows, the first is data row 2", ""),
        ("a.txt", "1 2\n3\n", "no item id in 1 of 2 rows, the first is data row 2", ""),
        ("a.csv", HEAD + "1,2,3\n1,3\n", "Expected 3 columns, got 2", ""),
        (
            "a.csv",
            HEAD + "1,2,3\n1,3,yesterday\n",
            "unreadable timestamps in 1 of 2 rows, the first is data row 2: 'yesterday'",
            "ISO",
        ),
        (
            "a.csv",
            HEAD + "1,2,3\n1,3,\n2,3,nan\n",
            "unreadable timestamps in 2 of 3 rows, the first is data row 2: None",
            "",
        ),
        (
            "a.csv",
            HEAD + "1,2,inf\n2,3,1.5\n",
            "unreadable timestamps in 1 of 2 rows, the first is data row 1: inf",
            "",
        ),
        ("a.csv", HEAD + "1,2,3\n2,3,-1\n", "negative timestamps in 1 of 2 rows, the first is data row 2: -1", ""),
        ("a.csv", HEAD + "1,2,true\n2,3,false\n", "holds bool values", "--timestamp-column"),
        ("a.csv", HEAD + "1,2,3\n1,3,4\n", "all 2 interactions are of one user", "--user-column"),
        ("a.csv", HEAD + "1,2,3\n2,2,4\n", "all 2 interactions are of one item", "--item-column"),
        ("a.txt", "1 2 3\n1 3 4\n", "3 fields in the first line", "header"),
        ("a.txt", "1 2\n1 3 4\n", "Expected 2 fields in line 2, saw 3", ""),
        ("a.csv", b"user,item\n\xff\xfe\xfa,2\n", "cannot read", ""),
        ("a.csv", b"\x1f\x8b\x00\xff", "cannot read", ""),
    ],
)
def test_wrong_files_are_refused_by_name(
    tmp_path: Path, name: str, content: str | bytes, message: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_interactions(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message.strip()


def test_missing_files_directories_and_cut_off_archives(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file of interactions at"):
        read_interactions(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_interactions(tmp_path)
    cut = tmp_path / "cut.csv.gz"
    random = np.random.default_rng(0).integers(0, 10**9, 20_000)
    cut.write_bytes(gzip.compress(("user,item\n" + "".join(f"{u},1\n" for u in random)).encode())[:-1000])
    with pytest.raises(InputError, match="cannot read"):
        read_interactions(cut)
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(SMALL)
    with pytest.raises(InputError, match="cannot read"):
        read_interactions(plain)


def test_devices_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path, what in ((tmp_path / "pipe.csv", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(InputError, match=f"is {what}"):
            read_interactions(path)


def test_more_rows_than_a_file_can_hold_are_refused(tmp_path: Path) -> None:
    """Ten million equal rows are read; more only where the file is as large as interactions are."""
    rows = 12_000_000
    equal = pa.array(np.ones(rows, dtype=np.int8))
    parquet.write_table(pa.table({"user": equal, "item": equal}), tmp_path / "bomb.parquet")
    with pytest.raises(InputError, match="no interactions do that"):
        read_interactions(tmp_path / "bomb.parquet")
    with gzip.open(tmp_path / "bomb.csv.gz", "wb", 1) as file:
        file.write(b"user,item\n" + b"1,2\n" * rows)
    with pytest.raises(InputError, match="no interactions do that"):
        read_interactions(tmp_path / "bomb.csv.gz")
    with gzip.open(tmp_path / "long.txt.gz", "wb", 1) as file:
        file.write(b"1 2\n" + b"x" * 270_000_000)
    with pytest.raises(InputError, match="more than 256 MiB"):
        read_interactions(tmp_path / "long.txt.gz")


def test_more_rows_than_the_memory_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.csv", "a.csv.gz", "a.parquet"):
        rows_bytes = limits.PARQUET_BYTES_PER_INTERACTION if name == "a.parquet" else limits.BYTES_PER_INTERACTION
        monkeypatch.setattr(limits, "machine_memory_bytes", lambda most=5 * rows_bytes - 1: most)
        if name == "a.parquet":
            pd.read_csv(tmp_path / "a.csv").to_parquet(tmp_path / name)
        else:
            write(tmp_path, SMALL, name)
        with pytest.raises(InputError, match=r"interactions: reading them takes 0 GB of memory, this machine has 0 GB"):
            read_interactions(tmp_path / name)
    monkeypatch.setattr(limits, "machine_memory_bytes", lambda: 600)
    assert len(read_interactions(tmp_path / "a.csv.gz")) == 5


def test_repeated_text_is_never_written_out(tmp_path: Path) -> None:
    """Two ids of a megabyte each in 20,000 rows: 20 GB if every row held its own."""
    codes = pa.array(np.arange(20_000, dtype=np.int32) % 2)
    users = pa.DictionaryArray.from_arrays(codes, pa.array(["a" * 1_000_000, "b" * 1_000_000]))
    items = pa.array([f"i{number % 7}" for number in range(20_000)])
    parquet.write_table(pa.table({"user": users, "item": items, "time": users}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no interactions do that"):  # as times they would have to be written out
        read_interactions(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"user": users, "item": items}), tmp_path / "b.parquet")
    found = read_interactions(tmp_path / "b.parquet")
    assert (found.user_count, found.catalog, len(found)) == (2, 7, 20_000)
    assert found.users.tolist() == [0] * 10_000 + [1] * 10_000


def test_labels_of_a_dictionary_that_no_row_has_are_not_counted(tmp_path: Path) -> None:
    users = pd.Categorical(["b", "a", None], categories=["z", "a", "b", "y"])
    pd.DataFrame({"user": users, "item": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no user id in 1 of 3 rows, the first is data row 3"):
        read_interactions(tmp_path / "a.parquet")
    pd.DataFrame({"user": users[:2], "item": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    assert rows(read_interactions(tmp_path / "a.parquet")) == [("a", 2, None), ("b", 1, None)]


def test_parquet_in_several_row_groups_has_one_numbering(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": [f"u{n % 5}" for n in range(40)], "item": [f"i{n * 7 % 11}" for n in range(40)]})
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=7)
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert rows(read_interactions(tmp_path / "a.parquet")) == rows(read_interactions(tmp_path / "a.csv"))
    parquet.write_table(pa.table({"user": pa.array([[1]]), "item": [1]}), tmp_path / "nested.parquet")
    with pytest.raises(InputError, match="column 'user' holds lists"):
        read_interactions(tmp_path / "nested.parquet")


def test_wrong_columns_and_filters_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    with pytest.raises(InputError, match="no column 'usr_id'") as caught:
        read_interactions(path, columns=Columns(user="usr_id"))
    assert "'user_id'" in caught.value.hint
    with pytest.raises(InputError, match="used twice"):
        read_interactions(path, columns=Columns(user="item_id"))
    with pytest.raises(InputError, match="nothing is left"):
        read_interactions(path, min_user_interactions=4)
    with pytest.raises(InputError, match="min_item_interactions -1"):
        read_interactions(path, min_item_interactions=-1)
