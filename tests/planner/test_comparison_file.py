"""The file of `srsplan compare`: what it stands for, and what is refused."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from srsplan.models.errors import InputError
from srsplan.planner.comparison.configurations import configurations, folder_name
from srsplan.planner.comparison.document import Options, read_compare_file

KNOWN = ("loss", "sampler", "dim", "seq_len", "recompute", "model", "seed")


def names(runs: list[Options], **defaults: object) -> list[str]:
    return [each.name for each in configurations(dict(defaults), runs, KNOWN)]  # type: ignore[arg-type]


def test_lists_stand_for_every_value_and_names_say_what_differs() -> None:
    found = configurations({"dim": 16}, [{"loss": "cce-", "sampler": ["uniform", "popularity"]}, {"loss": "ce"}], KNOWN)
    assert [each.name for each in found] == ["cce- sampler=uniform", "cce- sampler=popularity", "ce"]
    assert found[1].options == {"dim": 16, "loss": "cce-", "sampler": "popularity"}
    assert found[2].options == {"dim": 16, "loss": "ce"}


def test_names() -> None:
    assert names([{"loss": "cce"}, {"loss": "cce", "dim": 32}], dim=16) == ["cce", "cce dim=32"]
    assert names([{"name": "wide", "dim": [32, 64]}, {"name": "narrow"}]) == ["wide dim=32", "wide dim=64", "narrow"]
    assert names([{"--seq-len": 5, "recompute": [True, None]}]) == ["recompute=true", "recompute=default"]
    assert names([{}], dim=[16, 32]) == ["dim=16", "dim=32"]
    assert names([{}]) == ["train"]
    assert folder_name("cce- a/../b ☃") == "cce-_a_.._b"


values = st.lists(
    st.sampled_from([0, 1, 16, True, False, None, 0.5, "cce", "cce-"]), min_size=1, max_size=3, unique_by=repr
)
options = st.fixed_dictionaries({}, optional=dict.fromkeys(KNOWN[:-1], values))


@given(options, options)
def test_a_run_is_the_product_of_its_lists(run: Options, base: Options) -> None:
    """As many configurations as the product of the lists, all different, each with one value of every option."""
    found = configurations(base, [run], KNOWN)
    merged = {**base, **run}
    assert len(found) == prod(len(each) for each in merged.values() if isinstance(each, list))
    assert len({repr(each.options) for each in found}) == len({each.folder.lower() for each in found}) == len(found)
    assert all(each.options.keys() == merged.keys() for each in found)


@pytest.mark.parametrize(
    ("runs", "message", "hint"),
    [
        ([{"los": "cce"}], "runs.0: unknown key 'los'", "did you mean 'loss'?"),
        ([{"loss": "cce"}, {"seq-len": 5, "seq_len": 6}], "runs.1: seq_len is given twice", "once"),
        ([{"seed": 3}], "seed is no option of a single run", "seeds of the file"),
        ([{"dim": []}], "runs.0.dim is an empty list", "at least one"),
        ([{"dim": {"a": 1}}], "runs.0.dim = a dict of 1", "a list of values"),
        ([{"loss": "cce"}, {"loss": "cce"}], "two configurations are named 'cce'", "no configuration twice"),
        ([{"name": "a b"}, {"name": "a_b"}], "'a b' and 'a_b' stand for the same folder", "a name of its own"),
        ([{"name": "Runs.csv"}], "is that of a file in the output", "another name"),
        ([{"name": "a\x1bb"}], "is no name", "printable"),
        ([{"dim": list(range(50)), "seq_len": list(range(50))}], "more than 1,000 configurations", "shorten"),
    ],
)
def test_wrong_runs(runs: list[Options], message: str, hint: str) -> None:
    with pytest.raises(InputError) as raised:
        configurations({}, runs, KNOWN)
    assert message in raised.value.message
    assert hint in raised.value.hint


def written(folder: Path, text: str) -> Path:
    path = folder / "compare.yaml"
    path.write_text(text)
    return path


def test_seeds_and_data_of_a_file(tmp_path: Path) -> None:
    found = read_compare_file(written(tmp_path, "data: [a.csv, b/c.inter]\nseeds: 2\nruns: [{loss: cce}]"))
    assert found.seeds == (42, 43)
    assert found.data_by_name(tmp_path) == {"a": tmp_path / "a.csv", "c": tmp_path / "b" / "c.inter"}
    assert read_compare_file(written(tmp_path, "data: a\nseeds: [7, 1]\nruns: [{}]")).seeds == (7, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: a\nsede: 3\nruns: [{}]", "unknown key 'sede'"),
        ("data: a\nruns: []", "runs = a list of 0"),
        ("runs: [{}]", "data is missing"),
        ("data: a\nseeds: [1, 2, 1]\nruns: [{}]", "the seed 1 stands twice"),
        ("data: a\nseeds: [true]\nruns: [{}]", "True is no seed"),
        ("data: a\nseeds: 0\nruns: [{}]", "seeds = 0"),
        ("data: []\nruns: [{}]", "data = a list of 0"),
        ("data: a\nmetric: NDCG_11\nruns: [{}]", "no metric 'NDCG_11'"),
        ("data: a\nruns: [{loss: &x cce}]", "anchors or aliases"),
        ("- 3", "is no comparison file"),
        ("data: [", "is not YAML"),
        ("data: a\nruns:\n- loss: cce\n  loss: ce", "the key 'loss' stands twice"),
        ("data: a\nruns: [{1: 2}]", "runs.0.1"),
    ],
)
def test_wrong_files(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_compare_file(written(tmp_path, text))
    assert message in raised.value.message
    assert raised.value.hint


def test_data_files_of_one_name(tmp_path: Path) -> None:
    found = read_compare_file(written(tmp_path, "data: [a/x.csv, b/x.inter]\nruns: [{}]"))
    with pytest.raises(InputError, match="two data files are named 'x'"):
        found.data_by_name(tmp_path)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6))
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["data", "output", "seeds", "metric", "defaults", "runs", "zebra"])
runs = st.lists(st.dictionaries(st.sampled_from([*KNOWN, "name", "data", "zebra"]), anything, max_size=3), max_size=3)


@given(st.dictionaries(keys, anything, max_size=4), st.one_of(anything, runs))
def test_whatever_a_file_holds_it_is_read_or_refused(document: dict[str, object], runs: object) -> None:
    """No other exception than the one that becomes a message; what is read can be expanded, or is refused as well."""
    content = {"data": "a.csv", **document, "runs": runs}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_text(yaml.safe_dump(content))
        try:
            found = read_compare_file(path)
            configured = configurations(found.defaults, found.runs, KNOWN)
            found.data_by_name(Path(folder))
        except InputError as error:
            assert error.hint  # noqa: PT017
            return
    assert configured
    assert len(set(found.seeds)) == len(found.seeds) >= 1
