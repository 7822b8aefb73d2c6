"""Seconds and peak memory of one training step and of captions: ViT-B/16 and GPT-2 small with random weights.

    python -m benchmarks.real_size [--images 8] [--repeats 3] [--device cpu|cuda] [--precision fp32|bf16|fp16]

Random weights cost what trained ones cost. Texts have 30 tokens, two to an image; captions have 25 new tokens, because
<eos> is out of reach. Times are medians of interleaved repeats. The other benchmarks import network, batch and clock
from here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from omegaconf import OmegaConf

from common.config.check import ROOT
from data.schema import Batch
from data.vad.align import VadAligner
from model.build import SpecialTokens, build_captioner, count_parameters
from model.captioner import Captioner
from model.decoding.generation import Decoding, generate
from model.losses import loss_counts, loss_sums
from trainer.loop.optim import build_optimizer
from trainer.loop.tracker import peak_memory
from trainer.runs.provenance import provenance

VOCABULARY, TOKENS, NEW_TOKENS = 50257, 30, 25
PROMPT = [VOCABULARY - 1, 262, 9942, 318, 25030, 780]  # the last token belongs to the explanation
NO_LEXICON = VadAligner(None, None)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GREEDY, BEAM = Decoding(max_length=NEW_TOKENS), Decoding(strategy="beam", beam_width=5, max_length=NEW_TOKENS)


def make_optimizer(captioner: Captioner, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer that config.yaml describes."""
    settings = OmegaConf.load(ROOT / "config.yaml").model.optimizer
    return build_optimizer(settings, captioner.parameters(), fused=device.type == "cuda")


def build(changes: Mapping | None = None, *, special: SpecialTokens | None = None) -> Captioner:
    """Return a captioner with every part on, except for `changes` to the section `model` of config.yaml."""
    config = OmegaConf.load(ROOT / "config.yaml").model
    parts = {
        "vision": {"pretrained_name": None, "architecture": "ViT-B-16-quickgelu"},
        "text": {"pretrained_name": None, "config": {}, "segments": True},
        "vad": {"enabled": True},
        "contrastive": {"enabled": True, "negatives": "read"},
    }
    config = OmegaConf.to_container(OmegaConf.merge(config, parts, dict(changes or {})))
    torch.manual_seed(0)
    vocabulary = VOCABULARY + (4 if special else 0)
    return build_captioner(config, vocab_size=vocabulary, eos_id=VOCABULARY - 1, special=special)


def make_batch(images: int, device: torch.device, *, tokens: int = TOKENS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    texts = 2 * images
    ids = torch.randint(0, VOCABULARY - 1, (texts, tokens), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    known = torch.rand(texts, tokens, generator=generator) < 0.3
    return Batch(
        ids=[str(i) for i in range(images)],
        frames=torch.randn(images, 1, 3, 224, 224, generator=generator),
        frame_mask=torch.ones(images, 1, dtype=torch.bool),
        input_ids=ids,
        labels=labels,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        segment=(torch.arange(tokens) >= 6).long().expand(texts, tokens),
        text_image=torch.arange(images).repeat_interleave(2),
        vad=torch.rand(texts, tokens, 3, generator=generator) * 2 - 1,
        vad_known=known,
        vad_target=known,
        emotion=torch.arange(texts) % 9,
        histogram=torch.full((images, 9), 1 / 9),
        emotion_start=torch.full((texts,), 4),
        explanation_start=torch.full((texts,), 6),
    ).to(device)


@torch.no_grad()
def with_tokens(captioner: Captioner, batch: Batch) -> Batch:
    """Return the batch as dataset.feature_cache delivers it: the encoder's tokens in place of pixels."""
    tokens = captioner.vision(batch.frames).half()
    return replace(batch, frames=batch.frames.new_empty(*batch.frames.shape[:3], 0, 0), tokens=tokens)


def training_step(captioner: Captioner, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    captioner.train()
    counts = loss_counts(batch)
    total = sum(value / counts[name].clamp(min=1) for name, value in loss_sums(captioner(batch), batch).items())
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def encode(captioner: Captioner, batch: Batch) -> None:
    captioner.eval()
    captioner.vision(batch.frames)


@torch.no_grad()
def write_captions(captioner: Captioner, batch: Batch, decoding: Decoding) -> None:
    captioner.eval()
    visual = captioner.look(batch.frames, batch.frame_mask)
    count = len(batch.ids)
    generate(
        captioner, visual, [PROMPT] * count, explanation_tokens=[1] * count, eos_id=-1, vad=NO_LEXICON,
        decoding=decoding,
    )  # fmt: skip


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return median seconds by name. Each round runs every work once, so a slow spell hits all; the first warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            elapsed = seconds(work, device)
            if repeat:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table. Floats get three digits after the point."""
    heads = [*heads]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in row)} |")


def print_provenance(options: argparse.Namespace) -> None:
    print(json.dumps({"options": vars(options), **provenance()}, default=str))


def arguments(module: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks of a network share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images in a batch (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after the warm-up (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    return parser


def main() -> int:
    parser = arguments("real_size", __doc__)
    parser.add_argument("--precision", choices=DTYPES, default="fp32", help="(%(default)s)")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    captioner, batch = build().to(device), make_batch(options.images, device)
    optimizer = make_optimizer(captioner, device)
    works = {
        "encoder alone": lambda: encode(captioner, batch),
        "caption, greedy": lambda: write_captions(captioner, batch, GREEDY),
        "caption, beam 5": lambda: write_captions(captioner, batch, BEAM),
        "training step": lambda: training_step(captioner, batch, optimizer),
    }
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        found = interleaved(works, options.repeats, device)
    print_provenance(options)
    trained = sum(row.trained for row in count_parameters(captioner))
    print(f"{trained:,} trained weights; peak memory {peak_memory(device) / 1e9:.2f} GB")
    rows = ([name, value, value / options.images, value / found["encoder alone"]] for name, value in found.items())
    print_table(("work", "s per batch", "s per image", "× encoder"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
