"""Tiny data for the stages of VLE (picture rows, VCR), and the keys of a training of a few steps on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.helpers.tiny import run_mode
from tests.helpers.vle import WORDS, write_processor

COLORS = ("red", "blue", "green", "yellow")
BOX = (0.25, 0.25, 0.75, 0.75)  # of the subject
SUBJECTS = ("boat", "house", "tree")
NETWORK = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "text_config": {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "position_buckets": 8,
        "max_position_embeddings": 32,
    },
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 32,
        "patch_size": 8,
    },
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WITHOUT_DROPOUT = {"vle.config": {**NETWORK, **NO_DROPOUT, "text_config": {**NETWORK["text_config"], **NO_DROPOUT}}}


def write_picture(path: Path, color: str, *, size: tuple[int, int] = (60, 40), box: tuple[float, ...] = BOX) -> None:
    """Write a black picture with a rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size)
    edges = [share * side for share, side in zip(box, size * 2, strict=True)]
    ImageDraw.Draw(picture).rectangle(edges, fill=color)
    picture.save(path)


def picture_row(number: int) -> dict[str, Any]:
    """Return a row: two questions, three texts (two with boxes, one of them an empty list), two objects."""
    color, subject = COLORS[number % 4], SUBJECTS[number % 3]
    return {
        "id": f"p{number}",
        "image": f"p{number}.png",
        "questions": [
            {"id": 10 * number, "question": "what color is it", "type": "color", "answers": {color: 1.0}},
            {"id": 10 * number + 1, "question": "is there a boat", "type": "", "answers": {"yes": 0.3, "no": 1.0}},
        ],
        "texts": [
            {"text": f"a {color} {subject} under the sky", "boxes": [[*BOX]]},
            {"text": f"the {subject} is lost and it is {color}"},
            {"text": f"a {subject} in a storm", "boxes": []},
        ],
        "objects": [{"name": subject, "box": [*BOX]}, {"name": "sky", "box": [0.0, 0.0, 1.0, 0.2]}],
    }


def write_rows(root: Path, split: str, count: int) -> Path:
    """Write root/split.jsonl, its pictures in root/images, and answers.json; return the file."""
    rows = [picture_row(number) for number in range(count)]
    for row, color in zip(rows, COLORS * count, strict=False):
        write_picture(root / "images" / row["image"], color)
    path = root / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "answers.json").write_text(json.dumps([*COLORS, "yes", "no"]))
    return path


def vcr_row(number: int) -> dict[str, Any]:
    """Return a question about a picture with two persons and a dog; two questions share a picture."""
    return {
        "annot_id": f"val-{number}",
        "img_fn": f"v{number // 2}.png",
        "metadata_fn": f"v{number // 2}.json",
        "objects": ["person", "dog", "person"],
        "question": ["why", "is", [0, 2], "in", "the", "sea"],
        "answer_choices": [[[0], "is", "calm"], ["the", [1], "is", "lost"], ["no"], [[2], "see", "a", "storm"]],
        "rationale_choices": [["yes"], [[1], "is", "small"], ["a", "storm"], [[0], "feel", "fear"]],
        "answer_label": number % 4,
        "rationale_label": (number + 1) % 4,
    }


def write_vcr(root: Path, split: str, count: int) -> Path:
    """Write root/vcr_split.jsonl, and its pictures with their boxes in root/images; return the file."""
    for number in range((count + 1) // 2):
        write_picture(root / "images" / f"v{number}.png", COLORS[number % 4])
        boxes = [[15, 0, 30, 20, 0.9], [0, 0, 5, 5, 0.9], [30, 20, 45, 40, 0.9]]
        about = {"boxes": boxes, "width": 60, "height": 40}
        (root / "images" / f"v{number}.json").write_text(json.dumps(about))
    path = root / f"vcr_{split}.jsonl"
    path.write_text("".join(json.dumps(vcr_row(number)) + "\n" for number in range(count)))
    return path


def vle_keys(root: Path, stage: str, *, train: int = 12, others: int = 6) -> dict[str, object]:
    """Write data for the stage; return the keys of a training of 3 steps an epoch, with runs in root/runs."""
    write = write_vcr if stage == "vle_vcr" else write_rows
    keys: dict[str, object] = {"preset": "none", "stage": stage, "dataset.name": "artemis"}
    for split, count in {"train": train, "validation": others, "test": others}.items():
        files = {"json_path": write(root, split, count), "visual_dir": root / "images"}
        files |= {"batch_size": 4, "num_workers": 0}
        keys |= {f"dataset.{split}_ds.{key}": value for key, value in files.items()}
    return keys | network_keys(root)


def network_keys(root: Path) -> dict[str, object]:
    """Write a processor; return the keys of a tiny network of its own."""
    keys: dict[str, object] = {"vle.tokenizer": write_processor(root / "processor", 32, [*WORDS, *COLORS])}
    keys |= {"vle.config": NETWORK, "vle.text_length": 16, "vle.retrieval_images": 4}
    keys |= {"model.optimizer.lr": 1e-3, "vle.head_lr": 3.0, "vle.fusion_lr": 2.0}
    return keys | {"trainer.exp_dir": root / "runs", "trainer.device": "cpu", "trainer.epochs": 1}


def train_run(keys: dict[str, object], name: str, **changes: object) -> Path:
    """Train with these keys (__ for dots in `changes`); return the folder of the run."""
    own = {key.replace("__", "."): value for key, value in changes.items()}
    run_mode("train", {**keys, "name": name, **own})
    return Path(str(keys["trainer.exp_dir"])) / name
