"""What dataset.feature_cache saves: a training step with and without it, and reading its items against decoding JPEGs.

    python -m benchmarks.feature_cache [--images 8] [--pictures 48] [--device cpu|cuda] [--precision fp32|bf16|fp16]

ViT-B/16 + GPT-2 small with random weights, which cost what trained ones cost; two texts of 30 tokens to an image. The
pictures are made here: 600 pixels on the longer side, JPEG of quality 90. Times are medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.real_size import build, make_batch, make_optimizer, seconds, training_step
from data.feature_cache import FeatureCache, FrozenEncoder
from data.frames import FrameReader
from data.schema import Batch
from data.token_files import CachedTokens, row_bytes
from model.captioner import Captioner
from trainer.checkpoint import provenance


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Smooth shapes under fine grain: about 100 kB each, as scanned paintings have."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:04d}.jpg" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).resize((600, 480), Image.BICUBIC)
        grain = rng.normal(0, 12, (480, 600, 1))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def fill(captioner: Captioner, root: Path, paths: list[Path], read: FrameReader, device: torch.device) -> CachedTokens:
    vision = captioner.vision

    @torch.no_grad()
    def encode(frames: torch.Tensor) -> torch.Tensor:
        return vision(frames[:, None].to(device))[:, 0]

    encoder = FrozenEncoder(description=vision.fingerprint(), shape=(vision.num_tokens, vision.dim), encode=encode)
    return FeatureCache(root, encoder=encoder, read=read, num_workers=0).tokens(paths)


@torch.no_grad()
def with_tokens(captioner: Captioner, batch: Batch) -> Batch:
    """The same images as they come from a cache."""
    tokens = captioner.vision(batch.frames).half()
    return replace(batch, frames=batch.frames.new_empty(*batch.frames.shape[:3], 0, 0), tokens=tokens)


def interleaved(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every work, taken in turn, so that all have the same machine."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            elapsed = seconds(work, device)
            if repeat:  # the first round warms up
                times[name].append(elapsed)
    return times


def works(
    captioner: Captioner, options: argparse.Namespace, paths: list[Path], read: FrameReader, tokens: CachedTokens
) -> dict[str, Callable[[], object]]:
    device = torch.device(options.device)
    batch = make_batch(options.images, device)
    cached = with_tokens(captioner, batch)
    optimizer = make_optimizer(captioner, device)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    return {
        "step": lambda: training_step(captioner, batch, optimizer),
        "step, cached": lambda: training_step(captioner, cached, optimizer),
        "load": lambda: [read(paths[i]) for i in order],
        "load, cached": lambda: [tokens[i] for i in order],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feature_cache", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images in a batch, two texts each (%(default)s)")
    parser.add_argument("--pictures", type=int, default=48, help="JPEGs to read (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="(%(default)s)")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)
    captioner = build().to(device)
    captioner.vision.eval()
    with tempfile.TemporaryDirectory() as name, torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        paths = write_jpegs(Path(name), options.pictures)
        read = FrameReader(captioner.vision.preprocess, max_frames=1)
        filled: list[CachedTokens] = []
        once = seconds(lambda: filled.append(fill(captioner, Path(name) / "cache", paths, read, device)), device)
        times = interleaved(works(captioner, options, paths, read, filled[0]), options.repeats, device)
    report(times, once, captioner, options)
    return 0


def report(times: dict[str, list[float]], once: float, captioner: Captioner, options: argparse.Namespace) -> None:
    print(json.dumps({"options": vars(options), "seconds": times, "pass": once, **provenance()}))
    row = row_bytes((captioner.vision.num_tokens, captioner.vision.dim))
    print(f"\n{options.device}, {options.precision}; {row:,} bytes and {once / options.pictures:.3f} s an image, once")
    print("\n| | without | with | ratio |\n|---|---|---|---|")
    step, load = f"s, step of {options.images} images", "ms, one image loaded"
    for label, work, scale in ((step, "step", 1.0), (load, "load", 1000 / options.pictures)):
        plain, cached = (scale * statistics.median(times[name]) for name in (work, f"{work}, cached"))
        print(f"| {label} | {plain:.2f} | {cached:.2f} | {plain / cached:.1f} |")


if __name__ == "__main__":
    sys.exit(main())
