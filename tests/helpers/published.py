"""Published captions, references and scores, from the optional folder of real data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

import pytest

SETS = ("coco_fakecap1000", "nlg_eval", "aac_readme", "aac_example_1")
NAMES = {"Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L"}


class Published(NamedTuple):
    predictions: dict[str, str]
    references: dict[str, list[str]]
    tokenizer: str
    corpus: dict[str, float]  # by metric, in this project's names
    per_image: dict[str, list[float]]  # in the order of the predictions


def load(shared_data: Path, name: str) -> Published:
    folder = shared_data / "caption_metrics"
    path = folder / "reference_scores" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    scores = json.loads(path.read_text(encoding="utf-8"))
    if name == "coco_fakecap1000":
        entries = json.loads((folder / "coco_fakecap" / "fakecap1000_with_refs.json").read_text(encoding="utf-8"))
        texts = {str(entry["image_id"]): (entry["test"], entry["refs"]) for entry in entries}
    elif name == "aac_example_1":
        with (folder / "aac_metrics" / "example_1.csv").open(encoding="utf-8", newline="") as file:
            texts = {
                str(i): (row.pop("caption_predicted"), [*row.values()]) for i, row in enumerate(csv.DictReader(file))
            }
    else:
        texts = {id: (texts[0], scores["raw_refs"][id]) for id, texts in scores["raw_hyps"].items()}
    ids = scores["per_image"].pop("ids")
    return Published(
        {id: texts[id][0] for id in ids},
        {id: texts[id][1] for id in ids},
        "ptb" if scores["ptb_tokenized"] else "whitespace",
        {NAMES.get(key, key): value for key, value in scores["corpus"].items()},
        {NAMES.get(key, key): values for key, values in scores["per_image"].items()},
    )
