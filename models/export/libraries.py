"""Which libraries' SASRec can be given the weights of a run, and what stands in the way where one cannot.

Read in the sources of RecTools 0.19.0, RePlay 0.22.0 and RecBole 1.2.1. Equal weights mean equal scores only where the
computation is the same; a layer normalisation at another place is undone by no weights. So a library's own layers take
none of srsplan's SASRec, and only RecTools accepts layers of another's as a part of its saved models.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from srsplan.models.errors import InputError
from srsplan.models.export.rectools_checkpoint import PARTS, write_checkpoint
from srsplan.models.export.targets import check_target
from srsplan.models.loading import load_run

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "replay": "RePlay's SasRec takes keys and values from the input of a block as it is, and adds the normalised "
        "input to what attention gives; srsplan normalises queries, keys and values, and adds the input as it is",
        "recbole": "RecBole's SASRec normalises the sum after every sub-layer, and the embedding; srsplan normalises "
        "before every sub-layer, and the embedding not at all",
    }
)
"""Libraries that cannot take the weights, and the difference that no weights make up for."""
LIBRARIES = ("rectools", *REFUSED)


def export_weights(run: Path, library: str, output: Path, overwrite: bool) -> tuple[str, ...]:
    """Write a run for another library and return sentences on how it is loaded; InputError for what is wrong."""
    if library not in LIBRARIES:
        near = get_close_matches(library[:80], LIBRARIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"libraries are {', '.join(LIBRARIES)}"
        raise InputError(f"unknown library --to {library[:80]!r}", hint)
    if library in REFUSED:
        raise InputError(
            f"--to {library}: {REFUSED[library]}", "--onnx FILE exports the model itself, and --to rectools its parts"
        )
    check_target(output, f"--to {library}", ".ckpt", PARTS.encode(), overwrite)
    write_checkpoint(load_run(run), output)
    loads = f"rectools.models.SASRecModel.load_from_checkpoint({str(output)!r})"
    return (f"load it where RecTools and srsplan are installed: {loads}",)
