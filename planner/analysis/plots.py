"""Pictures and their files: style, text that may stand in them, and how srsplan knows its own files.

matplotlib is imported when a picture is drawn. Names of datasets are the user's: nothing in them is read as formulas
(mathtext is off for every text), and control characters are shown as Python writes them.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srsplan.models.errors import InputError
from srsplan.models.files import check_output, write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

AUTHOR = "srsplan"
MARKS: dict[str, tuple[bytes, bytes]] = {
    ".png": (b"\x89PNG", b"tEXtSoftware\x00" + AUTHOR.encode()),
    ".svg": (b"<?xml", f"<dc:title>{AUTHOR}</dc:title>".encode()),
}
"""By extension, the first bytes of any picture, and bytes that stand in the first 4 KiB of one of srsplan's."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 130,
    "svg.hashsalt": AUTHOR,
    "text.parse_math": False,
    "text.usetex": False,
}
LONGEST_NAME = 28

# inches that titles and captions need, however few the panels
MIN_WIDTH = 9.0


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style above; letters that the font lacks become boxes, without a warning."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def picture_text(text: str) -> str:
    """Return a name as it may stand in a picture: printable, on one line, of bounded length."""
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text[:LONGEST_NAME].encode("utf-8", "backslashreplace").decode()
    )
    return shown if len(text) <= LONGEST_NAME else shown + "…"


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure (inches) and its panels in reading order; no pyplot, so no display and nothing left open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(size[0], MIN_WIDTH), size[1]), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def caption(figure: Figure, sentences: Iterable[str], handles: Sequence[Artist] = ()) -> None:
    """Write what a stranger must know to read the picture beneath it, wrapped to its width, above the legend."""
    wide = int(figure.get_figwidth() * 14)
    text = "\n".join(line for sentence in sentences for line in textwrap.wrap(sentence, wide))
    figure.legend(
        handles=list(handles),
        title=text,
        title_fontsize=9,
        alignment="left",
        loc="outside lower left",
        ncols=max(1, len(handles)),
        frameon=False,
    )


def encode(figure: Figure, image_format: Format) -> bytes:
    """Return the file; equal runs give equal bytes, because no date is in it."""
    file = BytesIO()
    mark = {"Creator": AUTHOR, "Date": None} if image_format == "svg" else {"Software": AUTHOR}
    figure.savefig(file, format=image_format, metadata=mark)
    return file.getvalue()


def is_ours(path: Path) -> bool:
    """Tell whether srsplan drew this picture."""
    start, mark = MARKS[path.suffix]
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(start) and mark in head


def check_folder(folder: Path, names: Iterable[str], image_format: Format) -> None:
    """Raise InputError unless pictures of these names can be written to the folder without replacing one of the user's.

    Nothing is made yet. To be called before the forests take their time.
    """
    hint = "give another folder with -o"
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot make the folder {folder}: {error}", hint) from error
    if any(len(os.fsencode(part)) > 255 for part in folder.parts):
        raise InputError(f"cannot make the folder {folder}: a name in it is longer than 255 bytes", hint)
    if not there.is_dir():
        raise InputError(f"cannot make the folder {folder}: {there} is no folder", hint)
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot make the folder {folder}: {there} is not writable", hint)
    if there == folder:
        for name in names:
            check_output(folder / f"{name}.{image_format}", "picture", is_ours, hint)


def write_pictures(pictures: Mapping[str, bytes], folder: Path, image_format: Format) -> list[Path]:
    """Write encoded pictures, making the folder; returns their paths in order."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}", "give another one with -o") from error
    paths = []
    for name, content in pictures.items():
        paths.append(folder / f"{name}.{image_format}")
        write_atomically(paths[-1], content)
    return paths
