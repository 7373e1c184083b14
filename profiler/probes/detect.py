"""The card of this machine, asked from nvidia-smi.

    detect_gpu()             the first card that is visible
    resolve_gpu("auto")      the same; anything else is a card of the catalogue

torch is never imported here: asking must stay quick, also on a machine without a GPU.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace

from srsplan.models.errors import InputError
from srsplan.profiler.probes.catalogue import Gpu, driver_reserve_bytes, find_gpu, load_gpus, name_key, name_words

TIMEOUT_S = 5
SAME_CARD_SLACK = 0.1
"""nvidia-smi's total may exceed the catalogue's capacity by so much of it for the same card."""
NAME_A_CARD = "name a card, for example --gpu a100-40gb; `srsplan gpus` lists them"


def resolve_gpu(name: str) -> Gpu:
    """Return the card of this machine for `auto`, else the card of the catalogue. Raises InputError."""
    return detect_gpu() if name.strip().lower() == "auto" else find_gpu(name)


def detect_gpu() -> Gpu:
    """Return the card of this machine: the first that CUDA_VISIBLE_DEVICES leaves visible, as nvidia-smi sees it.

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
    known = [gpu for gpu in load_gpus() if name_key(name) in map(name_key, gpu.device_names)]
    if not known:
        return _outside_catalogue(name, total_bytes, device)
    gpu = min(known, key=lambda gpu: abs(gpu.capacity_bytes - total_bytes))
    if gpu.capacity_bytes <= total_bytes <= gpu.capacity_bytes * (1 + SAME_CARD_SLACK):
        return gpu
    usable_bytes = max(total_bytes - driver_reserve_bytes(total_bytes), 0)
    return replace(gpu, capacity_bytes=usable_bytes, capacity_basis="nvidia-smi")


def _outside_catalogue(name: str, total_bytes: int, device: str | None) -> Gpu:
    """Return a card made of the driver's answers, with a stand-in for its speed."""
    answer = re.fullmatch(r"([0-9]+)\.([0-9]+)", _ask_driver("compute_cap", device))
    capability = (int(answer[1]), int(answer[2])) if answer else None
    alike = [gpu for gpu in load_gpus() if gpu.capability == capability]
    if not alike:
        raise InputError(f"--gpu auto: {name!r} is not in the catalogue, nor is a card like it", NAME_A_CARD)
    slowest = min(alike, key=lambda gpu: (gpu.fp32_tflops, gpu.bandwidth_bytes_s))
    return replace(
        slowest,
        name="-".join(name_words(name)),
        title=name,
        device_names=(name,),
        capacity_bytes=max(total_bytes - driver_reserve_bytes(total_bytes), 0),
        capacity_basis="nvidia-smi",
        source=f"nvidia-smi total; throughput of {slowest.name}, the slowest catalogued card of its capability",
        throughput_basis="stand-in",
    )


def driver_version() -> str:
    """Return the version of the NVIDIA driver, "" where nvidia-smi does not tell."""
    try:
        return _ask_driver("driver_version", _visible_device())[:40]
    except InputError:
        return ""


def _visible_device() -> str | None:
    """Return the first entry of CUDA_VISIBLE_DEVICES, None where it is not set."""
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
    """Return the first line of nvidia-smi's answer about `fields`; InputError where it is missing, or sees no GPU."""
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
