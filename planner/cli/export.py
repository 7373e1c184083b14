"""`srsplan export`: a trained run as a file that other programs run or load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from srsplan.models.errors import InputError
from srsplan.planner.cli import console, options


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of the command line as they were given."""

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that `train` made.")]
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The file that --to writes.")] = None
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="An .onnx file: histories in, the best items and their scores out.")
    ] = None
    to: Annotated[str | None, typer.Option("--to", help="Write FILE for another library: rectools.")] = None
    top: Annotated[int, typer.Option("--top", "-k", help="Items that the ONNX model returns.")] = 10
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Let the ONNX model return what is in the history as well.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False
    json: options.Json = False


@options.options_of(ExportOptions)
def export_command(asked: ExportOptions) -> None:
    """Write a trained model as ONNX, or as weights that another library's model loads."""
    if (asked.onnx is None) == (asked.to is None):
        raise InputError("give either --onnx FILE or --to LIBRARY FILE", "srsplan export --help shows examples")
    files, notes = _onnx(asked) if asked.onnx is not None else _weights(asked)
    if asked.json:
        console.print_json({"run": str(asked.run), "files": [str(path) for path in files], "notes": list(notes)})
        return
    for note in notes:
        console.err.print(note, style="dim", markup=False, soft_wrap=True)
    console.out.print(f"written: {console.plain(', '.join(map(str, files)))}", markup=False, soft_wrap=True)


def _onnx(asked: ExportOptions) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    from srsplan.models.export.onnx_file import OnnxOrder, export_onnx, items_path  # imports torch

    assert asked.onnx is not None
    if asked.file is not None:
        raise InputError(f"{asked.file} is one file too many", "--onnx FILE names all that it writes")
    order = OnnxOrder(
        run=asked.run, output=asked.onnx, best=asked.top, keep_seen=asked.keep_seen, overwrite=asked.overwrite
    )
    with console.err.status("exporting"):
        notes = export_onnx(order)
    return (asked.onnx, items_path(asked.onnx)), notes


def _weights(asked: ExportOptions) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    from srsplan.models.export.libraries import export_weights  # imports torch

    assert asked.to is not None
    if asked.file is None:
        raise InputError(f"--to {asked.to} needs a file to write", f"srsplan export {asked.run} --to {asked.to} FILE")
    return (asked.file,), export_weights(asked.run, asked.to, asked.file, asked.overwrite)
