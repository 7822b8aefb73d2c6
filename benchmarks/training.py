"""Captions per second and peak memory of a training step, next to the published way of the same step.

    python -m benchmarks.training [--images 8] [--repeats 3] [--ways NAME …] [--no-memory] [--texts FILE.json]

ViT-B/16 and GPT-2 small with random weights, two texts of 14 to 30 tokens to an image. The published way, in plain
torch: an image is encoded once for each of its texts, texts are padded to one length (260 in the perceiver captioner,
30 in SEVLM), and logits are computed for all positions, in fp32. Peak memory is measured in a process for each way: of
the GPU where there is one, else of the process. At the end stands how much of a batch is padding.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.real_size import (
    VOCABULARY,
    arguments,
    build,
    interleaved,
    make_batch,
    make_optimizer,
    print_provenance,
    print_table,
    training_step,
    with_tokens,
)
from data.emotions import INDEX
from data.loaders import EpochSampler
from data.schema import Batch
from data.text import Template
from data.tokenizer import load_tokenizer
from model.captioner import Captioner, Text
from trainer.loop.tracker import peak_memory

SHORTEST, LONGEST = 14, 30  # tokens in a text
NETWORKS = {
    "plain": {"vad": {"enabled": False}, "contrastive": {"enabled": False}, "text": {"segments": False}},
    "states": {"contrastive": {"negatives": "states"}},
    "all parts": {},
}
NETWORKS["compiled"] = NETWORKS["plain"]
NETWORKS["checkpointed"] = NETWORKS["all parts"]
WAYS = {  # name: network, and how its step differs
    "published, padded to 260": ("plain", {"padded": 260}),
    "published, padded to 30": ("plain", {"padded": 30}),
    "ours": ("plain", {}),
    "ours, feature cache": ("plain", {"cached": True}),
    "ours, feature cache, bf16": ("plain", {"cached": True, "dtype": torch.bfloat16}),
    "ours, feature cache, compiled": ("compiled", {"cached": True}),
    "all parts, feature cache, contrast with other texts' states": ("states", {"cached": True}),
    "all parts, feature cache": ("all parts", {"cached": True}),
    "all parts, bf16": ("all parts", {"dtype": torch.bfloat16}),
    "all parts, bf16, gradient checkpointing": ("checkpointed", {"dtype": torch.bfloat16}),
}


def texts_of_many_lengths(batch: Batch) -> Batch:
    """Return the batch with texts of SHORTEST to LONGEST tokens, padded to the longest."""
    texts, width = batch.input_ids.shape
    lengths = torch.randint(SHORTEST, LONGEST + 1, (texts,), generator=torch.Generator().manual_seed(2))
    lengths[0] = width
    inside = (torch.arange(width)[None, :] < lengths[:, None]).to(batch.input_ids.device)
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
    no_vad = torch.zeros(*ids.shape, 3, device=ids.device)
    hidden = captioner.read(visual, Text(ids, torch.zeros_like(ids), no_vad, torch.zeros_like(mask), mask))
    logits = captioner.language.logits(hidden)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@functools.cache
def network(name: str, device: torch.device) -> tuple[Captioner, torch.optim.Optimizer]:
    captioner = build(NETWORKS[name]).to(device)
    if name == "compiled":
        captioner.language.compile_blocks()
    if name == "checkpointed":
        captioner.language.recompute()
    return captioner, make_optimizer(captioner, device)


def work(name: str, images: int, device: torch.device) -> Callable[[], None]:
    """Return one training step of this way as a function."""
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
    """Return peak gigabytes of two steps in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.training", "--alone", name, "--images", str(options.images)]
    done = subprocess.run([*command, "--device", options.device], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def text_lengths(path: Path | None) -> list[int]:
    """Return tokens per text: of an annotation file in SEVLM's JSON with GPT-2's tokenizer, or drawn at random."""
    if path is None:
        rng = random.Random(0)
        return [rng.randint(SHORTEST, LONGEST) for _ in range(10_000)]
    template = Template(load_tokenizer("gpt2"), max_length=60)
    entries = json.loads(path.read_text(encoding="utf-8")).values()
    pairs = (pair for entry in entries for pair in zip(entry["emotions"], entry["explanations"], strict=True))
    return [len(template.encode(text, INDEX[emotion]).input_ids) for emotion, text in pairs]


def padding(lengths: list[int], *, images: int = 20_000, batch: int = 32) -> Iterator[tuple[int, str]]:
    """Yield dataset.train_ds.length_buckets and the share of an epoch's tokens that is padding, two texts an image."""
    rng = random.Random(0)
    texts = [rng.choices(lengths, k=2) for _ in range(images)]
    for buckets in (1, 4, 16, 64):
        sampler = EpochSampler(
            images, seed=0, shuffle=True, buckets=buckets, group=batch, size=lambda _, index: max(texts[index])
        )
        order = [texts[index] for _, index in sampler]
        batches = [[n for pair in order[i : i + batch] for n in pair] for i in range(0, images, batch)]
        cells = sum(max(one) * len(one) for one in batches)
        yield buckets, f"{1 - sum(map(sum, batches)) / cells:.0%}"


def main() -> int:
    parser = arguments("training", __doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="ways to measure (all)")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory")
    parser.add_argument("--texts", type=Path, metavar="FILE.json", help="annotations whose padding is computed")
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
    found = interleaved(works, options.repeats, device)
    print_provenance(options)
    captions = 2 * options.images
    rows = [[name, value, captions / value, memory.get(name, "–")] for name, value in found.items()]
    print_table(("way", "s a step", "captions a s", "peak GB"), rows)
    print_table(("length_buckets", "tokens that are padding"), padding(text_lengths(options.texts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
