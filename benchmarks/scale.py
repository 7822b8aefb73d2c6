"""Start-up, memory and time per step against the number of images, on generated annotations.

    python -m benchmarks.scale [--images 1000 10000 100000] [--steps 60] [--out benchmarks/scale.json]

The annotations are in ArtEmis' form with six texts to an image; the pictures are a thousand small ones by many names.
Every size is measured in a process of its own: reading the annotations and finding the images, then training steps of a
small network with two loader processes. Memory is the proportional set size of the trainer and its workers together:
what they share is counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from files import write_json

STYLES, TEXTS, DISTINCT = 27, 6, 1000
# fmt: off
WORDS = [
    "the", "a", "sky", "sea", "light", "dark", "calm", "storm", "people", "faces", "colours", "brush", "look", "bird",
    "sad", "happy", "lonely", "tree", "river", "old", "woman", "man", "dog", "reminds", "me", "of", "makes", "feel",
    "peaceful", "afraid", "because", "under", "over", "bright", "muted", "serene", "gloomy", "field", "house", "night",
]
# fmt: on


def write_records(root: Path, count: int) -> None:
    """root/annotations.json with `count` images, and root/images with a file for each."""
    from PIL import Image

    from data.emotions import EMOTIONS

    rng = random.Random(count)
    originals = []
    for style in range(STYLES):
        (root / "images" / f"style-{style:02d}").mkdir(parents=True)
    for i in range(min(count, DISTINCT)):
        originals.append(root / "images" / f"style-{i % STYLES:02d}" / f"painter_picture-{i:06d}.jpg")
        Image.effect_noise((64, 64), rng.uniform(10, 90)).convert("RGB").save(originals[-1], quality=80)
    entries = {}
    for i in range(count):
        name = f"style-{i % STYLES:02d}/painter_picture-{i:06d}.jpg"
        if i >= DISTINCT:
            os.link(originals[i % DISTINCT], root / "images" / name)
        entries[str(10**15 + i)] = {
            "image_name": name,
            "emotions": rng.choices(EMOTIONS, k=TEXTS),
            "explanations": [" ".join(rng.choices(WORDS, k=rng.randint(8, 20))) for _ in range(TEXTS)],
        }
    (root / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")


def memory(*pids: int | str) -> float:
    """Proportional set size of these processes together, MB."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Pss:")) / 1e3


def peak_memory() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1e3


def measure(root: Path, steps: int) -> dict[str, float]:
    import torch

    from data.lexicon import Lexicon
    from data.loaders import CaptionDataset, make_loader
    from data.readers import read_samples
    from data.text import Template, load_tokenizer
    from data.vad_align import VadAligner
    from model.build import build_captioner
    from model.losses import loss_counts, loss_sums
    from tests.tiny import model_config, write_tokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    template = Template(load_tokenizer(str(write_tokenizer(root / "tokenizer"))), max_length=60)
    captioner = build_captioner(model_config(), vocab_size=len(template.tokenizer), eos_id=template.eos_id)
    optimizer = torch.optim.AdamW(p for p in captioner.parameters() if p.requires_grad)
    before = memory("self")
    started = time.perf_counter()
    files = {"json_path": str(root / "annotations.json"), "visual_dir": str(root / "images")}
    found = read_samples({"name": "artemis", "strict": True, "train_ds": files}, "train_ds")
    read = time.perf_counter() - started
    held, peak = memory("self") - before, peak_memory()
    dataset = CaptionDataset(
        found.samples,
        preprocess=captioner.vision.preprocess,
        template=template,
        aligner=VadAligner(Lexicon({"calm": (0.8, -0.9, 0.2)}), template.tokenizer),
        texts_per_image=2,
        seed=0,
        max_frames=1,
    )
    loader, _ = make_loader(dataset, batch_size=16, num_workers=2, shuffle=True)
    seconds, held_at, batches = [], [], iter(loader)
    for step in range(steps):
        begun = time.perf_counter()
        batch = next(batches, None)
        if batch is None:  # the next epoch
            batches = iter(loader)
            batch = next(batches)
        counts = loss_counts(batch)
        loss = sum(v / counts[n].clamp(min=1) for n, v in loss_sums(captioner(batch), batch).items())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
        if step in (steps // 4, steps - 1):
            held_at.append(memory("self", *(worker.pid for worker in batches._workers)))
    return {
        "annotations_MB": (root / "annotations.json").stat().st_size / 1e6,
        "start_s": read,
        "start_peak_MB": peak,
        "records_MB": held,
        "step_ms": 1e3 * statistics.median(seconds[steps // 4 :]),
        "all_processes_MB": held_at[-1],
        "growth_MB": held_at[-1] - held_at[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.steps)))
        return
    rows = []
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            write_records(Path(folder), count)
            command = [sys.executable, "-m", "benchmarks.scale", "--measure", folder, "--steps", str(arguments.steps)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"images": count, **json.loads(out.splitlines()[-1])})
        print(f"{count:,} images measured", file=sys.stderr)
    print(table(rows))
    if arguments.out:
        from trainer.checkpoint import provenance

        write_json(arguments.out, {"command": sys.argv, "rows": rows, **provenance()})


def table(rows: list[dict[str, float]]) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(head.replace("_", " ") for head in heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [f"{value:,}" if isinstance(value, int) else f"{value:.1f}" for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
