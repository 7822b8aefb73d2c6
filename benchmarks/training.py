"""A training step against the published way of the same one: captions a second, and peak memory.

    python -m benchmarks.training [--images 8] [--repeats 3] [--device cpu|cuda] [--memory]

ViT-B/16 + GPT-2 small with mapper, resampler and cross-attention in front of every block; random weights, which cost
what trained ones cost. Two texts of 14 to 30 tokens to an image. The published way, in plain torch: a picture is
encoded once for every text that it has, texts are padded to one length (the perceiver captioner's 260, SEVLM's 30),
logits are computed for all positions, all in fp32. Ours with all parts (VAD, contrastive head) stands below, as does
what each way holds in memory (--memory: a process for each). Times are medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from benchmarks.feature_cache import interleaved, with_tokens
from benchmarks.real_size import VOCABULARY, build, make_batch, make_optimizer, training_step
from data.schema import Batch
from model.captioner import Captioner, Text
from trainer.checkpoint import provenance
from trainer.gauges import peak_memory

NETWORKS = {
    "plain": {"vad": {"enabled": False}, "contrastive": {"enabled": False}, "text": {"segments": False}},
    "states": {"contrastive": {"negatives": "states"}},
    "all parts": {},
}
NETWORKS["compiled"] = NETWORKS["plain"]  # through torch.compile
WAYS = {  # name: network, and what becomes of the step
    "published, padded to 260": ("plain", {"padded": 260}),
    "published, padded to 30": ("plain", {"padded": 30}),
    "ours": ("plain", {}),
    "ours, feature cache": ("plain", {"cached": True}),
    "ours, feature cache, bf16": ("plain", {"cached": True, "dtype": torch.bfloat16}),
    "ours, feature cache, compiled": ("compiled", {"cached": True}),
    "all parts, feature cache, states of false explanations": ("states", {"cached": True}),
    "all parts, feature cache": ("all parts", {"cached": True}),
}


def texts_of_many_lengths(batch: Batch) -> Batch:
    """The same batch with 14 to 30 tokens in a text; the loader pads to the longest."""
    width = batch.input_ids.shape[1]
    lengths = torch.randint(14, width + 1, (len(batch.input_ids),), generator=torch.Generator().manual_seed(2))
    inside = torch.arange(width)[None, :].to(batch.input_ids.device) < lengths[:, None].to(batch.input_ids.device)
    return replace(
        batch,
        attention_mask=inside,
        labels=batch.labels.masked_fill(~inside, -100),
        vad_known=batch.vad_known & inside,
        vad_target=batch.vad_target & inside,
    )


def published_step(captioner: Captioner, batch: Batch, optimizer: torch.optim.Optimizer, *, length: int) -> None:
    captioner.train()
    one = batch.text_image
    visual = captioner.look(batch.frames[one], batch.frame_mask[one])
    more = length - batch.input_ids.shape[1]
    ids, labels = F.pad(batch.input_ids, (0, more), value=VOCABULARY - 1), F.pad(batch.labels, (0, more), value=-100)
    mask = F.pad(batch.attention_mask, (0, more))
    nothing = torch.zeros(*ids.shape, 3, device=ids.device)
    hidden = captioner.read(visual, Text(ids, torch.zeros_like(ids), nothing, torch.zeros_like(mask), mask))
    logits = captioner.language.logits(hidden)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@functools.cache
def network(name: str, device: torch.device) -> tuple[Captioner, torch.optim.Optimizer]:
    captioner = build(NETWORKS[name]).to(device)
    if name == "compiled":
        captioner.language.compile_blocks()
    return captioner, make_optimizer(captioner, device)


def work(name: str, images: int, device: torch.device) -> Callable[[], None]:
    """A step of this way."""
    parts, how = WAYS[name]
    captioner, optimizer = network(parts, device)
    batch = texts_of_many_lengths(make_batch(images, device))
    if "padded" in how:
        return lambda: published_step(captioner, batch, optimizer, length=how["padded"])
    if how.get("cached"):
        batch = with_tokens(captioner.eval(), batch)
    dtype = how.get("dtype")

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            training_step(captioner, batch, optimizer)

    return step


def memory_of(name: str, options: argparse.Namespace) -> float:
    """Peak gigabytes of two steps, in a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.training", "--alone", name, "--images", str(options.images)]
    done = subprocess.run([*command, "--device", options.device], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images in a batch, two texts each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="all by default")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.alone:
        step = work(options.alone, options.images, device)
        for _ in range(2):
            step()
        print(peak_memory(device) / 1e9)
        return 0
    memory = {name: memory_of(name, options) for name in options.ways} if options.memory else {}
    works = {name: work(name, options.images, device) for name in options.ways}
    report(interleaved(works, options.repeats, device), memory, options)
    return 0


def report(times: dict[str, list[float]], memory: dict[str, float], options: argparse.Namespace) -> None:
    print(json.dumps({"options": vars(options), "seconds": times, "peak_gigabytes": memory, **provenance()}))
    medians = {name: statistics.median(values) for name, values in times.items()}
    against = [name for name in WAYS if name.startswith("published") and name in medians]
    heads = [f"× {name.removeprefix('published, ')}" for name in against]
    print(f"\n{2 * options.images} texts of {options.images} images a step, {options.device}\n")
    print(f"| way | s a step | captions a s | {''.join(f'{head} | ' for head in heads)}peak GB |")
    print("|---|" + "---|" * (3 + len(heads)))
    for name, value in medians.items():
        ratios = "".join(f"{medians[other] / value:.2f} | " for other in against)
        held = f"{memory[name]:.2f}" if name in memory else "–"
        print(f"| {name} | {value:.2f} | {2 * options.images / value:.2f} | {ratios}{held} |")


if __name__ == "__main__":
    sys.exit(main())
