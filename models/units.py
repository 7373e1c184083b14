"""Sizes, counts and times as people write them, and back. GB is 10^9 and GiB is 2^30, everywhere.

Parsing is exact: the number is a fraction until it is multiplied out, so "1.6M" is 1_600_000 and nothing near it.
pydantic's ByteSize does not do for this (2.14): it takes "1,024 B" for 1 byte and "1.e3" for 1, loses the last digit of
"9007199254740993B" in a binary float, refuses "12 bytes", and shows one decimal of a GiB.
"""

from __future__ import annotations

import re
from fractions import Fraction

from srsplan.models.errors import InputError

KB, MB, GB, TB = 1000, 1000**2, 1000**3, 1000**4
KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

LARGEST = 2**63
LONGEST_TEXT = 64
SIZES = {"": 1, "b": 1, "bytes": 1, "k": KB, "m": MB, "g": GB, "t": TB}
SIZES |= {"kb": KB, "mb": MB, "gb": GB, "tb": TB, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
SECONDS = {"": 1, "s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}

# Commas and underscores only where they group thousands: 1,6M may mean 1.6M or 16M, so it is refused.
NUMBER = re.compile(
    r"(?P<whole>[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+)?(?P<part>\.[0-9]*)?(?P<exponent>e[+-]?[0-9]{1,3})?"
    r"[ \t]*(?P<suffix>[a-z]*)"
)
SIZE_HINT = "write a size such as 40GB, 40GiB, 512MB, 1.5TB or 42949672960 (bytes); GB is 10^9, GiB is 2^30"
TIME_HINT = "write a time such as 90s, 30min, 2h, 1.5h, 3d or 90 (seconds)"
COUNT_HINT = "write a whole number such as 1600000, 1_600_000, 1,600,000, 300K, 1.6M, 2B or 1.6e6"


def parse_bytes(text: str, what: str = "size") -> int:
    """Return the bytes in `text`, a positive int below 2**63; a fraction of a byte is dropped.

    KB, MB, GB and TB are powers of ten, KiB to TiB powers of two, a plain number is bytes. A bare K, M, G or T means
    the same as KB to TB: that is how vendors and cloud price lists count. Case does not matter. `what` names the
    input in the message ("--budget"). Raises InputError.
    """
    return int(_positive(text, what, SIZES, "size", SIZE_HINT))


def parse_count(text: str, what: str = "count") -> int:
    """Return the count in `text`, a positive int below 2**63, exact; K, M and B are 10^3, 10^6 and 10^9.

    `what` names the input in the message ("--catalog"). Raises InputError, also where the number is not whole.
    """
    value = _positive(text, what, COUNTS, "count", COUNT_HINT)
    if value.denominator != 1:
        raise InputError(f"{what} {text!r}: not a whole number", COUNT_HINT)
    return int(value)


def parse_seconds(text: str, what: str = "time") -> float:
    """Return the seconds in `text`, at least 1 and below 2**63: a number of s, min, h or d; a plain number is seconds.

    `what` names the input in the message ("--epoch-time"). Raises InputError.
    """
    return float(_positive(text, what, SECONDS, "time", TIME_HINT))


def _positive(text: str, what: str, suffixes: dict[str, int], kind: str, hint: str) -> Fraction:
    """Return number times suffix; InputError unless it is at least 1 and below 2**63."""
    shown = repr(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "...")
    cleaned = text.strip().lower()
    if cleaned.startswith("-"):
        raise InputError(f"{what} {shown}: must be above zero", hint)
    match = NUMBER.fullmatch(cleaned) if len(cleaned) <= LONGEST_TEXT else None
    if match is None or match["suffix"] not in suffixes or not (match["whole"] or (match["part"] or ".") != "."):
        raise InputError(f"{what} {shown}: not a {kind}", hint)
    digits = (match["whole"] or "0").replace(",", "").replace("_", "")
    value = Fraction(f"{digits}{(match['part'] or '').rstrip('.')}{match['exponent'] or ''}")
    value *= suffixes[match["suffix"]]
    if value >= LARGEST:
        raise InputError(f"{what} {shown}: too large, the limit is 2^63", hint)
    if value < 1:
        raise InputError(f"{what} {shown}: must be {'at least 1' if value else 'above zero'}", hint)
    return value


def format_gib(size_bytes: float) -> str:
    """Return `13.35 GiB`; `512.0 MiB` or smaller units below one GiB, `1.40 TiB` from one TiB on."""
    return _format_size(size_bytes, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB"))


def format_gb(size_bytes: float) -> str:
    """Return `42.30 GB`, decimal; `512.0 MB` or smaller units below one GB, `1.50 TB` from one TB on."""
    return _format_size(size_bytes, 1000, ("bytes", "KB", "MB", "GB", "TB"))


def _format_size(size_bytes: float, base: int, names: tuple[str, ...]) -> str:
    value = float(size_bytes)
    for power, name in enumerate(names[:-1]):
        decimals = (0, 1, 1)[power] if power < 3 else 2
        if round(abs(value), decimals) < base:
            return f"{value:.{decimals}f} {name}"
        value /= base
    return f"{value:.2f} {names[-1]}"


def format_count(count: float) -> str:
    """Return `1.6M`, `300K`, `1.66B`: at most four significant digits, for people; below 10,000 every digit."""
    if round(abs(count)) < 10_000:
        return f"{round(count)}"
    for scale, suffix in ((10**3, "K"), (10**6, "M"), (10**9, "B")):
        shown = f"{count / scale:.4g}"
        if abs(float(shown)) < 1000:
            return shown + suffix
    return f"{count / 10**9:.0f}B"


def format_ms(duration_ms: float) -> str:
    """Return `0.42 ms`, `57.3 ms` or `1.84 s`: three significant digits; a minute or more as `format_duration`."""
    if duration_ms >= 59_950:
        return format_duration(duration_ms / 1000)
    value, unit = (duration_ms, "ms") if duration_ms < 999.5 else (duration_ms / 1000, "s")
    decimals = next((places for limit, places in ((9.995, 2), (99.95, 1)) if value < limit), 0)
    return f"{value:.{decimals}f} {unit}"


def format_duration(seconds: float) -> str:
    """Return `45 s`, `5 min 03 s`, `2 h 05 min`, `3 d 04 h`; below ten seconds one decimal."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole_s = round(seconds)
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"
