"""Data sets for `python -m data.prepare instructions`, and its conversations."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

TEXTS = [
    ("sadness", "The lonely boat drifts on the dark sea and the sky is heavy."),
    ("sadness", "I feel sad because the old woman has nobody to talk to."),
    ("awe", "I am in awe."),
]


def write_picture(path: Path, number: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (number * 20 % 256, 90, 200)).save(path, **options)
    return path


def write_data(root: Path, count: int = 5, *, texts: list[tuple[str, str]] = TEXTS, suffix: str = ".png") -> list[str]:
    """Write `count` pictures with the same annotations and return the keys; the dominant emotion comes first."""
    entries = {}
    for number in range(count):
        path = write_picture(root / "images" / "Style" / f"picture {number}{suffix}", number)
        entries[f"id{number}"] = {
            "image_name": f"Style/{path.name}",
            "emotions": [emotion for emotion, _ in texts],
            "explanations": [text for _, text in texts],
        }
    (root / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    return keys_of(root / "annotations.json", root / "images")


def keys_of(json_path: Path, images: Path, *, split: str = "train_ds", name: str = "artemis") -> list[str]:
    files = [f"dataset.{split}.json_path={json_path}", f"dataset.{split}.visual_dir={images}"]
    return ["preset=none", f"dataset.name={name}", *files]


def conversations(folder: Path, split: str = "train") -> list[dict]:
    text = (folder / f"instructions_{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def answer_of(talk: dict) -> str:
    (part,) = talk["messages"][-1]["content"]
    return part["text"]
