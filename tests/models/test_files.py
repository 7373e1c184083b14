"""Files that verbs exchange: what is refused, and that no write ever leaves a part or destroys what was there."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srsplan.models.errors import InputError, SrsplanError
from srsplan.models.files import STALE_SECONDS, check_input, check_output, locked, read_limited, write_atomically

NOBODY = 65534
"""A user without rights: root may write nearly everywhere."""
START = (
    "import os, signal, sys; from pathlib import Path; from srsplan.models.files import *\n"
    "from srsplan.models.errors import SrsplanError\npath = Path(sys.argv[1])\n"
)


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """One of everything that is no regular file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    yield {
        "a pipe": tmp_path / "pipe",
        "a folder": tmp_path / "folder",
        "a device": tmp_path / "link",
        "a socket": tmp_path / "socket",
    }
    listening.close()


KINDS = ("a pipe", "a folder", "a device", "a socket")


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read_and_written(special: dict[str, Path], kind: str) -> None:
    path = special[kind]
    before = path.lstat()
    for attempt in (
        lambda: check_input(path, "plan", "hint"),
        lambda: read_limited(path, "plan", "hint"),
        lambda: check_output(path, "plan"),
    ):
        with pytest.raises(InputError, match=f"the plan {path} is {kind}"):
            attempt()
    with pytest.raises(SrsplanError, match=f"cannot write {path}: it is {kind}"):
        write_atomically(path, b"new")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert not list(path.parent.rglob("*.part"))


def test_a_pipe_that_took_a_files_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("srsplan.models.files.check_input", lambda *_: None)
    with pytest.raises(InputError, match="is a pipe"):
        read_limited(tmp_path / "pipe", "state", "hint")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/", "x" * 256, "é" * 128, "nul\0byte", "\ud800", "absent/plan", "file/plan", "loop"],
    ids=repr,
)
def test_names_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    with pytest.raises(InputError) as refused:
        check_output(Path(name), "plan")
    assert refused.value.hint == "give another file with -o"
    assert len(refused.value.message) < 500
    with pytest.raises(SrsplanError):
        write_atomically(Path(name), b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["absent", "x" * 300, "nul\0byte", "\ud800", "loop", "file/below"], ids=repr)
def test_names_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    with pytest.raises(InputError) as refused:
        read_limited(Path(name), "profile", "run srsplan profile")
    assert refused.value.hint == "run srsplan profile"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "ä\u0301🂡" * 20, "a b;c'[d]"])
def test_the_longest_and_oddest_names_can_be_written(tmp_path: Path, name: str) -> None:
    check_output(tmp_path / name, "plan")
    write_atomically(tmp_path / name, b"new")
    assert read_limited(tmp_path / name, "plan", "") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_bytes(b"x" * (1 << 20))
    assert len(read_limited(path, "plan", "", most_bytes=1 << 20)) == 1 << 20
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        read_limited(path, "plan", "", most_bytes=1 << 20)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # no disk holds it: reading more than the limit would not end
    with pytest.raises(InputError, match="is larger than 64 MiB"):
        read_limited(path, "plan", "")


def test_only_what_is_ours_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("mine")
    with pytest.raises(InputError, match="srsplan did not write it"):
        check_output(path, "plan", ours=lambda found: found.read_text() == "ours")
    path.write_text("ours")
    check_output(path, "plan", ours=lambda found: found.read_text() == "ours")
    path.chmod(0o444)
    with pytest.raises(InputError, match="is write-protected"):
        check_output(path, "plan")


def test_links_are_followed_to_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "plan"
    link.symlink_to(target)
    check_output(link, "plan")
    for content in (b"first", b"second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    link.unlink()
    link.symlink_to(tmp_path / "absent" / "plan")
    with pytest.raises(InputError, match=f"there is no folder {tmp_path / 'absent'}"):
        check_output(link, "plan")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "plan"
    path.write_text("old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_gets_what_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "plan", b"new")
        assert stat.S_IMODE((tmp_path / "plan").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=4))
def test_the_last_content_is_what_is_there(contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        for content in contents:
            write_atomically(path, content)
            assert path.read_bytes() == content
        assert len(os.listdir(folder)) == bool(contents)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("mine")])
def test_a_writer_that_fails_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    expected = SrsplanError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_atomically(path, write)
    assert [found.name for found in tmp_path.iterdir()] == ["weights"]
    assert path.read_bytes() == b"old"


def child(code: str, *arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own; `path` is its first argument."""
    command = [sys.executable, "-c", START + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **how)  # type: ignore[call-overload,no-any-return]


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does: some bytes are written, the rest is refused."""
    path = tmp_path / "plan"
    path.write_bytes(b"old")
    code = "try: write_atomically(path, b'x' * 100_000)\nexcept SrsplanError as error: print(error.exit_code, error)"
    done = child(code, path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))
    assert done.stdout.startswith(f"1 cannot write {path}: File too large; what was saved before is whole"), done.stderr
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"old"]


def test_a_kill_in_the_middle_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    code = (
        "def half(temporary):\n"
        "    temporary.write_bytes(b'x' * 10_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(path, half)"
    )
    assert child(code, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (left,) = tmp_path.glob(".weights.*.part")
    other = tmp_path / ".other.abc.part"
    other.touch()
    for found in (left, other):
        os.utime(found, (0, time.time() - STALE_SECONDS - 60))
    write_atomically(path, b"new")
    assert sorted(tmp_path.iterdir()) == [other, path]
    young = tmp_path / ".weights.xyz.part"
    young.touch()
    write_atomically(path, b"newer")
    assert young.exists()  # another process may be writing it


def test_readers_see_the_old_or_the_new_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    sizes = (100_000, 300_000)
    path.write_bytes(b"0" * sizes[0])
    code = "for turn in range(60): write_atomically(path, b'1' * 300_000 if turn % 2 else b'0' * 100_000)"
    writer = subprocess.Popen([sys.executable, "-c", START + code, str(path)])
    seen = set()
    while writer.poll() is None:
        content = path.read_bytes()
        seen.add((len(content), len(set(content))))
    assert writer.returncode == 0
    assert seen <= {(size, 1) for size in sizes}
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="srsplan-test-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "plan").write_text("old")
        folder.chmod(0o755)
        code = (
            "os.setuid(int(sys.argv[2]))\n"
            "for attempt in (lambda: check_output(path, 'plan'), lambda: write_atomically(path, b'new')):\n"
            "    try: attempt()\n"
            "    except SrsplanError as error: print(error.exit_code, error)"
        )
        done = child(code, folder / "plan", NOBODY)
        assert done.stdout.splitlines() == [
            f"2 cannot write the plan {folder / 'plan'}: the folder {folder} is not writable",
            f"1 cannot write {folder / 'plan'}: Permission denied; what was saved before is whole",
        ], done.stderr
        (folder / "plan").chmod(0o600)
        done = child("os.setuid(int(sys.argv[2]))\ntry: read_limited(path, 'plan', '')\nexcept SrsplanError as error:"
                     " print(error)", folder / "plan", NOBODY)  # fmt: skip
        assert done.stdout == f"cannot read the plan {folder / 'plan'}: Permission denied\n"


def test_a_lock_is_for_one_process_and_a_kill_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    code = "with locked(path, 'the run'):\n    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", START + code, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="the run is in use by another srsplan"), locked(path, "the run"):
        pass
    holder.kill()
    holder.communicate()
    with locked(path, "the run"):
        pass
    with locked(path, "the run"):
        pass


def test_a_lock_never_touches_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "yarn.lock"
    path.write_text("mine")
    with (
        pytest.raises(InputError, match=r"lock the run: .*yarn.lock is there, and is no lock"),
        locked(path, "the run"),
    ):
        pass
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="cannot lock the run"), locked(tmp_path, "the run"):
        pass
