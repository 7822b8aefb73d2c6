"""How many of a batch's tokens are padding, by dataset.train_ds.length_buckets.

    python -m benchmarks.padding artEmisX_train.json --tokenizer gpt2 [--images 20000] [--batch 32]

Two texts to an image, as in training. Where a file has fewer images than asked for, texts are drawn from it again, so
that the windows of an epoch of real size can be told from a small file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from data.emotions import INDEX
from data.loaders import EpochSampler
from data.text import Template, load_tokenizer


def lengths(path: Path, template: Template) -> list[tuple[int, int]]:
    """(tokens, characters) of every text of the file."""
    entries = json.loads(path.read_text(encoding="utf-8")).values()
    pairs = [pair for entry in entries for pair in zip(entry["emotions"], entry["explanations"], strict=True)]
    return [(len(template.encode(text, INDEX[emotion]).input_ids), len(text)) for emotion, text in pairs]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.padding", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="annotations in SEVLM's JSON")
    parser.add_argument("--tokenizer", default="gpt2", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=20_000, help="of an epoch (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images (%(default)s)")
    options = parser.parse_args()
    texts = lengths(options.file, Template(load_tokenizer(options.tokenizer), max_length=60))
    rng = random.Random(0)
    images = [rng.choices(texts, k=2) for _ in range(options.images)]
    print(f"{len(texts):,} texts of {sum(tokens for tokens, _ in texts) / len(texts):.1f} tokens\n")
    print("| buckets | tokens of a batch that are padding | tokens of an epoch |\n|---|---|---|")
    for buckets in (1, 4, 16, 64):
        sampler = EpochSampler(
            len(images),
            seed=0,
            shuffle=True,
            buckets=buckets,
            group=options.batch,
            size=lambda _, index: max(characters for _, characters in images[index]),
        )
        order = [index for _, index in sampler]
        batches = [
            [n for i in order[k : k + options.batch] for n, _ in images[i]] for k in range(0, len(order), options.batch)
        ]
        cells, words = sum(max(batch) * len(batch) for batch in batches), sum(map(sum, batches))
        print(f"| {buckets} | {1 - words / cells:.0%} | {cells:,} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
