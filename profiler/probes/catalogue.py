"""The GPU catalogue: what a card is called, how much memory CUDA can hand out on it, how fast it is at best.

    data/gpus.csv            one row per card, ordered by kind (data centre, workstation, GeForce), then by age
    find_gpu("rtx 4090")     a card by its short name or by the name the driver prints

torch is never imported here: naming a card must stay instant, also on a machine without a GPU.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from srsplan.models.errors import InputError

CapacityBasis = Literal["driver", "nvidia-smi", "nominal"]

CATALOGUE = Path(__file__).parent / "data" / "gpus.csv"
SHOWN_CANDIDATES = 8
LONGEST_NAME = 100
SILENT_WORDS = frozenset({"nvidia", "geforce", "tesla"})
"""Vendor and brand words that people leave out and drivers print."""

SPELLING = re.compile(r"[a-z0-9 _.,:()/+-]*", re.IGNORECASE)
"""Characters that names of cards are written with: other text is no card, whatever words it contains."""
TELLING_WORD = re.compile(r"[a-z0-9]*[0-9][a-z0-9]*|[a-z]{3,}")
"""A word that can mean a card: it has a digit, or three letters. One of a name's words at least is such a word."""
FILLER_WORDS = frozenset({"edition", "generation", "server", "workstation"})
"""Words that some names end with, and that mean no card by themselves."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card. Throughputs are datasheet peaks: dense (no sparsity), products accumulated in fp32."""

    name: str
    """Short name, the one to type: `a100-40gb`."""
    title: str
    """Name and nominal memory for people; of a card that is not in the catalogue, the driver's name."""
    device_names: tuple[str, ...]
    """Names that the driver and torch print. Variants of a card that differ in memory share theirs."""
    architecture: str
    capability: tuple[int, int]
    """CUDA compute capability: (8, 0)."""
    capacity_bytes: int
    """Bytes that CUDA can hand out to all processes, their contexts included: torch's `total_memory`."""
    capacity_basis: CapacityBasis
    """Source of the capacity.

    driver:     CUDA reported it (the smallest figure found: it varies by about 1% with driver and ECC setting);
    nvidia-smi: nvidia-smi's total, less `driver_reserve_bytes`;
    nominal:    the size on the box, less `driver_reserve_bytes`.
    """
    bandwidth_bytes_s: float
    fp32_tflops: float
    tf32_tflops: float | None
    fp16_tflops: float | None
    bf16_tflops: float | None
    source: str
    throughput_basis: Literal["datasheet", "stand-in"] = "datasheet"
    """`stand-in`: the card is not in the catalogue, the figures are those of the card that `source` names."""

    def tflops(self, precision: str) -> float:
        """Return the peak of a matrix product in `fp32`, `tf32`, `fp16` or `bf16`, in 10^12 operations per second.

        A precision that the card's tensor cores lack counts at the fp32 rate, at best what emulation reaches.
        Raises InputError for another precision.
        """
        peaks = {
            "fp32": self.fp32_tflops,
            "tf32": self.tf32_tflops,
            "fp16": self.fp16_tflops,
            "bf16": self.bf16_tflops,
        }
        if precision not in peaks:
            raise InputError(f"precision {precision!r}: unknown", f"use one of {', '.join(peaks)}")
        return peaks[precision] or self.fp32_tflops


def driver_reserve_bytes(total_bytes: int) -> int:
    """Return a bound from above on what of nvidia-smi's total CUDA cannot hand out: 410 MiB and a 160th of the total.

    On 23 cards where both figures are public, from 6 to 143 GiB, the driver keeps 270 to 910 MiB. The bound holds for
    every one and exceeds what it keeps by at most 1.8% of the total, so a plan errs to the safe side by little.
    """
    return 410 * 2**20 + total_bytes // 160


@cache
def load_gpus() -> tuple[Gpu, ...]:
    """Return every card of the catalogue, in the order of the file."""
    text = CATALOGUE.read_text(encoding="utf-8")
    return tuple(_from_row(row) for row in csv.DictReader(text.splitlines()))


def _from_row(row: dict[str, str]) -> Gpu:
    major, minor = row["capability"].split(".")
    basis: CapacityBasis = "driver"
    capacity_bytes = int(row["capacity_bytes"])
    if row["capacity_basis"] != "driver":
        basis = "nvidia-smi" if row["capacity_basis"] == "nvidia-smi" else "nominal"
        capacity_bytes -= driver_reserve_bytes(capacity_bytes)
    return Gpu(
        name=row["name"],
        title=row["title"],
        device_names=tuple(row["device_names"].split("|")),
        architecture=row["architecture"],
        capability=(int(major), int(minor)),
        capacity_bytes=capacity_bytes,
        capacity_basis=basis,
        bandwidth_bytes_s=float(row["bandwidth_gb_s"]) * 1e9,
        fp32_tflops=float(row["fp32_tflops"]),
        tf32_tflops=_optional(row["tf32_tflops"]),
        fp16_tflops=_optional(row["fp16_tflops"]),
        bf16_tflops=_optional(row["bf16_tflops"]),
        source=row["source"],
    )


def _optional(text: str) -> float | None:
    return float(text) if text else None


def find_gpu(name: str) -> Gpu:
    """Return the one card that `name` means: `a100-40gb`, `RTX 4090`, `4090`, `NVIDIA A100-SXM4-40GB`.

    Case, spaces and punctuation do not matter. Raises InputError where no card is meant, with the nearest names, and
    where several are, with the candidates.
    """
    candidates = _candidates(name)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise unknown_gpu(name)
    names = [gpu.name for gpu in candidates]
    more = f" and {len(names) - SHOWN_CANDIDATES} more" if len(names) > SHOWN_CANDIDATES else ""
    raise InputError(
        f"GPU {name!r}: {len(names)} cards of that name differ in memory or speed",
        f"name one of {', '.join(names[:SHOWN_CANDIDATES])}{more}",
    )


def unknown_gpu(name: str) -> InputError:
    """Return the error for a name that no card has, with the nearest names."""
    from difflib import get_close_matches

    shown = repr(name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "...")
    spoken = {name_key(label): gpu.name for gpu in load_gpus() for label in _labels(gpu)}
    near = dict.fromkeys(
        spoken[key] for key in get_close_matches(name_key(name[:LONGEST_NAME]), spoken, n=5, cutoff=0.6)
    )
    meant = f"did you mean {', '.join(near)}? " if near else ""
    return InputError(f"GPU {shown}: not in the catalogue", f"{meant}`srsplan gpus` lists every card")


def _candidates(name: str) -> list[Gpu]:
    """Return the cards called exactly that; where there are none, cards with these words in one of their names."""
    if not could_name_a_gpu(name):
        return []
    key, words = name_key(name), name_words(name)
    exact = [gpu for gpu in load_gpus() if key in map(name_key, _labels(gpu))]
    if exact or not any(map(_is_telling, words)):
        return exact
    return [gpu for gpu in load_gpus() if any(_mentions(label, words, key) for label in _labels(gpu))]


def _labels(gpu: Gpu) -> tuple[str, ...]:
    return (gpu.name, gpu.title, *gpu.device_names)


def could_name_a_gpu(text: str) -> bool:
    """Say whether a text is short enough and written with nothing but the letters of cards' names."""
    return len(text) <= LONGEST_NAME and SPELLING.fullmatch(text) is not None


def _is_telling(word: str) -> bool:
    return TELLING_WORD.fullmatch(word) is not None and word not in FILLER_WORDS


def _mentions(label: str, words: list[str], key: str) -> bool:
    """Say whether a label has all words, or neighbouring words that run together are the key (`rtx3060`)."""
    own = name_words(label.partition(",")[0])  # what follows explains the name
    runs = ("".join(own[start:stop]) for start in range(len(own)) for stop in range(start + 1, len(own) + 1))
    return set(words) <= set(own) or key in runs


def name_words(text: str) -> list[str]:
    """Return the words of a card's name in lower case, without those that people leave out."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in SILENT_WORDS]


def name_key(text: str) -> str:
    """Return a card's name as one word: names with the same key are the same name."""
    return "".join(name_words(text))
