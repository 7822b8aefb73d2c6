"""Emotion folders for tests, with pictures in one color per emotion."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

MIKELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")


def write_emotions(
    root: Path, names: Sequence[str], counts: Mapping[str, int], *, order: Iterable[int] | None = None
) -> Path:
    """Write ROOT/SPLIT/NAME/p0.png … for every split and name, with the hue of a picture given by its emotion.

    Args:
        counts: pictures of each emotion, by split.
        order: order in which the folders are created, which does not change their content.
    """
    for split, count in counts.items():
        for k in order or range(len(names)):
            rng = random.Random(f"{split}/{k}")
            for i in range(count):
                color = (255 * k // len(names), 150 + rng.randint(0, 90), 120 + rng.randint(0, 120))
                write_picture(root / split / names[k] / f"p{i}.png", color)
    return root


def write_picture(path: Path, color: tuple[int, int, int] = (0, 200, 200)) -> Path:
    """Write a picture of one color (hue, saturation, value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("HSV", (40, 40), color).convert("RGB").save(path, "PNG")
    return path


def section(root: Path, *, labels: Sequence[str] | None = None, share: float = 0.1, **splits: str | None) -> dict:
    """Return the section `dataset` of a configuration; splits: folder names other than train, val and test."""
    names = {"train": "train", "validation": "val", "test": "test", **splits}
    dataset: dict = {"name": "emotion_folder", "labels": labels, "strict": False, "validation_share": share}
    for split, name in names.items():
        dataset[f"{split}_ds"] = {"visual_dir": None if name is None else str(root / name), "json_path": None}
    return dataset
