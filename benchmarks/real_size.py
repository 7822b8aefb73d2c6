"""ViT-B/16 + GPT-2 small with random weights: one training step and captions, their seconds and peak memory.

    python -m benchmarks.real_size [--images 8] [--device cpu|cuda] [--precision fp32|bf16|fp16]

Random weights cost what trained ones cost. Texts have 30 tokens, two to an image; captions have 25 new tokens, and
<eos> is out of reach so that all are written to the end. Times are medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from omegaconf import OmegaConf

from data.schema import Batch
from data.vad_align import VadAligner
from model.build import build_captioner, count_parameters
from model.captioner import Captioner
from model.generation import Decoding, generate
from model.losses import loss_counts, loss_sums
from settings import ROOT
from trainer.checkpoint import provenance
from trainer.gauges import peak_memory
from trainer.optim import configured_optimizer

VOCABULARY, TOKENS, NEW_TOKENS = 50257, 30, 25
NO_WORDS = VadAligner(None, None)  # nothing is known of any word: the fusion is computed all the same


def make_optimizer(captioner: Captioner, device: torch.device) -> torch.optim.Optimizer:
    """As config.yaml has it."""
    settings = OmegaConf.load(ROOT / "config.yaml").model.optimizer
    return configured_optimizer(settings, captioner.parameters(), fused=device.type == "cuda")


def build(changes: Mapping | None = None) -> Captioner:
    """Every part on, but for `changes` of the section `model`."""
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "config.yaml").model)
    config["vision"] |= {"pretrained_name": None, "architecture": "ViT-B-16-quickgelu"}
    config["text"] |= {"pretrained_name": None, "config": {}, "segments": True}
    config["vad"]["enabled"] = config["contrastive"]["enabled"] = True
    config["contrastive"]["negatives"] = "read"
    for part, settings in (changes or {}).items():
        config[part] |= settings
    torch.manual_seed(0)
    return build_captioner(config, vocab_size=VOCABULARY, eos_id=VOCABULARY - 1)


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


def training_step(captioner: Captioner, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    captioner.train()
    counts = loss_counts(batch)
    total = sum(value / counts[name].clamp(min=1) for name, value in loss_sums(captioner(batch), batch).items())
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def captions(captioner: Captioner, batch: Batch, decoding: Decoding) -> None:
    captioner.eval()
    visual = captioner.look(batch.frames, batch.frame_mask)
    prompts = [[VOCABULARY - 1, 262, 9942, 318, 25030, 780]] * len(batch.ids)
    said = [1] * len(prompts)
    generate(captioner, visual, prompts, explanation_tokens=said, eos_id=-1, vad=NO_WORDS, decoding=decoding)


@torch.no_grad()
def encoder(captioner: Captioner, batch: Batch) -> None:
    captioner.eval()
    captioner.vision(batch.frames)


def seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_size", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images in a batch, two texts each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="(%(default)s)")
    options = parser.parse_args()
    device = torch.device(options.device)
    captioner = build().to(device)
    batch = make_batch(options.images, device)
    optimizer = make_optimizer(captioner, device)
    greedy, beam = Decoding(max_length=NEW_TOKENS), Decoding(strategy="beam", beam_width=5, max_length=NEW_TOKENS)
    works = {
        "encoder alone": lambda: encoder(captioner, batch),
        "caption, greedy": lambda: captions(captioner, batch, greedy),
        "caption, beam 5": lambda: captions(captioner, batch, beam),
        "training step": lambda: training_step(captioner, batch, optimizer),
    }
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)
    times: dict[str, list[float]] = {name: [] for name in works}
    memory: dict[str, float] = {}
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for repeat in range(options.repeats + 1):
            for name, work in works.items():
                elapsed = seconds(work, device)
                if repeat:  # the first round warms up
                    times[name].append(elapsed)
                else:
                    memory[name] = peak_memory(device) / 1e9
    report(times, memory, captioner, options)
    return 0


def report(times: dict, memory: dict, captioner: Captioner, options: argparse.Namespace) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(json.dumps({"options": vars(options), "seconds": times, "peak_gigabytes": memory, **provenance()}))
    trained = sum(row.trained for row in count_parameters(captioner))
    print(f"\n{trained:,} trained weights; {options.images} images, {options.device}, {options.precision}\n")
    print("| work | s per batch | s per image | × encoder | peak GB so far |\n|---|---|---|---|---|")
    for name, value in medians.items():
        ratio = value / medians["encoder alone"]
        print(f"| {name} | {value:.2f} | {value / options.images:.3f} | {ratio:.2f} | {memory[name]:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
