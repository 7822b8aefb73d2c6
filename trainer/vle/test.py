"""mode=test with a run of a VLE stage.

RUN/test/   predictions.jsonl, metrics.json, report.html; vle_vqa also answers.json, in the form of VQA's server
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from omegaconf import DictConfig
from PIL import Image

from common.errors import UserError
from common.files import write_json, write_text
from common.html.tables import Table, screen_text
from common.progress import progress
from common.reading import expand_user
from data.images import ImageError, open_image
from data.pairs import PairBatch
from data.readers.picture_rows import PictureRows
from data.schema import Skipped
from model.vle.processor import VLEProcessor
from trainer.metrics.vle import commonest_answers
from trainer.prediction.command import folder_lock
from trainer.prediction.judge import Judge, matcher_of
from trainer.report.page import sample_rows
from trainer.report.vle_page import write_vle_page
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.runs.console import print_status
from trainer.runs.provenance import provenance
from trainer.runs.state import seed_everything
from trainer.runtime.skipped import unique, write_skipped
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.vle.build import load_vle
from trainer.vle.data import PairData, Split, read_source
from trainer.vle.evaluate import evaluate
from trainer.vle.scores import loss_table, match_section, region_section, tables, vcr_section, vqa_section
from trainer.vle.tasks import TASKS, Result, VleTask
from trainer.vle.texts import Captions

SHOWN = 9  # pictures in the report
MOST_LINES = 8  # results of a picture there


def test_vle(config: DictConfig, checkpoint: Checkpoint) -> None:
    """Score dataset.test_ds; `config` is complete."""
    seed_everything(config.seed)
    accelerator = make_accelerator(config)
    skipped: list[Skipped] = []
    split = read_source(config, "test_ds", skipped)
    folder = output_folder(config, checkpoint) / "test"
    with folder_lock(folder, accelerator):
        task, data = _task(config, checkpoint, accelerator)
        results, losses = _evaluate(task, data, split, accelerator, skipped)
        if not accelerator.is_main_process:
            return
        if not results:
            raise UserError(
                f"{config.dataset.test_ds.json_path}: none of its pictures could be read, or none has a text"
            )
        write_text(folder / "predictions.jsonl", (json.dumps(row, ensure_ascii=False) + "\n" for row in results))
        write_skipped(skipped, folder)
        metrics = _metrics(config, task, split, results, accelerator) | {"losses": losses}
        write_json(folder / "metrics.json", {**metrics, **origin_of(config, checkpoint)})
        if config.stage == "vle_vqa":
            answers = [{"question_id": row["id"], "answer": row["answer"]} for row in results]
            write_json(folder / "answers.json", answers)
        shown = [*tables(metrics), loss_table(losses)] if losses else tables(metrics)
        _write_report(folder / "report.html", config, checkpoint, split, results, shown, skipped, task.processor)
        print(screen_text(shown))
        print_status(f"predictions, metrics and report: {folder}")


def _task(config: DictConfig, checkpoint: Checkpoint, accelerator: Accelerator) -> tuple[VleTask, PairData]:
    network, processor = load_vle(checkpoint)
    task, vision = TASKS[config.stage](network.to(accelerator.device), processor), network.config.vision_config
    grid = vision.image_size // vision.patch_size
    labels = [*network.config.id2label.values()]
    return task, PairData(config, processor, grid, labels, network.config.object_names)


def _evaluate(
    task: VleTask, data: PairData, split: Split, accelerator: Accelerator, skipped: list[Skipped]
) -> tuple[list[Result], dict[str, float]]:
    loader, _ = data.loader(split, processes=accelerator.num_processes)
    size, total = loader.batch_size * accelerator.num_processes, len(split.samples)
    loader = accelerator.prepare(loader)
    with progress(total, "test", unit="image", enabled=accelerator.is_main_process) as bar:

        def counted() -> Iterator[PairBatch]:
            for batch in loader:
                yield batch
                bar.update(min(size, total - bar.n))

        strict = data.config.dataset.strict
        return evaluate(task, task.network, counted(), accelerator, skipped=skipped, strict=strict)


def _metrics(
    config: DictConfig, task: VleTask, split: Split, results: Sequence[Result], accelerator: Accelerator
) -> dict[str, Any]:
    """Return the sections of metrics.json."""
    stage, found = config.stage, {"stage": config.stage, "images": len({row["image"] for row in results})}
    if stage == "vle_vqa":
        found["vqa"] = vqa_section(results, commonest_answers(_training_rows(config)))
    if stage in ("vle_itm", "vle_pretrain"):
        pairs = [row for row in results if row.get("match") is not None]
        found["match"] = match_section(pairs, _retrieval(config, task, split))
    if stage in ("vle_pbc", "vle_pretrain"):
        found["regions"] = region_section(results)
    if stage == "vle_vcr":
        found["vcr"] = vcr_section(results, config.vle.vcr, _partner(config, split, accelerator))
    return found


def _training_rows(config: DictConfig) -> Iterable[Mapping[str, Any]]:
    """Return the rows that give the commonest answers; none, with a message, if they are not there."""
    files = config.dataset.train_ds
    try:
        return PictureRows(expand_user(files.json_path), expand_user(files.visual_dir), strict=False)
    except UserError as error:
        print_status(f"baseline left out: {error}")
        return []


def _retrieval(config: DictConfig, task: VleTask, split: Split) -> np.ndarray | None:
    """Return the scores of one text of each of vle.retrieval_images pictures with all of these pictures."""
    captions, wanted = Captions(split.source), config.vle.retrieval_images
    order = [*range(len(captions))]
    random.Random(f"{config.seed}/retrieval").shuffle(order)
    chosen = [row for row in order if captions(row)][:wanted]
    pictures = [_opened(split.samples.path(row), config) for row in chosen]
    pairs = [(captions(row)[0][0], picture) for row, picture in zip(chosen, pictures, strict=True) if picture]
    if len(pairs) < 2:
        return None
    judge = Judge(matcher_of(task.network), task.processor, length=config.vle.text_length)
    return judge.matrix([text for text, _ in pairs], [picture for _, picture in pairs], show="retrieval")


def _partner(config: DictConfig, split: Split, accelerator: Accelerator) -> list[Result] | None:
    """Return the results of the network for the other of Q2A and QA2R."""
    if config.vle.partner is None:
        return None
    checkpoint = find_checkpoint(config.vle.partner, Path(config.trainer.exp_dir))
    other = checkpoint.config.vle.vcr if checkpoint.config.stage == "vle_vcr" else None
    if other in (None, config.vle.vcr):
        wanted = "qa2r" if config.vle.vcr == "q2a" else "q2a"
        raise UserError(f"vle.partner={config.vle.partner} is not a run of stage=vle_vcr vle.vcr={wanted}")
    config = config.copy()
    config.vle.vcr = other
    task, data = _task(config, checkpoint, accelerator)
    return _evaluate(task, data, split, accelerator, [])[0]


def _write_report(
    path: Path,
    config: DictConfig,
    checkpoint: Checkpoint,
    split: Split,
    results: Sequence[Result],
    shown: Sequence[Table],
    skipped: Sequence[Skipped],
    processor: VLEProcessor,
) -> None:
    by_picture = defaultdict(list)
    for row in results:
        by_picture[str(row["image"])].append(row)
    samples = {sample.id: sample.path for sample in split.samples if sample.id in by_picture}
    chosen = sample_rows([{"id": id} for id in samples], SHOWN, seed=config.seed)
    write_vle_page(
        path,
        {samples[row["id"]]: by_picture[row["id"]][:MOST_LINES] for row in chosen},
        title=f"Test of {checkpoint.run.name}",
        lead=f"{len(results)} results on {len(by_picture)} pictures, stage {config.stage}.",
        heading=f"{len(chosen)} random pictures",
        facts=facts_of(config, checkpoint),
        tables=shown,
        skipped=[(str(image.path), image.reason) for image in unique([*skipped])],
        visible=processor.visible_part,
    )


def facts_of(config: DictConfig, checkpoint: Checkpoint) -> dict[str, str]:
    origin = origin_of(config, checkpoint)
    return {
        "checkpoint": origin["checkpoint"],
        "trained for": f"{origin['step']} steps",
        "seed": str(config.seed),
        "versions": ", ".join(f"{name} {number}" for name, number in origin["versions"].items()),
        "machine": origin["device"],
        "commit": str(origin["git"] or "unknown"),
    }


def origin_of(config: DictConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.info["state"]["step"],
        "seed": config.seed,
        **provenance(),
    }


def _opened(path: Path, config: DictConfig) -> Image.Image | None:
    try:
        return open_image(path, max_pixels=config.dataset.max_pixels)
    except ImageError:
        return None
