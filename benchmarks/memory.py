"""What a training step holds in memory, counted tensor by tensor on a CPU; where there is a GPU, beside what it says.

    python -m benchmarks.memory [--images 32] [--tokens 30 60] [--device cpu|cuda]

preset=artemis_v1: ViT-B/16 + GPT-2 small, every part on, two texts to an image. Half precision is bf16 on a CPU, whose
tensors have the size of fp16's. Weights, gradients, the optimiser's states, the batch and the most that is alive in two
steps are counted; what a GPU's libraries take beside (context and workspaces, some 0.5 GB) is not.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor

from benchmarks.real_size import build, make_batch, make_optimizer, training_step
from trainer.checkpoint import provenance
from trainer.memory import Peak

VARIANTS = {  # name: half precision, blocks recomputed
    "fp32": (False, False),
    "half": (True, False),
    "half, gradient checkpointing": (True, True),
}


def gigabytes(images: int, tokens: int, device: torch.device, *, half: bool, recomputed: bool) -> dict[str, float]:
    captioner, batch = build().to(device), make_batch(images, device, tokens=tokens)
    if recomputed:
        captioner.language.recompute()
    optimizer = make_optimizer(captioner, device)
    weights = [*captioner.parameters(), *captioner.buffers()]
    parts = [getattr(batch, name) for name in batch.__slots__]
    there = [*weights, *(part for part in parts if isinstance(part, Tensor))]
    dtype = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Peak(there) as peak, torch.autocast(device.type, dtype=dtype, enabled=half):
        for _ in range(2):
            training_step(captioner, batch, optimizer)
    fixed = sum(tensor.nbytes for tensor in there)
    found = {"weights and batch": fixed / 1e9, "step": peak.most / 1e9, "together": (fixed + peak.most) / 1e9}
    if device.type == "cuda":
        found["measured"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32, help="in a batch (%(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[30, 60], help="of every text (30 60)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="all by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    options = parser.parse_args()
    rows = []
    for tokens in options.tokens:
        for name in options.variants:
            half, recomputed = VARIANTS[name]
            device = torch.device(options.device)
            found = gigabytes(options.images, tokens, device, half=half, recomputed=recomputed)
            rows.append({"tokens": tokens, "variant": name, **found})
    print(json.dumps({"options": vars(options), "rows": rows, **provenance()}))
    print(f"\n{options.images} images, two texts each, {options.device}; GB\n")
    print(f"| tokens | precision | {' | '.join(list(rows[0])[2:])} |\n|---|---|{'---|' * (len(rows[0]) - 2)}")
    for row in rows:
        cells = " | ".join(f"{value:.2f}" for value in list(row.values())[2:])
        print(f"| {row['tokens']} | {row['variant']} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
