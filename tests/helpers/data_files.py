"""Small images, annotations and settings of one split, as the tests of damaged and malicious files need them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.prepare.check.dataset import SPLITS

MAX_PIXELS = 1_000_000


def encoded(seed: int, **options: object) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, **options)
    return buffer.getvalue()


def dataset(name: str, json_path: Path, visual_dir: Path) -> dict:
    """Return the section `dataset` with one split; its tokenizer is invalid."""
    settings = {split: {"json_path": None, "visual_dir": None} for split in SPLITS}
    settings |= {"name": name, "tokenizer": str(visual_dir), "max_length": 60, "emotions": "auto", "max_frames": 4}
    settings |= {"vad_lexicon": None, "vad_scale": "auto", "vad_columns": None, "sign_languages": ["en", "de"]}
    files = {"json_path": str(json_path), "visual_dir": str(visual_dir)}
    return settings | {"max_pixels": MAX_PIXELS, "train_ds": files}


def artemis() -> dict:
    entry = {"emotions": ["awe", "fear"], "explanations": ["a wide sky", "it looms"]}
    shares = [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    names = [f"{i:04}.png" for i in range(8)]
    return {
        str(9000 + i): entry | {"image_name": n, "origin_emotion_distribution": shares} for i, n in enumerate(names)
    }


def coco() -> dict:
    return {
        "images": [{"id": 9000 + i, "file_name": f"{i:04}.png"} for i in range(8)],
        "annotations": [{"id": i, "image_id": 9000 + i % 8, "caption": f"a boat {i}"} for i in range(24)],
    }
