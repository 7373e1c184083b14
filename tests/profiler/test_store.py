"""The file of records: cut anywhere, damaged, hostile, locked, on a full disk."""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from probe_records import CONFIGURATION, record, stored

from srsplan.models.errors import InputError, SrsplanError
from srsplan.planner.calibration import model_of
from srsplan.profiler.memory.model import MemoryModel
from srsplan.profiler.probes.records import ProbeRecord
from srsplan.profiler.probes.store import MOST_RECORDS, Store, load


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 10_000), kept=st.integers(0, 4))
def test_a_file_cut_anywhere_loses_at_most_its_last_line(tmp_path: Path, cut: int, kept: int) -> None:
    path = tmp_path / "probes.jsonl"
    path.unlink(missing_ok=True)
    records = [record(size) for size in range(1, kept + 2)]
    stored(path, *records)
    content = path.read_bytes()
    start = len(content) - len(records[-1].to_line())
    path.write_bytes(content[: start + cut % (len(content) - start)])
    with Store(path) as store:
        assert store.records == records[:-1]
        store.append(records[-1])
    assert load(path).records == tuple(records)


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "probes.jsonl", record(1), record(2))
    lines = path.read_text().splitlines()
    for damaged, phrase in (
        ("{]", "line 2 is not JSON"),
        (lines[0].replace('"schema": 1', '"schema": 9'), "line 2: schema = 9: Input should be 1"),
        (lines[0].replace("allocated_bytes", "alocated_bytes"), "line 2: unknown key 'alocated_bytes'"),
        (lines[0].replace('"ok"', '"fine"'), "line 2: status = 'fine'"),
        ("[1]", "line 2: .*object"),
    ):
        path.write_text("\n".join([lines[0], damaged, lines[1]]) + "\n")
        with pytest.raises(InputError, match=phrase):
            load(path)


def test_a_second_profiler_is_told_and_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    with Store(path) as first:
        with pytest.raises(InputError, match="in use"), Store(path):
            pass
        first.append(record())
    assert len(load(path).records) == 1


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written = stored(tmp_path / "probes.jsonl", record(1)), os.write

    def full(file: int, data: bytes) -> int:
        written(file, data[:20])
        raise OSError(28, "No space left on device")

    with Store(path) as store:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(SrsplanError, match="No space left on device; the records before are whole"):
            store.append(record(2))
        monkeypatch.undo()
        store.append(record(3))
    assert load(path).records == (record(1), record(3))


@pytest.mark.parametrize(
    "content", [b"years of work", b"\x00\xff\x00", b"user,item\n1,2\n3,4", b'{"schema": 9, "a"', b"1\n2"]
)
def test_a_file_that_is_no_profile_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    if content.startswith(b'{"schema"'):  # half a line of ours: a kill may have left it
        with Store(path) as store:
            assert store.cut_off
        return
    with pytest.raises(InputError), Store(path):
        pass
    assert path.read_bytes() == content


def changed_line(**changes: Any) -> str:
    """A record's line with other values, whatever they are; `configuration.x` goes deeper."""
    document = json.loads(record(basis="measured", reserved_bytes=9).to_line())
    for name, value in changes.items():
        inner, _, outer = name.rpartition("__")
        (document[inner] if inner else document)[outer] = value
    return json.dumps(document) + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"allocated_bytes": -1}, {"allocated_bytes": 0}, {"allocated_bytes": 1e30}, {"allocated_bytes": 10**30},
        {"allocated_bytes": 5.0}, {"allocated_bytes": "5"}, {"allocated_bytes": True}, {"allocated_bytes": [5]},
        {"reserved_bytes": float("nan")}, {"reserved_bytes": 0}, {"step_ms_median": float("inf")},
        {"step_ms_median": 0}, {"step_ms_median": -1.0}, {"step_ms_median": "fast"}, {"step_ms_p95": float("nan")},
        {"seconds": -1}, {"retries": -1}, {"context_bytes": 2**70}, {"cap_bytes": 0}, {"gpu": None}, {"gpu": 5},
        {"gpu": "x" * 10_000}, {"status": "fine"}, {"status": ["ok"]}, {"basis": 5}, {"schema": "1"},
        {"configuration": 5}, {"configuration": None}, {"configuration": []}, {"configuration__loss": "foo"},
        {"configuration__loss": ["cce"]}, {"configuration__batch_size": "4"}, {"configuration__batch_size": -4},
        {"configuration__seq_len": 1.5}, {"configuration__catalog": 10**30}, {"configuration__architecture": "big"},
        {"configuration__architecture": {"dim": "64"}}, {"configuration__colour": 3}, {"configuration__sampler": "x"},
        {"configuration__architecture": {"dropout": "0.1"}}, {"configuration__architecture": {"hight": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_no_probe_finds_are_refused_by_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text(changed_line() + changed_line(**changes))
    with pytest.raises(InputError, match="line 2") as caught:
        model_of(path)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, '{"schema": 1, "configuration": ' + "[" * 100_000])
def test_a_line_of_any_depth_is_one_clear_error(tmp_path: Path, deep: str) -> None:
    path = tmp_path / "probes.jsonl"
    for line in (deep, deep[:8000]):
        path.write_text(changed_line() + line + "\n")
        with pytest.raises(InputError, match="line 2 is"):
            load(path)


def test_a_profile_of_the_most_records_is_read_in_seconds_and_a_larger_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    lines = [record(size, basis="measured", reserved_bytes=1 << 30).to_line() for size in range(1, 257)]
    path.write_text("".join(lines) * (MOST_RECORDS // 256))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert len(model_of(path).sentence) < 500
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB
    with path.open("a") as file:
        file.write(lines[0])
    with pytest.raises(InputError, match=f"more than {MOST_RECORDS:,} lines"):
        load(path)
    path.write_text("".join(lines) * (MOST_RECORDS // 256))
    with Store(path) as store, pytest.raises(SrsplanError, match="the most of a profile"):
        store.append(record(999))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "large", "nothing"])
def test_what_is_no_regular_file_of_a_profiles_size_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "probes.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(InputError, match=str(path)):
        load(path)


def test_fresh_replaces_a_profile_with_the_first_record_and_nothing_before(tmp_path: Path) -> None:
    path = stored(tmp_path / "probes.jsonl", record(1), record(2))
    with Store(path, fresh=True) as store:
        assert store.records == []
        assert len(load(path).records) == 2  # a run that ends before its first record has lost nothing
        store.append(record(3))
        assert load(path).records == (record(3),)
        store.append(record(4))
    assert load(path).records == (record(3), record(4))


def test_a_link_to_a_profile_is_the_profile_also_for_the_lock(tmp_path: Path) -> None:
    path, link = stored(tmp_path / "probes.jsonl", record(1)), tmp_path / "link.jsonl"
    link.symlink_to(path)
    with Store(link) as store:
        with pytest.raises(InputError, match="in use"), Store(path):
            pass
        store.append(record(2))
    assert link.is_symlink()
    assert len(load(path).records) == 2


@settings(deadline=None)
@given(st.integers(0, 2**50 - 2), st.floats(1e-3, 1e9), st.text(max_size=40))
def test_a_record_is_read_as_it_was_written(size: int, step_ms: float, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    written = record(allocated_bytes=size + 1, step_ms_median=step_ms, error_tail=text, device=text)
    assert ProbeRecord.from_line(written.to_line(), "a line") == written
    assert written.to_line().count("\n") == 1


def test_records_of_many_forms_are_compared_with_their_own_prediction(tmp_path: Path) -> None:
    """A profile of several losses, precisions and options: the closed form's error is that of its worst record."""
    forms = [
        CONFIGURATION, replace(CONFIGURATION, loss="ce"), replace(CONFIGURATION, precision="fp16"),
        replace(CONFIGURATION, recompute=True), replace(CONFIGURATION, pass_tokens=CONFIGURATION.seq_len),
        replace(CONFIGURATION, loss="cce-", negatives=7),
    ]  # fmt: skip
    model = MemoryModel()
    path = tmp_path / "probes.jsonl"
    exact = [record().changed(configuration=each, allocated_bytes=int(model.allocated([each])[0])) for each in forms]
    path.write_text("".join(each.to_line() for each in exact))
    assert "within 0.00% of 6 probes" in model_of(path).sentence
    wrong = exact[3].changed(allocated_bytes=(exact[3].allocated_bytes or 0) // 2)
    path.write_text("".join(each.to_line() for each in [*exact[:3], wrong, *exact[4:]]))
    assert "within 100.00% of 6 probes" in model_of(path).sentence
