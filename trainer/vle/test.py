"""mode=test with a run of a VLE stage.

RUN/test/   predictions.jsonl, metrics.json, report.html; vle_vqa also answers.json, in the form of VQA's server
"""

from __future__ import annotations

import itertools
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
from common.files import to_json, write_json, write_text
from common.html.tables import screen_text
from common.progress import progress
from data.images import ImageError, open_image
from data.pairs import PairBatch
from data.readers.picture_rows import PictureRows
from data.schema import Skipped
from model.vle.processor import VLEProcessor
from trainer.metrics.vle import commonest_answers
from trainer.prediction.build import emotion_temperature
from trainer.prediction.command import folder_lock
from trainer.prediction.judge import Judge
from trainer.report.origin import origin_of, vle_facts
from trainer.report.page import sample_rows
from trainer.report.vle_page import write_vle_page
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.runs.console import print_status
from trainer.runs.state import seed_everything
from trainer.runtime.processes import first_batches
from trainer.runtime.skipped import reasons, write_skipped
from trainer.setup.demo_data import prepare_demo
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import output_folder
from trainer.vle.build import TASKS, load_vle
from trainer.vle.data import PairData, Split, paths_of, read_source
from trainer.vle.emotions import emotion_rows, write_emotion_test
from trainer.vle.evaluate import evaluate
from trainer.vle.scores import loss_table, match_section, region_section, tables, vcr_section, vqa_section
from trainer.vle.tasks import Result, VleTask
from trainer.vle.texts import Captions

SHOWN = 9  # pictures in the report
MOST_LINES = 8  # results of a picture there


def test_vle(config: DictConfig, checkpoint: Checkpoint) -> None:
    """Score dataset.test_ds; `config` is complete."""
    seed_everything(config.seed)
    accelerator = make_accelerator(config)
    with accelerator.main_process_first():
        prepare_demo(config)
    skipped: list[Skipped] = []
    split, partner = read_source(config, "test_ds", skipped), _partner(config)
    judge = _judge(config, accelerator)
    folder = output_folder(config, checkpoint) / "test"
    with folder_lock(folder, accelerator):
        task, data = _task(config, checkpoint, accelerator)
        results, losses = _evaluate(task, data, split, accelerator, skipped)
        others = None if partner is None else _other_results(config, partner, split, accelerator)
        if not accelerator.is_main_process:
            return
        if not results:
            raise UserError(
                f"{config.dataset.test_ds.json_path}: none of its pictures could be read, or none has a text"
            )
        if config.stage == "vle_emotion":
            temperature = emotion_temperature(config, checkpoint)
            results = [*emotion_rows(results, split.samples, task, temperature=temperature)]
        write_text(folder / "predictions.jsonl", (to_json(row) for row in results))
        write_skipped(skipped, folder)
        if config.stage == "vle_emotion":
            origin = origin_of(config, checkpoint)
            write_emotion_test(
                folder, config, checkpoint, results, skipped=skipped, origin=origin, facts=vle_facts(origin)
            )
        else:
            metrics = _metrics(config, task, split, results, others) | {"losses": losses}
            _write_test(folder, config, checkpoint, split, results, metrics, skipped, task.processor, judge)
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
            for batch in first_batches(loader, data.config.trainer.test.limit_batches, accelerator):
                yield batch
                bar.update(min(size, total - bar.n))

        strict = data.config.dataset.strict
        return evaluate(task, task.network, counted(), accelerator, skipped=skipped, strict=strict)


def _metrics(
    config: DictConfig, task: VleTask, split: Split, results: Sequence[Result], others: Sequence[Result] | None
) -> dict[str, Any]:
    """Return the sections of metrics.json."""
    pictures = {row.get("img_fn", row["image"]) for row in results}
    stage, found = config.stage, {"stage": config.stage, "images": len(pictures)}
    if stage == "vle_vqa":
        found["vqa"] = vqa_section(results, commonest_answers(_training_rows(config)))
    if stage in ("vle_itm", "vle_pretrain"):
        pairs = [row for row in results if row.get("match") is not None]
        found["match"] = match_section(pairs, _retrieval(config, task, split))
    if stage in ("vle_pbc", "vle_pretrain"):
        found["regions"] = region_section(results)
    if stage == "vle_vcr":
        found["vcr"] = vcr_section(results, config.vle.vcr, others)
    return found


def _training_rows(config: DictConfig) -> Iterable[Mapping[str, Any]]:
    """Return the rows that give the commonest answers; none, with a message, if they are not there."""
    try:
        return PictureRows(*paths_of(config, "train_ds"), strict=False)
    except UserError as error:
        print_status(f"baseline left out: {error}")
        return []


def _retrieval(config: DictConfig, task: VleTask, split: Split) -> np.ndarray | None:
    """Return the scores of one text of each of vle.retrieval_images pictures with all of these pictures."""
    captions, wanted = Captions(split.source), config.vle.retrieval_images
    order = [*range(len(captions))]
    random.Random(f"{config.seed}/retrieval").shuffle(order)
    chosen = [*itertools.islice(filter(captions, order), wanted)]
    pictures = [_opened(split.samples.path(row), config) for row in chosen]
    pairs = [(captions(row)[0][0], picture) for row, picture in zip(chosen, pictures, strict=True) if picture]
    if len(pairs) < 2:
        return None
    judge = Judge(task.network, task.processor, length=config.vle.text_length)
    return judge.matrix([text for text, _ in pairs], [picture for _, picture in pairs], show="retrieval")


def _partner(config: DictConfig) -> Checkpoint | None:
    """Return the network for the other of Q2A and QA2R, if there is one."""
    if config.vle.partner is None or config.stage != "vle_vcr":
        return None
    checkpoint = find_checkpoint(config.vle.partner, Path(config.trainer.exp_dir))
    other = checkpoint.config.vle.vcr if checkpoint.config.stage == "vle_vcr" else None
    if other in (None, config.vle.vcr):
        wanted = "qa2r" if config.vle.vcr == "q2a" else "q2a"
        raise UserError(f"vle.partner={config.vle.partner} is not a run of stage=vle_vcr vle.vcr={wanted}")
    return checkpoint


def _judge(config: DictConfig, accelerator: Accelerator) -> Judge | None:
    """Return the network whose regions are shown beside the answers, if there is one."""
    if config.vle.partner is None or config.stage != "vle_vqa":
        return None
    judge = Judge.load(config.vle.partner, Path(config.trainer.exp_dir), accelerator.device, key="vle.partner")
    if not judge.points:
        raise UserError(
            f"vle.partner={config.vle.partner} has no head for regions: name a run of vle_pretrain or vle_pbc"
        )
    return judge


def _other_results(config: DictConfig, checkpoint: Checkpoint, split: Split, accelerator: Accelerator) -> list[Result]:
    config = config.copy()
    config.vle.vcr = checkpoint.config.vle.vcr
    task, data = _task(config, checkpoint, accelerator)
    return _evaluate(task, data, split, accelerator, [])[0]


def _write_test(
    folder: Path,
    config: DictConfig,
    checkpoint: Checkpoint,
    split: Split,
    results: Sequence[Result],
    metrics: dict[str, Any],
    skipped: Sequence[Skipped],
    processor: VLEProcessor,
    judge: Judge | None,
) -> None:
    """Write metrics.json, report.html and answers.json, and print the metrics."""
    origin = origin_of(config, checkpoint)
    write_json(folder / "metrics.json", {**metrics, **origin})
    if config.stage == "vle_vqa":
        answers = [{"question_id": row["id"], "answer": row["answer"]} for row in results]
        write_json(folder / "answers.json", answers)
    shown = tables(metrics) + [loss_table(metrics["losses"])] * bool(metrics["losses"])
    by_picture = defaultdict(list)
    for row in results:
        by_picture[str(row["image"])].append(row)
    numbers = {sample.id: number for number, sample in enumerate(split.samples) if sample.id in by_picture}
    chosen = [row["id"] for row in sample_rows([{"id": id} for id in numbers], SHOWN, seed=config.seed)]
    shown_results = {id: by_picture[id][:MOST_LINES] + _regions(judge, split, numbers[id], config) for id in chosen}
    write_vle_page(
        folder / "report.html",
        {split.samples.path(numbers[id]): rows for id, rows in shown_results.items()},
        title=f"Test of {checkpoint.run.name}",
        lead=f"{len(results)} results on {len(by_picture)} pictures, stage {config.stage}.",
        heading=f"{len(chosen)} random pictures",
        facts=vle_facts(origin),
        tables=shown,
        skipped=reasons(skipped),
        visible=processor.visible_part,
    )
    print(screen_text(shown))


def _regions(judge: Judge | None, split: Split, number: int, config: DictConfig) -> list[Result]:
    """Return the result of the partner of a vle_vqa run for one caption of a picture, for its page."""
    captions = [] if judge is None else Captions(split.source)(number)
    if not captions or (picture := _opened(split.samples.path(number), config)) is None:
        return []
    text = captions[0][0]
    found: Result = {"text": text, "scores": judge.regions([text], picture)[0][0].flatten().tolist()}
    return [found | ({"score": judge.scores([text], [picture]).sigmoid().item()} if judge.matches else {})]


def _opened(path: Path, config: DictConfig) -> Image.Image | None:
    try:
        return open_image(path, max_pixels=config.dataset.max_pixels)
    except ImageError:
        return None
