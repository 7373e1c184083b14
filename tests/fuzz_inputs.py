"""Hostile values, names and files, drawn at random for tests/fuzz.py."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "24", "1e308", "-1e308", "nan", "inf", "-inf", "1e-320", "0.5", "1_000", "0x10",
    "007", "1e9", "10**9", "1000000000000", "2147483648", "9223372036854775808", "9" * 400, "9" * 5000, "١٢", "½",
    "1,5", "+3", " 5", "3000", "2000000000", "1.6M", "300K", "10B", "-5K", "1e400M",
)  # fmt: skip
SIZES = (
    "0GB",
    "-1GB",
    "1B",
    "40GB",
    "40GiB",
    "1e9GB",
    "1000TB",
    "nanGB",
    "infGB",
    "GB",
    "40 GB",
    "40gb",
    "9" * 300 + "GB",
    "1KB",
)
TEXTS = (
    "", " ", "[red]x[/red]", "[/foo]", "[bold", "$(id)", "';touch X;'", "\x1b[2J", "\x07\x08", "a\nb", "\u202ereversed",
    "é" * 300, "x" * 5000, "🂡", "\udcff", "-", "--", "-o", "--help", "..", "auto", "ce", "cce-", "ce-,cce-", "bce",
    "ce,,ce", "none", "null", "a100", "h100-sxm", "rtx-4090", "cpu", "cuda", "fp16", "fp32", "int8", "global-time",
    "leave-one-out", "popularity", "in-batch", "uniform", "svg", "$\\frac{1}{0}$", "%s%n", "{0}", "user_id",
)  # fmt: skip
NAMES = (
    "plain", "[red]x[red]", "[/foo]", "a b", "p;touch X", "-dash", "ctrl\x1b[31m", "line\nbreak", "ünï", "x" * 250,
    "x" * 300, "\udcff", "$(id)", "'quote\"", "%d", "$x_1$", "..", ".hidden", "deep/er/than/there/is",
)  # fmt: skip
LEAVES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e30, 1e308, float("nan"), float("inf"), 2**63, 10**400, "", "x", "nan", "2001-99-99", [],
    {}, [[]], {"a": 1}, "[/foo]", "\x1b[2J", "9" * 5000, ["x"] * 1000, -0.0, 5000000, "../../../etc/passwd", 1.5,
)  # fmt: skip
ANCHORS = [b"a: &a [x,x,x,x,x,x,x,x,x]"] + [
    b"%c: &%c [%s]" % (letter + 1, letter + 1, b",".join([b"*%c" % letter] * 9)) for letter in b"abcdefghi"
]
"""A few lines that stand for a thousand million words."""
YAMLS = (
    b"\n".join(ANCHORS), b"catalog: !!int abc\n", b"date: 2001-99-99\n", b"? [a, b]\n: c\n", b"{" * 5000,
    b"!!python/object/apply:os.system ['id']\n", b"version: " + b"9" * 5000, b"- " * 5000, b"\t\x00", b"a: 1\na: 2\n",
    b"---\na: 1\n---\nb: 2\n", b"inputs: {catalog: .inf}\n",
)  # fmt: skip


def garbage(rng: Random, _: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 100, 100_000)))


def cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def flipped(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def spliced(rng: Random, content: bytes) -> bytes:
    """One word or number of a text replaced by a hostile one."""
    words = content.split(b" ") if rng.random() < 0.5 else content.replace(b"\n", b",\n").split(b",")
    words[rng.randrange(len(words))] = rng.choice((*NUMBERS, *TEXTS)).encode("utf-8", "surrogateescape")
    return (b" " if b" " in content else b",").join(words)


def doubled(rng: Random, content: bytes) -> bytes:
    return content * rng.choice((2, 500))


def other_encoding(rng: Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return rng.choice(
        (text.encode("utf-16"), b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r"), content + b"\0")
    )


def one_line(rng: Random, _: bytes) -> bytes:
    return rng.choice((b"x", b"[", b'{"a":', b"1,", b"\n", b" ")) * rng.choice((100_000, 3_000_000))


def yaml_of_its_own(rng: Random, _: bytes) -> bytes:
    return rng.choice(YAMLS)


def changed_leaf(rng: Random, content: bytes) -> bytes:
    """A JSON document, or one of a file's JSON lines, with a value replaced, a key removed or one added."""
    lines = content.splitlines() if content.count(b"\n") > 1 and content[:2] == b'{"' else [content]
    at = rng.randrange(len(lines))
    try:
        document = json.loads(lines[at])
    except (ValueError, RecursionError):
        return spliced(rng, content)
    _change(rng, document)
    lines[at] = json.dumps(document).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + b"\n"


def _change(rng: Random, document: Any) -> None:
    while isinstance(document, dict | list) and document:
        key = rng.choice(list(document) if isinstance(document, dict) else range(len(document)))
        if isinstance(document[key], dict | list) and document[key] and rng.random() < 0.8:
            document = document[key]
            continue
        if isinstance(document, dict) and rng.random() < 0.2:
            document.pop(key)
        elif isinstance(document, dict) and rng.random() < 0.1:
            document[rng.choice(TEXTS)] = rng.choice(LEAVES)
        else:
            document[key] = rng.choice(LEAVES)
        return


CONTENTS: tuple[Callable[[Random, bytes], bytes], ...] = (
    garbage, cut, flipped, spliced, spliced, spliced, doubled, other_encoding, one_line, yaml_of_its_own, changed_leaf,
    changed_leaf, changed_leaf, lambda _, __: b"",
)  # fmt: skip


def _pipe(path: Path, _: Random) -> None:
    os.mkfifo(path)


def _device(path: Path, rng: Random) -> None:
    """A node of its own for /dev/null, zero, full or urandom: the machine's may be destroyed by what is tested."""
    try:
        os.mknod(path, 0o20666, os.makedev(1, rng.choice((3, 5, 7, 9))))
    except PermissionError:
        path.mkdir()


def _folder(path: Path, _: Random) -> None:
    path.mkdir()
    (path / "mine.json").write_text("{}")


def _loop(path: Path, _: Random) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path, _: Random) -> None:
    path.symlink_to("not-there/at-all")


def _sparse(path: Path, _: Random) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


def _bomb(path: Path, rng: Random) -> None:
    """A megabyte of gzip that unpacks to a gigabyte."""
    block = gzip.compress((b"1,2,3\n" if rng.random() < 0.5 else b"x") * 10_000_000, 1)
    path.write_bytes(block * 20)


SPECIALS: tuple[Callable[[Path, Random], None], ...] = (_pipe, _device, _folder, _loop, _dangling, _sparse, _bomb)


def spoil(path: Path, rng: Random) -> None:
    """Replace a file by one of the same name that is hostile."""
    content = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    if rng.random() < 0.25:
        rng.choice(SPECIALS)(path, rng)
        return
    for _ in range(rng.choice((1, 1, 2))):
        content = rng.choice(CONTENTS)(rng, content)
    path.write_bytes(content)


def renamed(path: Path, rng: Random) -> str:
    """Copy a file to a hostile name or a wrong extension; the new name, or the old where the system refuses it."""
    name = rng.choice(NAMES) + (path.suffix if rng.random() < 0.5 else "")
    if rng.random() < 0.4:
        name = path.stem + rng.choice(
            (".csv.gz", ".parquet", ".inter", ".txt", ".xz", ".zst", ".tar", ".json", "", ".CSV")
        )
    try:
        shutil.copy(path, path.parent / name)
    except (OSError, shutil.Error):
        return path.name
    return name


def value(rng: Random) -> str:
    """Any hostile word for a command line. (No word can hold a zero byte.)"""
    return rng.choice(rng.choice((NUMBERS, NUMBERS, SIZES, TEXTS, TEXTS)))
