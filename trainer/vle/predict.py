"""mode=predict with a run of a VLE stage: RUN/predict/predictions.json and report.html."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from common.errors import UserError, shorten
from common.progress import progress
from data.image_files import LINK, id_of
from data.images import ImageError, open_image
from data.schema import Skipped
from model.vle.heads import EMOTION_QUESTION, VLEForEmotion, VLEForITM, VLEForPBC, VLEForVQA, VLEHead
from model.vle.pipelines import VLEForITMPipeline, VLEForPBCPipeline, VLEForVQAPipeline
from model.vle.processor import VLEProcessor
from trainer.prediction.build import emotion_temperature
from trainer.prediction.command import folder_lock
from trainer.prediction.writer import write_json_lines_as_list
from trainer.report.origin import origin_of, vle_facts
from trainer.report.vle_page import write_vle_page
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status
from trainer.runtime.skipped import reasons, write_skipped
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.vle.llm import add_answers, check_settings, read_captions

MOST_PICTURES = 500  # in the page of predict
TOP = 5  # answers of predict
NEEDED = {  # key that predict needs, with an example, by stage
    "vle_vqa": ("question", "What is in the picture?"),
    "vle_itm": ("text", "a boat under an enormous sky"),
    "vle_pbc": ("text", "a boat"),
    "vle_pretrain": ("text", "a boat under an enormous sky"),
    "vle_emotion": ("text", None),
}


def predict_vle(config: DictConfig, checkpoint: Checkpoint, pictures: Sequence[Path], links: Sequence[Path]) -> None:
    """Answer config.question about the pictures, or compare them with config.text.

    Raises:
        UserError: a key is missing, no picture can be read, or, after everything is written, the fault of the language
            model.
    """
    if config.group_by is not None:
        raise UserError(
            f"group_by={config.group_by}: {checkpoint.folder} is VLE, which has no emotions to group; leave it out"
        )
    processor = VLEProcessor.from_pretrained(checkpoint.folder)
    require_text(config, checkpoint, processor)
    skipped = [Skipped(id_of(path), path, LINK) for path in links]
    accelerator = make_accelerator(config)
    folder, fault = output_folder(config, checkpoint) / "predict", None
    if llm := config.vle.llm.style:
        check_settings(config, len(pictures))
    with folder_lock(folder, accelerator):
        captions = read_captions(config, pictures, accelerator) if llm else {}
        if not accelerator.is_main_process:
            return
        answer = answerer(config, checkpoint, processor, accelerator.device)
        results = [*_answer_all(pictures, answer, config, skipped)]
        write_skipped(skipped, folder)
        if not results:
            raise UserError(f"image={config.image}: none of its {len(pictures)} pictures could be read")
        if llm:
            fault = add_answers(results, captions, config, accelerator.device)
        _write(config, checkpoint, processor, folder, results, skipped)
    if fault:
        raise UserError(f"{fault}; the answers of VLE, and of the language model so far, are in {folder}") from fault


def _write(
    config: DictConfig,
    checkpoint: Checkpoint,
    processor: VLEProcessor,
    folder: Path,
    results: Sequence[Mapping[str, Any]],
    skipped: Sequence[Skipped],
) -> None:
    asked = config[NEEDED[config.stage][0]]
    write_json_lines_as_list(folder / "predictions.json", results)
    write_vle_page(
        folder / "report.html",
        {Path(row["image"]): [*_shown(row)] for row in results[:MOST_PICTURES]},
        title=Path(config.image).name or str(config.image),
        lead=f"{len(results)} pictures" + (f": {asked}" if asked else "."),
        facts=vle_facts(origin_of(config, checkpoint)),
        skipped=reasons(skipped),
        visible=processor.visible_part,
    )
    print("\n".join(_lines(results)))
    print_status(f"predictions and page: {folder}")


def _shown(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a picture's card."""
    yield {"text": _emotion(row)} if "emotion" in row else row
    if row.get("llm_answer"):
        yield {"text": row["llm_answer"]}


def require_text(config: DictConfig, checkpoint: Checkpoint, processor: VLEProcessor) -> None:
    """Raise UserError if the stage cannot predict, or its question or text is missing or too long."""
    stage, folder = config.stage, checkpoint.folder
    if stage == "vle_vcr":
        raise UserError(f"{folder} is of stage=vle_vcr, whose questions have four choices: use mode=test")
    key, example = NEEDED[stage]
    if config[key] is None and example is not None:
        raise UserError(f'{folder} is of stage={stage}: add {key}="{example}"')
    count = len(processor.tokenizer(config[key] or "")["input_ids"])
    if count > config.vle.text_length:
        raise UserError(
            f"{key}={shorten(config[key])} has {count} tokens, and vle.text_length={config.vle.text_length}: shorten "
            f"it, or set vle.text_length={count}"
        )


def answerer(
    config: DictConfig, checkpoint: Checkpoint, processor: VLEProcessor, device: torch.device
) -> Callable[[Sequence[Image.Image]], list[dict[str, Any]]]:
    """Return the function from pictures to their results; it reads config.question or config.text when it is called."""
    stage = config.stage
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
        network, temperature = load(VLEForEmotion).to(device), emotion_temperature(config, checkpoint)
        return lambda pictures: emotions(network, processor, pictures, text=config.text, temperature=temperature)
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
    network: VLEForEmotion,
    processor: VLEProcessor,
    pictures: Sequence[Image.Image],
    *,
    text: str | None,
    temperature: float,
) -> list[dict[str, Any]]:
    """Return emotion and calibrated distribution of each picture, with a text beside it or the fixed question."""
    inputs = processor([text or EMOTION_QUESTION] * len(pictures), [*pictures], return_tensors="pt", padding=True)
    with torch.inference_mode():
        logits = network(**inputs.to(network.device)).logits.float()
    probs, names = (logits / temperature).softmax(dim=-1).tolist(), network.config.id2label
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
                    skipped.append(Skipped(id_of(path), path, str(error)))
            if opened:
                for path, row in zip(opened, answer([*opened.values()]), strict=True):
                    yield {"image": str(path), **row}
            bar.update(min(size, len(paths) - start))


def _lines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return a line for each picture, for the terminal."""
    for row in results:
        if "answer" in row:
            said = ", ".join(f"{some['answer']} {some['score']:.0%}" for some in row["candidates"])
            said += f" → {row['llm_answer']}" if row.get("llm_answer") else ""
        elif "emotion" in row:
            said = _emotion(row)
        else:
            said = f"match {row['score']:.0%}" if "score" in row else f"highest patch {max(row['scores']):.0%}"
        yield f"{Path(row['image']).name}: {said}"


def _emotion(row: Mapping[str, Any]) -> str:
    return f"{row['emotion']} {max(row['emotion_distribution']):.0%}"
