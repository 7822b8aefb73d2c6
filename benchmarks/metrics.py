"""Seconds, processor seconds and peak memory of what a test measures, on generated captions.

    python -m benchmarks.metrics [--images 8000] [--references 5] [--only NAME …] [--out benchmarks/metrics.json]

Captions have ArtEmis' lengths (10 words, references 15) and as many different words (14,469), as frequent as they are
in English; those of one image share a subject. Every line is measured in a process of its own. Memory is the
proportional set size of that process and of all that it started, Java's too: what they share is counted once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from benchmarks.measures import MEASURES as OTHERS
from benchmarks.measures import random_emotions
from files import write_json, write_text

WORDS, SUBJECT_WORDS, SUBJECT_SHARE = 14_469, 12, 0.4
CAPTION_WORDS, REFERENCE_WORDS, SPREAD, FEWEST, MOST = 10, 15, 5, 5, 30
SAMPLE_SECONDS = 0.05


class Texts(NamedTuple):
    """Generated captions and references by image id."""

    predictions: dict[str, str]
    references: dict[str, list[str]]


def generate(images: int, references: int, *, seed: int = 0) -> Texts:
    rng = random.Random(seed)
    lines = (files("symspellpy") / "frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig").splitlines()
    words, counts = zip(*(line.split() for line in lines[:WORDS]), strict=True)
    cumulative = list(itertools.accumulate(map(int, counts)))

    def write(subject: list[str], mean: int) -> str:
        length = min(max(round(rng.gauss(mean, SPREAD)), FEWEST), MOST)
        drawn = rng.choices(words, cum_weights=cumulative, k=length)
        return " ".join(rng.choice(subject) if rng.random() < SUBJECT_SHARE else word for word in drawn)

    texts = Texts({}, {})
    for image in map(str, range(images)):
        subject = rng.sample(words, SUBJECT_WORDS)
        texts.predictions[image] = write(subject, CAPTION_WORDS)
        texts.references[image] = [write(subject, REFERENCE_WORDS) for _ in range(references)]
    return texts


def captions(*metrics: str, tokenizer: str = "ptb") -> Callable[[Texts], object]:
    def work(texts: Texts) -> object:
        from trainer.metrics.captions import caption_scores

        result = caption_scores(texts.predictions, texts.references, metrics=metrics, tokenizer=tokenizer)
        if result.notes:
            raise SystemExit(f"error: {result.notes[0]}")
        return result.scores

    return work


CAPTIONS: list[tuple[str, Callable[[Texts], object]]] = [
    ("all by default, PTB", captions("bleu", "meteor", "rouge_l", "cider")),
    ("tokenizer PTB alone", captions()),
    ("BLEU, white space", captions("bleu", tokenizer="whitespace")),
    ("ROUGE-L, white space", captions("rouge_l", tokenizer="whitespace")),
    ("CIDEr, white space", captions("cider", tokenizer="whitespace")),
    ("METEOR, white space", captions("meteor", tokenizer="whitespace")),
]


def whole(texts: Texts) -> object:
    """What a test measures by default, with the other images' references for training texts, and its intervals."""
    from data.emotions import EMOTIONS
    from trainer.score.measure import measure as measure_all
    from trainer.score.parts import Settings

    columns = zip(texts.predictions.items(), *random_emotions(len(texts.predictions)), strict=True)
    rows = [
        {
            "id": image,
            "explanation": caption,
            "emotion": EMOTIONS[guess],
            "emotion_distribution": distribution,
            "references": texts.references[image],
            "histogram": votes,
        }
        for (image, caption), guess, distribution, votes in columns
    ]
    training = itertools.chain.from_iterable(texts.references.values())
    found = measure_all(rows, Settings(training_texts=list(training))).metrics
    if found["notes"]:
        raise SystemExit(f"error: {found['notes'][0]}")
    return found


MEASURES = dict([*CAPTIONS, *OTHERS, ("a whole test, with intervals", whole)])


def measure(name: str, images: int, references: int) -> dict[str, object]:
    """One line, in a process of its own, watched from here."""
    command = [sys.executable, "-m", "benchmarks.metrics", "--measure", name]
    command += ["--images", str(images), "--references", str(references)]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(SAMPLE_SECONDS)
        out = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"error: {name!r} failed; see {' '.join(command)}")
    return {"metric": name, **json.loads(out.splitlines()[-1]), "peak_MB": peak}


def tree_memory(root: int) -> float:
    """Proportional set size of a process and its descendants, MB."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone meanwhile
            continue
    tree = {root}
    while found := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= found
    return sum(map(_memory, tree))


def _memory(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--references", type=int, default=5, help="of each image (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        texts = generate(arguments.images, arguments.references)
        before, start = os.times(), time.perf_counter()
        MEASURES[arguments.measure](texts)
        seconds, after = time.perf_counter() - start, os.times()
        print(json.dumps({"seconds": seconds, "cpu_seconds": sum(after[:4]) - sum(before[:4])}))
        return
    rows = []
    for name in arguments.only or MEASURES:
        rows.append(measure(name, arguments.images, arguments.references))
        print(f"{name}: {rows[-1]['seconds']:.1f} s", file=sys.stderr)
    print(table(rows))
    if arguments.out:
        from trainer.checkpoint import provenance

        write_json(arguments.out, {"command": sys.argv, "rows": rows, **provenance()})
        write_text(arguments.out.with_suffix(".md"), table(rows) + "\n")


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| metric | seconds | processor s | peak MB |", "|---|---|---|---|"]
    lines += ["| {metric} | {seconds:.1f} | {cpu_seconds:.1f} | {peak_MB:.0f} |".format(**row) for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
