"""What a message says of a document that does not fit its schema."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from srsplan.models.errors import InputError
from srsplan.models.schema import Bytes, Count, Document, Milliseconds, Seconds, explained, shown


class Part(Document):
    size: Bytes = 0
    count: Count = 1
    step: Milliseconds = 1.0
    seconds: Seconds = 0.0


class Whole(Document):
    name: str
    parts: tuple[Part, ...] = ()


def refused(document: Any) -> InputError:
    with pytest.raises(ValidationError) as found:
        Whole.model_validate(document)
    return explained(found.value, "plan.yaml", ["name", "parts", "size", "seconds"], "make it anew")


def test_what_is_wrong_is_said_with_its_place() -> None:
    missing = refused({"parts": []})
    assert (missing.message, missing.hint) == ("plan.yaml: name is missing", "make it anew")
    unknown = refused({"name": "a", "parts": [{"secnods": 1}]})
    assert unknown.message == "plan.yaml: unknown key 'parts.0.secnods'"
    assert unknown.hint == "did you mean 'seconds'?"
    assert refused({"name": "a", "zebra": 1}).hint == "remove 'zebra'"
    wrong = refused({"name": "a", "parts": [{"size": -1}]})
    assert wrong.message.startswith("plan.yaml: parts.0.size = -1: ")
    assert wrong.exit_code == 2


@pytest.mark.parametrize("value", [True, "5", 5.5, None, -1, 2**63, [], {}, float("nan"), "0x10"], ids=repr)
@pytest.mark.parametrize("key", ["size", "count"])
def test_sizes_are_whole_numbers_and_nothing_else(key: str, value: object) -> None:
    assert f"parts.0.{key} = " in refused({"name": "a", "parts": [{key: value}]}).message


@pytest.mark.parametrize("value", [True, "5", None, -1, float("nan"), float("inf"), 1e30, 10**400], ids=str)
@pytest.mark.parametrize("key", ["step", "seconds"])
def test_times_are_numbers_that_a_clock_can_show(key: str, value: object) -> None:
    assert f"parts.0.{key} = " in refused({"name": "a", "parts": [{key: value}]}).message


def test_ordinary_documents_are_taken_and_do_not_change() -> None:
    part = Whole.model_validate({"name": "a", "parts": [{"size": 0, "count": 1, "step": 3, "seconds": 0}]}).parts[0]
    assert (part.size, part.count, part.step, part.seconds) == (0, 1, 3.0, 0.0)
    with pytest.raises(ValidationError):
        part.size = 5


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(anything)
def test_a_value_is_shown_within_a_line(value: object) -> None:
    assert len(shown(value)) <= 90
    assert shown(value).isprintable()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 10_000, "'" + "x" * 79 + "..."), (10**5000, "an enormous number"), (-(10**81), "an enormous number"),
        ([[1] * 1000] * 1000, "a list of 1000"), ({"a": 1}, "a dict of 1"), (1.5, "1.5"), ("a\x1b[2J", "'a\\x1b[2J'"),
        (b"x" * 500, "b'" + "x" * 78 + "..."),
    ],
    ids=lambda each: repr(each)[:20] if not isinstance(each, int) else "number",
)  # fmt: skip
def test_values_in_messages(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_keys_and_deep_places_stay_within_two_lines() -> None:
    error = refused({"name": "a", "k" * 10_000: 1})
    assert len(error.message) < 250
    assert len(error.hint) < 250
