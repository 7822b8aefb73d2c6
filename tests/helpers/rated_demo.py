"""Ratings of the demo's pictures: the mean VAD of what its annotators wrote, by its lexicon.

python -m tests.helpers.rated_demo datasets/demo     writes datasets/demo/ratings.csv, with the demo's split
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from data.readers.artemis import read_artemis
from data.split_names import TEST, TRAIN, VAL
from data.vad.lexicon_files import read_lexicon
from trainer.metrics.word_vad import NAMES, text_vad


def write_ratings(root: Path) -> Path:
    """Return the table, on a scale of −1 to 1; a text without a known word does not count."""
    lexicon, path = read_lexicon(root / "vad_lexicon_synthetic.csv"), root / "ratings.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *NAMES, "split"])
        for split in (TRAIN, VAL, TEST):
            for sample in read_artemis(root / f"artEmisX_{split}.json", root / "images"):
                texts = [text_vad(text, lexicon)[0] for text in sample.texts]
                vad = np.nanmean(texts, axis=0).round(4)
                name = sample.path.relative_to((root / "images").absolute()).as_posix()
                writer.writerow([name, *vad.tolist(), split])
    return path


if __name__ == "__main__":
    print(write_ratings(Path(sys.argv[1])))
