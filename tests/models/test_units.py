"""Sizes and counts: what people write is read exactly or refused in one sentence."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsplan.models.errors import InputError
from srsplan.models.units import (
    format_count,
    format_duration,
    format_gb,
    format_gib,
    format_ms,
    parse_bytes,
    parse_count,
    parse_seconds,
)

COUNTS = st.integers(1, 2**63 - 1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("30min", 1800), ("2h", 7200), ("1.5h", 5400), ("3d", 259_200), ("90", 90), ("2 H", 7200),
        ("1,000 sec", 1000), (".5min", 30), ("1e3", 1000),
    ],
)  # fmt: skip
def test_times_people_write(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "min", "5m", "5 minutes", "1h30", "-2h", "0s", "0.5s", "nan", "inf", "1e400h", "2hh", "1,5h", "²h"]
)
def test_what_is_no_time_is_one_clear_message(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_seconds(text, "--epoch-time")
    assert caught.value.message.startswith(f"--epoch-time {text!r}")
    assert "30min" in caught.value.hint


@given(st.integers(1, 10**6), st.sampled_from([("s", 1), ("sec", 1), ("min", 60), ("h", 3600), ("d", 86_400), ("", 1)]))
def test_times_are_their_number_times_their_unit(count: int, unit: tuple[str, int]) -> None:
    name, seconds = unit
    assert parse_seconds(f"{count}{name}") == count * seconds
    assert parse_seconds(f" {count} {name.upper()} ") == count * seconds


@given(st.text(max_size=12))
def test_any_text_is_a_time_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        assert 1 <= parse_seconds(text) < 2**63


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40GB", 40_000_000_000),
        ("40GiB", 42_949_672_960),
        ("40G", 40_000_000_000),
        ("512MB", 512_000_000),
        ("512 MiB", 536_870_912),
        ("42949672960", 42_949_672_960),
        ("1.5 TB", 1_500_000_000_000),
        ("2TiB", 2_199_023_255_552),
        ("40gb", 40_000_000_000),
        ("  7 kib ", 7168),
        ("1,024 B", 1024),
        ("12 bytes", 12),
        (".5k", 500),
        ("1.e3", 1000),
        ("0.0015MB", 1500),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes_people_write(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.6M", 1_600_000),
        ("300K", 300_000),
        ("1_600_000", 1_600_000),
        ("1,600,000", 1_600_000),
        ("1.6e6", 1_600_000),
        ("1.6E+6", 1_600_000),
        ("2B", 2_000_000_000),
        ("1600000", 1_600_000),
        ("0.001k", 1),
        ("1500e-2", 15),
    ],
)
def test_counts_people_write(text: str, expected: int) -> None:
    assert parse_count(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "GB", "-4GB", "0", "0GB", "nan", "inf", "-inf", "1e400", "4e", "12XB", "1e-999", "0x10"),
        *("1,6GB", "1,60,000", "1__0", "_1", "1 2", "٣GB", "ＧＢ", "4GB;", "4GB\n5GB"),
        *("9223372036854775808", "10000000TB", "1" * 5000),
    ],
)
@pytest.mark.parametrize("parse", [parse_bytes, parse_count])
def test_nonsense_is_refused_with_a_way_out(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(InputError) as caught:
        parse(text, "--budget")
    assert caught.value.message.startswith("--budget '")
    assert len(caught.value.message) < 160
    assert "write a" in caught.value.hint


def test_messages_repeat_the_input_and_name_the_option() -> None:
    with pytest.raises(InputError, match=r"^--catalog '1\.6X': not a count$") as caught:
        parse_count("1.6X", "--catalog")
    assert "1.6M" in caught.value.hint
    with pytest.raises(InputError, match=r"^--catalog '1\.6': not a whole number$"):
        parse_count("1.6", "--catalog")
    with pytest.raises(InputError, match=r"^--budget '-4GB': must be above zero$"):
        parse_bytes("-4GB", "--budget")
    with pytest.raises(InputError, match=r"^--budget '0\.1': must be at least 1$"):
        parse_bytes("0.1", "--budget")


def test_no_rounding_on_the_way() -> None:
    """A binary float, or a decimal of 28 digits, would take this for a whole number."""
    with pytest.raises(InputError, match="not a whole number"):
        parse_count("1.0000000000000000000000000000000001M")


@given(st.text(max_size=80) | st.from_regex(r"[0-9.,_e+ -]{0,12}[kmgtib]{0,3}", fullmatch=True))
def test_any_text_is_a_size_or_an_input_error(text: str) -> None:
    for parse in (parse_bytes, parse_count):
        try:
            value = parse(text)
        except InputError:
            continue
        assert type(value) is int
        assert 0 < value < 2**63


@given(COUNTS)
def test_every_spelling_of_a_count_reads_back(count: int) -> None:
    millions = Decimal(count).scaleb(-6)
    for text in (f"{count}", f"{count:,}", f"{count:_}", f"{millions:f}M", f"{Decimal(count):e}"):
        assert parse_count(text) == count
        assert parse_bytes(text.replace("M", "MB")) == count


@given(st.integers(1, 10**15))
def test_formatted_sizes_and_counts_read_back(value: int) -> None:
    """As close as the digits shown: two decimals from a GiB or GB on, one of a smaller unit."""
    for text in (format_gib(value), format_gb(value)):
        assert parse_bytes(text) == pytest.approx(
            value, rel=0.05 if text.endswith(("iB", "B")) and value < 10**9 else 0.005
        )
    assert parse_count(format_count(value)) == pytest.approx(value, rel=6e-4)


@given(st.integers(1, 9999), st.sampled_from([1, 1000, 10**6, 10**9]))
def test_round_counts_are_shown_without_loss(digits: int, scale: int) -> None:
    assert parse_count(format_count(digits * scale)) == digits * scale


@given(st.integers(10, 10**17))
def test_sizes_never_show_a_thousand_of_a_smaller_unit(value: int) -> None:
    for text, base in ((format_gib(value), 1024), (format_gb(value), 1000)):
        number, unit = text.split(" ")
        assert float(number) < base or unit in {"TiB", "TB"}


def test_formats() -> None:
    assert format_gib(14_334_453_350) == "13.35 GiB"
    assert format_gib(536_870_912) == "512.0 MiB"
    assert format_gib(2**30 - 1) == "1.00 GiB"
    assert format_gib(0) == "0 bytes"
    assert format_gib(int(1.4 * 2**40)) == "1.40 TiB"
    assert format_gb(1.5e12) == "1.50 TB"
    assert format_gib(-2 * 2**30) == "-2.00 GiB"
    assert format_gb(42_298_834_944) == "42.30 GB"
    assert [format_count(n) for n in (0, 512, 9999, 15_000, 999_999, 1_600_000, 1_661_000)] == [
        *("0", "512", "9999", "15K", "1M", "1.6M", "1.661M"),
    ]
    assert [format_ms(ms) for ms in (0.42, 9.999, 57.34, 843.2, 999.7, 1842, 59_900, 303_000)] == [
        *("0.42 ms", "10.0 ms", "57.3 ms", "843 ms", "1.00 s", "1.84 s", "59.9 s", "5 min 03 s"),
    ]
    assert [format_duration(s) for s in (0, 3.21, 45, 59.7, 303, 3599.8, 7500, 86_399, 273_600)] == [
        *("0.0 s", "3.2 s", "45 s", "1 min 00 s", "5 min 03 s", "1 h 00 min", "2 h 05 min", "1 d 00 h", "3 d 04 h"),
    ]
