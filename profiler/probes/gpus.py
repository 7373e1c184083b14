"""The GPU catalogue: what a card is called, how much memory CUDA can hand out on it, how fast it is at best.

    data/gpus.csv            one row per card, ordered by kind (data centre, workstation, GeForce), then by age
    find_gpu("rtx 4090")     a card by its short name or by the name the driver prints
    detect_gpu()             the card of this machine, asked from nvidia-smi
    resolve_gpu("auto")      either

torch is never imported here: naming a card must stay instant, also on a machine without a GPU.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from srsplan.models.errors import InputError

CapacityBasis = Literal["driver", "nvidia-smi", "nominal"]

TIMEOUT_S = 5
SHOWN_CANDIDATES = 8
SAME_CARD_SLACK = 0.1
# Vendor and brand words that people leave out and drivers print.
SILENT_WORDS = frozenset({"nvidia", "geforce", "tesla"})
NAME_A_CARD = "name a card, for example --gpu a100-40gb; `srsplan gpus` lists them"


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
    """What CUDA can hand out to all processes, their contexts included: torch's `total_memory`."""
    capacity_basis: CapacityBasis
    """Where the capacity comes from.

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
        """Peak of a matrix product in `fp32`, `tf32`, `fp16` or `bf16`, in 10^12 operations per second.

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
    """How much of nvidia-smi's total CUDA cannot hand out, bounded from above: 410 MiB and a 160th of the total.

    On 23 cards where both figures are public, from 6 to 143 GiB, the driver keeps 270 to 910 MiB. The bound holds for
    every one and exceeds what it keeps by at most 1.8% of the total, so a plan errs to the safe side by little.
    """
    return 410 * 2**20 + total_bytes // 160


@cache
def load_gpus() -> tuple[Gpu, ...]:
    """Every card of the catalogue, in the order of the file."""
    from importlib.resources import files

    text = files("srsplan.profiler.probes.data").joinpath("gpus.csv").read_text(encoding="utf-8")
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


def resolve_gpu(name: str) -> Gpu:
    """`auto` is the card of this machine, anything else a card of the catalogue. Raises InputError."""
    return detect_gpu() if name.strip().lower() == "auto" else find_gpu(name)


def find_gpu(name: str) -> Gpu:
    """The one card that `name` means: `a100-40gb`, `RTX 4090`, `4090`, `NVIDIA A100-SXM4-40GB`.

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
    """The error for a name that no card has, with the nearest names."""
    from difflib import get_close_matches

    spoken = {_key(label): gpu.name for gpu in load_gpus() for label in _labels(gpu)}
    near = dict.fromkeys(spoken[key] for key in get_close_matches(_key(name), spoken, n=5, cutoff=0.6))
    meant = f"did you mean {', '.join(near)}? " if near else ""
    return InputError(f"GPU {name!r}: not in the catalogue", f"{meant}`srsplan gpus` lists every card")


def _candidates(name: str) -> list[Gpu]:
    """Cards called exactly that; where there are none, cards with these words in one of their names."""
    key, words = _key(name), _words(name)
    exact = [gpu for gpu in load_gpus() if key in map(_key, _labels(gpu))]
    if exact or not words:
        return exact
    return [gpu for gpu in load_gpus() if any(_mentions(label, words, key) for label in _labels(gpu))]


def _labels(gpu: Gpu) -> tuple[str, ...]:
    return (gpu.name, gpu.title, *gpu.device_names)


def _mentions(label: str, words: list[str], key: str) -> bool:
    """All words occur in the label, or some of its neighbouring words run together are the key (`rtx3060`)."""
    own = _words(label)
    runs = ("".join(own[start:stop]) for start in range(len(own)) for stop in range(start + 1, len(own) + 1))
    return set(words) <= set(own) or key in runs


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in SILENT_WORDS]


def _key(text: str) -> str:
    return "".join(_words(text))


def detect_gpu() -> Gpu:
    """The card of this machine: the first that CUDA_VISIBLE_DEVICES leaves visible, as nvidia-smi sees it.

    A card of the catalogue keeps its catalogue capacity unless nvidia-smi reports less than that, or over 10% more:
    then its total less `driver_reserve_bytes` is taken. Of a card outside the catalogue memory and name are the
    driver's, and the throughput is that of the slowest catalogued card of the same compute capability, marked as a
    stand-in. Indices are nvidia-smi's (PCI order). Raises InputError where there is no GPU to ask.
    """
    device = _visible_device()
    row = _ask_driver("name,memory.total", device)
    name, _, total = (part.strip() for part in row.rpartition(","))
    if not name or not total.isascii() or not total.isdigit():
        raise InputError(f"--gpu auto: nvidia-smi answered {row!r}, without a memory size", NAME_A_CARD)
    total_bytes = int(total) * 2**20
    known = [gpu for gpu in load_gpus() if _key(name) in map(_key, gpu.device_names)]
    if not known:
        return _outside_catalogue(name, total_bytes, device)
    gpu = min(known, key=lambda gpu: abs(gpu.capacity_bytes - total_bytes))
    if gpu.capacity_bytes <= total_bytes <= gpu.capacity_bytes * (1 + SAME_CARD_SLACK):
        return gpu
    usable_bytes = max(total_bytes - driver_reserve_bytes(total_bytes), 0)
    return replace(gpu, capacity_bytes=usable_bytes, capacity_basis="nvidia-smi")


def _outside_catalogue(name: str, total_bytes: int, device: str | None) -> Gpu:
    """A card made of the driver's answers, with a stand-in for its speed."""
    answer = re.fullmatch(r"([0-9]+)\.([0-9]+)", _ask_driver("compute_cap", device))
    capability = (int(answer[1]), int(answer[2])) if answer else None
    alike = [gpu for gpu in load_gpus() if gpu.capability == capability]
    if not alike:
        raise InputError(f"--gpu auto: {name!r} is not in the catalogue, nor is a card like it", NAME_A_CARD)
    slowest = min(alike, key=lambda gpu: (gpu.fp32_tflops, gpu.bandwidth_bytes_s))
    return replace(
        slowest,
        name="-".join(_words(name)),
        title=name,
        device_names=(name,),
        capacity_bytes=max(total_bytes - driver_reserve_bytes(total_bytes), 0),
        capacity_basis="nvidia-smi",
        source=f"nvidia-smi total; throughput of {slowest.name}, the slowest catalogued card of its capability",
        throughput_basis="stand-in",
    )


def _visible_device() -> str | None:
    """First entry of CUDA_VISIBLE_DEVICES, None where it is not set."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    first = listed.split(",")[0].strip()
    if first in {"", "-1", "NoDevFiles"}:
        raise InputError(f"--gpu auto: CUDA_VISIBLE_DEVICES={listed!r} hides every GPU", f"unset it, or {NAME_A_CARD}")
    if first.startswith("MIG-"):
        raise InputError(
            f"--gpu auto: CUDA_VISIBLE_DEVICES={listed!r} is a slice of a GPU, its memory cannot be asked",
            "name the card and give the slice's memory as the budget, for example --gpu a100-40gb --budget 9GB",
        )
    return first


def _ask_driver(fields: str, device: str | None) -> str:
    """First line that nvidia-smi answers about `fields`. InputError where it is missing, fails, or sees no GPU."""
    import subprocess

    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    command += [f"--id={device}"] if device is not None else []
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--gpu auto: nvidia-smi did not answer in {TIMEOUT_S} seconds", NAME_A_CARD) from error
    except OSError as error:
        raise InputError("--gpu auto: no NVIDIA driver here (nvidia-smi does not start)", NAME_A_CARD) from error
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        told = (answer.stdout + answer.stderr).strip().splitlines()
        raise InputError(f"--gpu auto: nvidia-smi found no GPU: {told[0] if told else 'no answer'}", NAME_A_CARD)
    return lines[0].strip()
