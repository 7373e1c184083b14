"""Prepared interactions: the same as those that were read, made anew where they are damaged, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srsplan.models.data import prepared, progress, reading, shelf, splits
from srsplan.models.data.interactions import Columns, read_interactions
from srsplan.models.data.options import DataOptions, Minimums
from srsplan.models.data.prepared import SplitData
from srsplan.models.data.reading import read_split
from srsplan.models.data.splits import Strategy
from srsplan.models.errors import InputError
from srsplan.models.files import locked

READ_AGAIN, REUSED, NOT_KEPT = "prepared for the next command", "was not read again", "could not be kept"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in which small files are kept as well."""
    monkeypatch.setenv("SRSPLAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "KEPT_FROM_BYTES", 0)
    return tmp_path / "cache"


def table(rows: int = 400, seed: int = 0, *, text: bool = False) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    columns = {"user_id": (0, 30), "item_id": (100, 140), "timestamp": (0, 40)}
    frame: pd.DataFrame = pd.DataFrame({name: draw.integers(*bounds, rows) for name, bounds in columns.items()})
    if text:
        frame["item_id"] = [f"ä{number}" for number in frame["item_id"]]
    return frame


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    table().to_parquet(tmp_path / "clicks.parquet")
    return tmp_path / "clicks.parquet"


def read(path: Path, **changed: Any) -> SplitData:
    minimums = changed.pop("minimums", Minimums())
    seed = changed.pop("seed", 42)
    return read_split(DataOptions(path=path, **changed), minimums=minimums, seed=seed)


def directly(path: Path, **changed: Any) -> SplitData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRSPLAN_CACHE", "off")
        return read(path, **changed)


def arrays(data: SplitData) -> dict[str, np.ndarray[Any, Any]]:
    parts = data.split
    return {
        "train": parts.train.values, "train offsets": parts.train.offsets,
        "validation": parts.validation.histories.values, "validation offsets": parts.validation.histories.offsets,
        "validation targets": parts.validation.targets, "test": parts.test.histories.values,
        "test offsets": parts.test.histories.offsets, "test targets": parts.test.targets,
        "ids": data.item_ids, "counts": parts.item_counts, "users": parts.users_per_item,
    }  # fmt: skip


def assert_same(found: SplitData, expected: SplitData) -> None:
    for name, array in arrays(expected).items():
        other = arrays(found)[name]
        assert (other.dtype, other.tolist()) == (array.dtype, array.tolist()), name
    assert found.split.notes == expected.split.notes
    assert found.notes[: len(expected.notes)] == expected.notes
    assert (found.split.catalog, found.split.strategy) == (expected.split.catalog, expected.split.strategy)


def said(data: SplitData, what: str) -> bool:
    return any(what in note for note in data.notes)


def entry(cache: Path) -> Path:
    (found,) = entries(cache)
    return found


def entries(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.glob("prepared/*/[!.]*/manifest.json"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=50),
    text=st.booleans(),
    timed=st.booleans(),
    strategy=st.sampled_from(["auto", "leave-one-out"]),
    of_user=st.integers(0, 3),
    of_item=st.integers(0, 2),
    seed=st.integers(0, 3),
)
def test_prepared_is_what_was_read(
    tmp_path: Path,
    rows: list[tuple[int, int, int]],
    text: bool,
    timed: bool,
    strategy: Strategy,
    of_user: int,
    of_item: int,
    seed: int,
) -> None:
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    frame = frame.assign(item="ü" * 2 + frame["item"].astype(str)) if text else frame
    path = tmp_path / "a.parquet"
    path.unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (frame if timed else frame.drop(columns="time")).to_parquet(path)
    chosen = {"strategy": strategy, "minimums": Minimums(user=of_user, item=of_item), "seed": seed}
    expected, refused = outcome(directly, path, **chosen)
    if expected is None:
        assert outcome(read, path, **chosen) == (None, refused)
        assert entries(tmp_path / "cache") == []
        return
    first, second = read(path, **chosen), read(path, **chosen)
    assert said(first, READ_AGAIN)
    assert said(second, REUSED)
    for found in (first, second):
        assert_same(found, expected)


def outcome(reader: Callable[..., SplitData], path: Path, **chosen: Any) -> tuple[SplitData | None, str]:
    try:
        return reader(path, **chosen), ""
    except InputError as refused:
        return None, refused.message


@pytest.mark.parametrize("block_rows", [1, 7, 64])
def test_counts_and_notes_are_the_same_piece_by_piece(
    clicks: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    expected = directly(clicks)
    assert expected.split.users_per_item.sum() < len(expected.split.train.values)  # somebody has an item twice
    monkeypatch.setattr(splits, "BLOCK_ROWS", block_rows)
    assert_same(directly(clicks), expected)


def test_the_second_command_reads_nothing(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(clicks)
    monkeypatch.setattr(reading, "read_interactions", None)
    found = read(clicks)
    assert isinstance(found.split.train.values.base, np.memmap)  # batches are cut from the file itself
    assert not found.split.train.values.flags.writeable


def test_other_options_and_other_data_are_not_mixed_up(clicks: Path, cache: Path, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {}, {"seed": 7}, {"strategy": "leave-one-out"}, {"minimums": Minimums(item=11)},
        {"columns": Columns(user="item_id", item="user_id")},
    ]  # fmt: skip
    for chosen in options:
        assert_same(read(clicks, **chosen), directly(clicks, **chosen))
    assert len(entries(cache)) == shelf.MOST_FOLDERS
    table(seed=1).to_parquet(tmp_path / "new.parquet")
    os.replace(tmp_path / "new.parquet", clicks)
    found = read(clicks, **options[-1])
    assert_same(found, directly(clicks, **options[-1]))
    assert said(found, "the data have changed since")
    assert len(entries(cache)) == 1  # what was prepared of the old file is of no use to anybody


def test_a_file_of_the_same_size_and_time_but_another_inode_is_another(clicks: Path, tmp_path: Path) -> None:
    read(clicks)
    copy = tmp_path / "copy.parquet"
    shutil.copy2(clicks, copy)
    os.replace(copy, clicks)
    assert said(read(clicks), "the data have changed since")


def test_a_part_more_is_other_data(tmp_path: Path) -> None:
    folder = tmp_path / "clicks"
    folder.mkdir()
    table().to_parquet(folder / "a.parquet")
    read(folder)
    assert said(read(folder), REUSED)
    table(seed=1).to_parquet(folder / "b.parquet")
    found = read(folder)
    assert said(found, "the data have changed since")
    assert_same(found, directly(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def foreign(path: Path) -> None:
    path.write_text('{"name": "app"}')


def edited(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (lambda at: cut_off(at / "train_values.npy"), "train_values.npy has another size"),
    "flipped": (lambda at: flip(at / "test_values.npy"), "test_values.npy has another checksum"),
    "gone": (lambda at: (at / "item_ids.npy").unlink(), "it is damaged"),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "no manifest"),
    "manifest cut off": (lambda at: cut_off(at / "manifest.json"), "its manifest is damaged"),
    "manifest flipped": (lambda at: edited(at / "manifest.json", catalog=41), "its manifest is damaged"),
    "foreign": (lambda at: foreign(at / "manifest.json"), "its manifest is damaged"),
    "other format": (lambda at: edited(at / "manifest.json", version=2), "its format is of another version"),
    "other srsplan": (lambda at: other_srsplan(at), "srsplan 0.0.1 made it"),
}


def other_srsplan(at: Path) -> None:
    manifest = prepared.manifest_of(at)
    changed = manifest.model_copy(update={"key": manifest.key.model_copy(update={"srsplan": "0.0.1"})})
    changed = changed.model_copy(update={"crc32": changed.checksum()})
    (at / "manifest.json").write_text(changed.model_dump_json())


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("text", [False, True])
def test_what_is_damaged_is_made_anew_and_said(tmp_path: Path, cache: Path, what: str, text: bool) -> None:
    path = tmp_path / "clicks.parquet"
    table(text=text).to_parquet(path)
    expected = read(path)
    damage, reason = DAMAGES[what]
    damage(entry(cache))
    found = read(path)
    assert_same(found, directly(path))
    (note,) = [note for note in found.notes if "is made anew" in note]
    assert str(entry(cache)) in note
    assert reason in note
    assert said(read(path), REUSED)
    assert expected.notes == directly(path).notes + expected.notes[-1:]


def test_files_of_others_stay(clicks: Path, cache: Path) -> None:
    """A prepared folder with a file of the user's in it cannot be replaced: the command goes on without it."""
    read(clicks)
    own = entry(cache) / "notes.txt"
    own.write_text("mine")
    cut_off(entry(cache) / "train_values.npy")
    found = read(clicks)
    assert said(found, NOT_KEPT)
    assert_same(found, directly(clicks))
    assert own.read_text() == "mine"
    assert files(own.parent) == ["notes.txt"]
    place = own.parent
    shutil.rmtree(place)
    place.write_text("mine")
    assert said(read(clicks), NOT_KEPT)
    assert place.read_text() == "mine"


def test_what_a_killed_process_left_goes(clicks: Path, cache: Path) -> None:
    read(clicks)
    left = entry(cache).parent / ".abcd1234.part"
    shutil.copytree(entry(cache), left)
    flip(entry(cache) / "train_values.npy")
    read(clicks)
    assert not left.exists()
    assert said(read(clicks), REUSED)


def test_what_nobody_uses_goes(clicks: Path, cache: Path, tmp_path: Path) -> None:
    read(clicks)
    old, long_ago = entry(cache), time.time() - (shelf.UNUSED_DAYS + 1) * 86_400
    table(seed=2).to_parquet(tmp_path / "other.parquet")
    read(tmp_path / "other.parquet")
    assert len(entries(cache)) == 2
    os.utime(old / "manifest.json", (long_ago, long_ago))
    read(clicks)  # a use
    read(tmp_path / "other.parquet", seed=1)
    assert len(entries(cache)) == 3
    os.utime(old / "manifest.json", (long_ago, long_ago))
    read(tmp_path / "other.parquet", seed=2)
    assert old not in entries(cache)


def test_small_files_leave_no_traces(clicks: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KEPT_FROM_BYTES", clicks.stat().st_size + 1)
    assert read(clicks).notes == directly(clicks).notes
    assert not cache.exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SRSPLAN_CACHE": "off"}, None),
        ({"SRSPLAN_CACHE": "/a"}, Path("/a")),
        ({"SRSPLAN_CACHE": "", "XDG_CACHE_HOME": "/b"}, Path("/b/srsplan")),
        ({"SRSPLAN_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, Path("/c/.cache/srsplan")),
    ],
)
def test_where_it_is_kept(variables: dict[str, str], expected: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shelf.cache_folder() == expected


@pytest.mark.parametrize("what", ["a file in its place", "a foreign lock", "in use"])
def test_without_a_place_the_command_goes_on(
    clicks: Path, cache: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WAIT_SECONDS", 0.1)
    if what == "a file in its place":
        cache.write_text("mine")
    else:
        read(clicks)
        lock = entry(cache).parent / ".lock"
        flip(entry(cache) / "train_values.npy")
        if what == "in use":
            with locked(lock, "it"):
                found = read(clicks)
            assert said(found, "in use by another srsplan")
        else:
            lock.write_text("mine")
    found = read(clicks) if what != "in use" else found
    assert_same(found, directly(clicks))
    assert said(found, NOT_KEPT)
    assert cache.is_dir() or cache.read_text() == "mine"


START = """
import sys
from pathlib import Path
from srsplan.models.data import reading, shelf
from srsplan.models.data.options import DataOptions
reading.KEPT_FROM_BYTES = 0
{before}
print("ready", flush=True)
found = reading.read_split(DataOptions(path=Path({path!r})))
print(*found.notes, sep="\\n")
print(found.split.train.values.sum(), found.split.test.targets.sum())
"""


WAITING = """
held = shelf.Shelf.held
def telling(self, seconds):
    Path({asked!r}).touch()
    return held(self, seconds)
shelf.Shelf.held = telling
"""


def child(path: Path, before: str = "") -> subprocess.Popen[str]:
    code = START.format(path=str(path), before=before)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    table(rows=50_000).to_parquet(tmp_path / "many.parquet")
    return tmp_path / "many.parquet"


def test_a_full_disk_leaves_nothing_half_done(many: Path, cache: Path) -> None:
    """No file may become longer than 64 KiB: the system refuses in the middle of an array, as a full disk does."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    answer, _ = child(many, limit).communicate(timeout=60)
    expected = directly(many).split
    assert f"({os.strerror(27)}): the next command reads again" in answer
    assert f"{expected.train.values.sum()} {expected.test.targets.sum()}" in answer
    assert [name for name in files(cache) if not name.endswith(".lock")] == []


def test_a_nearly_full_disk_is_left_alone(clicks: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "SPARE_BYTES", shutil.disk_usage(clicks.parent).free)
    found = read(clicks)
    assert said(found, os.strerror(28))
    assert_same(found, directly(clicks))
    assert entries(cache) == []


def test_two_commands_at_once_prepare_once(many: Path, cache: Path) -> None:
    wait = WAITING.format(asked=str(cache / "asked"))
    folder = cache / "prepared" / shelf._hash(os.fsencode(os.path.realpath(many)))
    folder.mkdir(parents=True)
    with locked(folder / ".lock", "it"):
        children = [child(many, wait) for _ in range(2)]
        until(lambda: (cache / "asked").exists())
        time.sleep(0.5)
        assert all(each.poll() is None for each in children)  # they wait
    answers = [each.communicate(timeout=60)[0] for each in children]
    assert sorted(READ_AGAIN in answer for answer in answers) == [False, True]
    assert sorted(REUSED in answer for answer in answers) == [False, True]
    assert answers[0].splitlines()[-1] == answers[1].splitlines()[-1]
    assert len(entries(cache)) == 1


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    clicks: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appended(*given: Any, **options: Any) -> Any:
        found = read_interactions(*given, **options)
        table(seed=3).to_parquet(clicks)
        return found

    monkeypatch.setattr(reading, "read_interactions", appended)
    assert said(read(clicks), "warning: clicks.parquet changed while it was read")
    assert entries(cache) == []


def test_progress_is_told_to_who_listens(clicks: Path) -> None:
    heard: list[tuple[str, float]] = []
    with progress.heard_by(lambda doing, share: heard.append((doing, share))):
        read(clicks, minimums=Minimums(item=2))
        first = len(heard)
        read(clicks, minimums=Minimums(item=2))
    shares = [share for _, share in heard[:first]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {doing for doing, _ in heard[:first]} >= {"reading users", "filtering", "ordering", "splitting", "keeping"}
    assert {doing for doing, _ in heard[first:]} == {"checking prepared data"}
    read(clicks)
    assert heard[-1] == ("checking prepared data", 1.0)


@pytest.fixture(autouse=True, scope="module")
def _no_handles_left() -> Iterator[None]:
    yield
    assert not [path for path in Path("/proc/self/fd").iterdir() if str(path.resolve()).endswith(".lock")]
