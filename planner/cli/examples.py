"""The examples that end each verb's help; tests parse every one of them."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "recommend": (
        "srsplan recommend --catalog 1.6M --budget 40GB",
        "srsplan recommend --catalog 300K --gpu rtx-4090 --mean-length 54.9",
        "srsplan recommend --data interactions.csv --budget 24GB --loss cce-",
    ),
    "estimate": (
        "srsplan estimate --loss cce- --catalog 1.6M --batch-size 1024 \\\n    --seq-len 200 --negatives 2048",
        "srsplan estimate --loss ce --catalog 300K --batch-size 64 --seq-len 100 \\\n    --budget 24GB",
    ),
    "profile": (
        "srsplan profile --gpu auto --catalog 300K",
        "srsplan profile --gpu a100-40gb --losses ce-,cce- --catalog 300K \\\n    --probes 3 -o probes.jsonl",
    ),
    "train": (
        "srsplan train --data interactions.csv --plan srsplan.plan.yaml",
        "srsplan train --data interactions.csv --loss cce --dim 64 --seq-len 50 \\\n    --epochs 5 -o runs/first",
        "srsplan train --data interactions.csv -o runs/first --resume",
    ),
    "predict": (
        "srsplan predict runs/first --data interactions.csv -o top.parquet",
        "srsplan predict runs/first --data interactions.csv --user 17 --user 42 -k 5",
        "srsplan predict runs/first --data interactions.csv --users users.txt \\\n    -o top.csv",
    ),
    "export": (
        "srsplan export runs/first --onnx model.onnx",
        "srsplan export runs/first --onnx model.onnx -k 20 --keep-seen",
        "srsplan export runs/first --to rectools model.ckpt",
    ),
    "compare": (
        "srsplan compare examples/compare_small.yaml",
        "srsplan compare losses.yaml -o runs/losses --jobs 2",
        "srsplan compare losses.yaml --report-only --json",
    ),
    "gpus": ("srsplan gpus", "srsplan gpus a100", "srsplan gpus 'rtx 40' --json"),
    "analyze": (
        "srsplan analyze runs.csv",
        "srsplan analyze runs.csv -o analysis --format svg",
    ),
    "doctor": (
        "srsplan doctor",
        "srsplan doctor --losses cce,cce- --dim 128 --precision bf16 --json",
    ),
    "bench": (
        "srsplan bench --shapes 512x3Kx64x64",
        "srsplan bench --shapes beauty --scale 0.1 --peers -o bench.csv",
        "srsplan bench --shapes zvuk --only 'triton cce' --kernels --sweep \\\n    -o launches.csv",
    ),
}


def epilog(verb: str) -> str:
    """Return the examples that end a verb's help. The control character keeps click from joining the lines."""
    lines = (line for example in EXAMPLES[verb] for line in example.splitlines())
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)
