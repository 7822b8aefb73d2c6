"""mode=predict with a run of a VLE stage: RUN/predict/predictions.json and report.html."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from common.errors import UserError
from common.progress import progress
from common.reading import expand_user
from data.images import ImageError, find_images, open_image
from data.schema import Skipped
from model.vle.heads import VLEForEmotion, VLEForITM, VLEForPBC, VLEForVQA, VLEHead
from model.vle.pipelines import VLEForITMPipeline, VLEForPBCPipeline, VLEForVQAPipeline
from model.vle.processor import VLEProcessor
from trainer.prediction.command import folder_lock
from trainer.prediction.writer import write_json_lines_as_list
from trainer.report.vle_page import write_vle_page
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status
from trainer.runtime.skipped import unique, write_skipped
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.vle.test import facts_of
from trainer.vle.texts import EMOTION_QUESTION

MOST_PICTURES = 500  # in the page of predict
TOP = 5  # answers of predict
NEEDED = {  # key that predict needs, with an example, by stage
    "vle_vqa": ("question", "What is in the picture?"),
    "vle_itm": ("text", "a boat under an enormous sky"),
    "vle_pbc": ("text", "a boat"),
    "vle_pretrain": ("text", "a boat under an enormous sky"),
    "vle_emotion": ("text", None),
}


def predict_vle(config: DictConfig, checkpoint: Checkpoint) -> None:
    """Answer config.question about the pictures, or compare them with config.text."""
    stage = config.stage
    if stage == "vle_vcr":
        raise UserError(f"{checkpoint.folder} is of stage=vle_vcr, whose questions have four choices: use mode=test")
    key, example = NEEDED[stage]
    if config[key] is None and example is not None:
        raise UserError(f'{checkpoint.folder} is of stage={stage}: add {key}="{example}"')
    outside: list[Path] = []
    pictures = find_images(expand_user(config.image), outside=outside)
    skipped = [Skipped(str(path), path, "it is a symbolic link out of the folder") for path in outside]
    accelerator = make_accelerator(config)
    folder = output_folder(config, checkpoint) / "predict"
    with folder_lock(folder, accelerator):
        answer = _answerer(config, checkpoint, accelerator.device)
        results = [*_answer_all(pictures, answer, config, skipped)]
        write_skipped(skipped, folder)
        if not results:
            raise UserError(f"image={config.image}: none of its {len(pictures)} pictures could be read")
        write_json_lines_as_list(folder / "predictions.json", results)
        write_vle_page(
            folder / "report.html",
            {Path(row["image"]): [row] for row in results[:MOST_PICTURES]},
            title=Path(config.image).name or str(config.image),
            lead=f"{len(results)} pictures" + (f": {config[key]}" if config[key] else "."),
            facts=facts_of(config, checkpoint),
            skipped=[(str(image.path), image.reason) for image in unique(skipped)],
            visible=VLEProcessor.from_pretrained(checkpoint.folder).visible_part,
        )
        print("\n".join(_lines(results)))
        print_status(f"predictions and page: {folder}")


def _answerer(
    config: DictConfig, checkpoint: Checkpoint, device: torch.device
) -> Callable[[Sequence[Image.Image]], list[dict[str, Any]]]:
    """Return the function from pictures to their results."""
    stage, processor = config.stage, VLEProcessor.from_pretrained(checkpoint.folder)
    shared = {"device": device, "vle_processor": processor, "batch_size": config.dataset.test_ds.batch_size}
    length = {"max_length": config.vle.text_length}

    def load(kind: type[VLEHead]) -> VLEHead:
        return kind.from_pretrained(checkpoint.folder).requires_grad_(False)

    if stage == "vle_vqa":
        answer = VLEForVQAPipeline(load(VLEForVQA), **shared, **length)

        def answers(pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
            found = answer([{"image": picture, "question": config.question} for picture in pictures], top_k=TOP)
            return [{"question": config.question, **some[0], "candidates": some} for some in found]

        return answers
    if stage == "vle_emotion":
        return lambda pictures: emotions(load(VLEForEmotion), processor, pictures, config.text, device)
    match = VLEForITMPipeline(load(VLEForITM), **shared, **length) if stage != "vle_pbc" else None
    regions = VLEForPBCPipeline(load(VLEForPBC), **shared, **length) if stage != "vle_itm" else None

    def compare(pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        pairs = [{"image": picture, "text": config.text} for picture in pictures]
        rows: list[dict[str, Any]] = [{"text": config.text} for _ in pairs]
        for row, found in zip(rows, match(pairs) if match else (), strict=match is not None):
            row["score"] = found["score"][1]
        for row, found in zip(rows, regions(pairs) if regions else (), strict=regions is not None):
            row["scores"] = [round(yes, 4) for _, yes in found["score"]]
        return rows

    return compare


def emotions(
    network: VLEForEmotion, processor: VLEProcessor, pictures: Sequence[Image.Image], text: str | None, device: Any
) -> list[dict[str, Any]]:
    """Return emotion and distribution of each picture, with a text beside it or the fixed question."""
    inputs = processor([text or EMOTION_QUESTION] * len(pictures), [*pictures], return_tensors="pt", padding=True)
    with torch.inference_mode():
        probs = network.to(device)(**inputs.to(device)).logits.float().softmax(dim=-1).tolist()
    names = network.config.id2label
    return [{"emotion": names[int(np.argmax(p))], "emotion_distribution": p} for p in probs]


def _answer_all(
    paths: Sequence[Path], answer: Callable, config: DictConfig, skipped: list[Skipped]
) -> Iterator[dict[str, Any]]:
    size = config.dataset.test_ds.batch_size
    with progress(len(paths), "predict", unit="image") as bar:
        for start in range(0, len(paths), size):
            opened = {}
            for path in paths[start : start + size]:
                try:
                    opened[path] = open_image(path, max_pixels=config.dataset.max_pixels)
                except ImageError as error:
                    skipped.append(Skipped(str(path), path, str(error)))
            if opened:
                for path, row in zip(opened, answer([*opened.values()]), strict=True):
                    yield {"image": str(path), **row}
            bar.update(min(size, len(paths) - start))


def _lines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return a line for each picture, for the terminal."""
    for row in results:
        if "answer" in row:
            said = ", ".join(f"{some['answer']} {some['score']:.0%}" for some in row["candidates"])
        elif "emotion" in row:
            said = f"{row['emotion']} {max(row['emotion_distribution']):.0%}"
        else:
            said = f"match {row['score']:.0%}" if "score" in row else f"highest patch {max(row['scores']):.0%}"
        yield f"{Path(row['image']).name}: {said}"
