"""What this network does on one GPU: memory, speed and equality in one command of at most eight minutes.

    python -m benchmarks.gpu [--out gpu.json] [--gigabytes 11] [--minutes 8]

ViT-B/16 and GPT-2 small with random weights, and commands on a small demo. Every row is written when it is done, so an
interrupted command keeps it; an error becomes a row.

training  steps of preset=artemis_v1 (32 images with two texts of 30 tokens) within --gigabytes of memory
captions  25 tokens a caption, beside the encoder alone
equality  greedy tokens in fp32, against the same network on the CPU
commands  mode=train in fp16, in bf16, with compiled blocks, and by torchrun with NCCL and with FSDP of one process
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.real_size import (
    DTYPES,
    GREEDY,
    NO_LEXICON,
    PROMPT,
    arguments,
    build,
    encode,
    interleaved,
    make_batch,
    make_optimizer,
    print_table,
    with_tokens,
    write_captions,
)
from common.config.check import ROOT
from common.errors import shorten
from common.files import write_json
from data.schema import Batch
from model.captioner import Captioner
from model.decoding.generation import generate
from model.decoding.packed import optimize_for_generation
from model.losses import loss_counts, loss_sums
from trainer.loop.tracker import peak_memory
from trainer.runs.provenance import provenance

Row = dict[str, object]
WAYS = {  # of a training step: precision, feature cache, compiled blocks
    "fp16": ("fp16", False, False),
    "bf16": ("bf16", False, False),
    "fp16, feature cache": ("fp16", True, False),
    "bf16, feature cache": ("bf16", True, False),
    "bf16, feature cache, compiled": ("bf16", True, True),
}
DEMO = ["mode=train", "dataset.demo_images=128", "trainer.epochs=1", "trainer.overwrite=true"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
COMMANDS: dict[str, tuple[list[str], list[str], dict[str, str]]] = {  # launcher, keys, environment
    "fp32": ([], ["trainer.precision=fp32"], {}),
    "fp16": ([], ["trainer.precision=fp16"], {}),
    "bf16": ([], ["trainer.precision=bf16"], {}),
    "bf16, compiled": ([], ["trainer.precision=bf16", "trainer.compile=true"], {}),
    "fp16, NCCL": (TORCHRUN, ["trainer.precision=fp16"], {}),
    "bf16, FSDP": (TORCHRUN, ["trainer.precision=bf16"], FSDP),
}


class ScaledStep:
    """A training step in half precision, with loss scaling in fp16."""

    def __init__(self, captioner: Captioner, batch: Batch, device: torch.device, precision: str) -> None:
        self.captioner, self.batch, self.device, self.dtype = captioner.train(), batch, device, DTYPES[precision]
        self.optimizer = make_optimizer(captioner, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.loss = float("nan")

    def __call__(self) -> None:
        counts = loss_counts(self.batch)
        with torch.autocast(self.device.type, dtype=self.dtype):
            sums = loss_sums(self.captioner(self.batch), self.batch)
            total = sum(value / counts[name].clamp(min=1) for name, value in sums.items())
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = total.detach()


def training(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gigabytes * 1e9 / whole), device)
    for name, (precision, cached, compiled) in WAYS.items():
        torch.manual_seed(0)
        captioner, batch = build().to(device), make_batch(options.images, device)
        batch = with_tokens(captioner, batch) if cached else batch
        if compiled:
            captioner.language.compile_blocks()
        step = ScaledStep(captioner, batch, device, precision)
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = interleaved({name: step}, options.repeats, device)[name]
        yield {
            "way": name,
            "s a step": seconds,
            "images a s": options.images / seconds,
            "peak GB": peak_memory(device) / 1e9,
            "loss": float(step.loss),
        }
        del captioner, step
        torch.cuda.empty_cache()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def captions(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    captioner = build().to(device).eval()
    optimize_for_generation(captioner, bf16=False)
    for images in options.sizes:
        batch = make_batch(images, device)
        for precision, dtype in DTYPES.items():
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                works = {"encoder": partial(encode, captioner, batch)}
                works |= {"captions": partial(write_captions, captioner, batch, GREEDY)}
                found = interleaved(works, options.repeats, device)
            whole = found["captions"]
            yield {"images": images, "precision": precision, "captions a s": images / whole}
            yield {"images": images, "precision": f"{precision}, × encoder", "captions a s": whole / found["encoder"]}


@torch.no_grad()
def equality(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    captioner, batch = build().eval(), make_batch(options.sizes[1], torch.device("cpu"))

    def tokens(where: torch.device) -> list[list[int]]:
        there = batch.to(where)
        visual = captioner.to(where).look(there.frames, there.frame_mask)
        prompts = [PROMPT] * len(batch.ids)
        ones = [1] * len(prompts)
        found = generate(
            captioner, visual, prompts, explanation_tokens=ones, eos_id=-1, vad=NO_LEXICON, decoding=GREEDY
        )
        return [text.tokens for text in found]

    pairs = [*zip(tokens(torch.device("cpu")), tokens(device), strict=True)]
    yield {"texts": len(pairs), "equal to the CPU's": sum(one == other for one, other in pairs)}


def commands(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name, (launcher, keys, variables) in COMMANDS.items():
            run = name.replace(", ", "-")
            own = [f"name={run}", f"dataset.root={folder}/demo", f"trainer.exp_dir={folder}/runs"]
            own += [f"trainer.device={device.type}"]
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *launcher, str(ROOT / "run.py"), *DEMO, *keys, *own],
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                check=False,
            )
            row: Row = {"command": name, "exit status": done.returncode, "s": time.perf_counter() - started}
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
                error = next((line for line in said if line.startswith("error:")), said[-1])
                yield row | {"validation loss": error[:200]}
                continue
            lines = (Path(folder) / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [line["validation/loss"] for line in map(json.loads, lines) if "validation/loss" in line]
            yield row | {"validation loss": losses[-1]}


CHECKS: dict[str, Callable[[argparse.Namespace, torch.device], Iterator[Row]]] = {
    "equality": equality,
    "training": training,
    "captions": captions,
    "commands": commands,
}


def main() -> int:
    parser = arguments("gpu", __doc__)
    parser.set_defaults(images=32, device="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="(%(default)s)")
    parser.add_argument("--gigabytes", type=float, default=11.0, help="memory for training (%(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no check starts later (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs=3, default=[1, 16, 64], help="images in a batch of captions")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=[*CHECKS], help="(all)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu tries the command itself")
    started = time.monotonic()
    found: dict[str, object] = {"provenance": provenance()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    for name in options.checks:
        rows: list[Row] = []
        found[name] = rows
        try:
            for row in CHECKS[name](options, device):
                rows.append(row)
                write_json(options.out, found)
                if time.monotonic() - started > 60 * options.minutes:
                    rows.append({"left out": f"the rest, after {options.minutes:g} minutes"})
                    break
        except Exception as error:  # a failed check must not cost the others
            rows.append({"error": shorten(error)})
        write_json(options.out, found)
        heads = list(dict.fromkeys(key for row in rows for key in row))
        print(f"\n{name}", end="")
        print_table(heads, ([row.get(key, "–") for key in heads] for row in rows))
    print(f"\n{options.out}")
    return int(any("error" in row for name in options.checks for row in found[name]))


if __name__ == "__main__":
    sys.exit(main())
