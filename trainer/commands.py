"""The modes train, test and predict; `run.py` calls them with a checked configuration."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from common.config.rules import NOT_NEEDED, RATINGS, VLE_STAGES, VLM
from common.errors import UserError
from common.files import write_json
from common.html.tables import screen_text
from common.reading import expand_user
from data.emotions import emotion_index
from data.image_files import LINK, find_images, id_of, unread
from data.readers.groups import group_of_path, read_groups
from data.readers.shard_lists import Shards, find_shards
from data.readers.split import source_of
from data.samples import Samples
from data.schema import Sample, Skipped
from trainer.metrics.groups import by_group, group_table, write_groups
from trainer.prediction.build import decoding_settings
from trainer.prediction.command import folder_lock, predict_all, results
from trainer.prediction.expert import describe_expert
from trainer.prediction.resume import Rows
from trainer.prediction.shards import predict_shards
from trainer.prediction.writer import write_json_lines_as_list
from trainer.report.attention import attention_examples
from trainer.report.origin import facts_of, origin_of
from trainer.report.page import ATTENTION_EXAMPLES, sample_rows, write_predictions_page, write_test_report
from trainer.report.pointing import add_pointing
from trainer.report.predictions_table import shards_lines, table_lines, unfamiliar_warning
from trainer.runs.checkpoint import Checkpoint, find_checkpoint
from trainer.runs.console import print_status
from trainer.runs.retention import best_first, entries
from trainer.runtime.skipped import reasons
from trainer.score.tables import metrics_text
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import complete_from_checkpoint, output_folder
from trainer.setup.loading import require_frozen_encoder
from trainer.setup.locations import make_absolute
from trainer.setup.shared_labels import load_test_samples

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.prediction.looking import Looking
    from trainer.score.scores import Scores


SHOWN = 200  # pictures of shards on the page


def train(config: DictConfig) -> float | None:
    """Train config.stage into trainer.exp_dir/trainer.exp_name.

    Returns:
        The monitored value of its best checkpoint; None if it has none.
    """
    from trainer.stages import STAGES  # imported here: test and predict do not need the training loop

    make_absolute(config)
    STAGES[config.stage](config)
    best = best_first(entries(output_folder(config) / "checkpoints"))
    return best[0].value if best else None


def test(config: DictConfig) -> None:
    """Write predictions.jsonl, then metrics.json, per_image.jsonl and report.html, into RUN/test."""
    from trainer.score.configured import scoring_settings  # imported here: predict needs neither scores nor the demo
    from trainer.score.measure import measure
    from trainer.setup.demo_data import prepare_demo

    overwrite = config.trainer.overwrite  # read before the checkpoint's configuration replaces it
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir), with_ratings=True)
    config = complete_from_checkpoint(config, checkpoint)
    if config.stage in VLE_STAGES:
        from trainer.vle.test import test_vle

        test_vle(config, checkpoint)
        return
    require_frozen_encoder(config)
    for key in ("dataset.test_ds.visual_dir", "dataset.test_ds.json_path"):
        if key not in NOT_NEEDED.get(config.dataset.name, ()) and OmegaConf.select(config, key) is None:
            raise UserError(f"mode=test needs {key}=PATH")
    accelerator = make_accelerator(config)
    with accelerator.main_process_first():
        prepare_demo(config)
    measured, notes = scoring_settings(config)
    measured = replace(measured, rating_mean=checkpoint.info.get(RATINGS, {}).get("mean"))
    skipped: list[Skipped] = []
    samples, left_out = load_test_samples(config, checkpoint, skipped)
    notes += left_out
    by = config.trainer.test.group_by
    of_image = read_groups(config.dataset, by) if by else None
    if config.trainer.test.limit_batches is not None:
        samples = samples[: config.trainer.test.limit_batches * config.dataset.test_ds.batch_size]
    folder = output_folder(config, checkpoint) / "test"
    with folder_lock(folder, accelerator):
        unfinished, parts, looking = predict_all(config, checkpoint, samples, folder, accelerator, overwrite=overwrite)
        if accelerator.is_main_process:
            none = f"{source_of(config.dataset, 'test_ds')}: none of its {len(samples)} images could be read"
            rows = list(results(unfinished, skipped, none=none))
            notes += looking.add_to(rows) if looking else []
            for row in rows if by else ():
                row["group"] = of_image.get(row["id"]) if of_image else group_of_path(Path(row["image"]), by)
            if measured.facts is not None and parts is not None:
                options = {"seed": config.seed, "max_pixels": config.dataset.max_pixels, "judge": looking.judge}
                add_pointing(rows, parts, measured.facts, **options)
            unfinished.replace_rows(rows)
            _write_test(config, checkpoint, folder, rows, measure(rows, measured, notes=notes), looking, skipped)
            unfinished.close()


def _write_test(
    config: DictConfig,
    checkpoint: Checkpoint,
    folder: Path,
    rows: list[dict[str, Any]],
    scores: Scores,
    looking: Looking | None,
    skipped: list[Skipped],
) -> None:
    from trainer.score.measure import write_scores

    metrics, judge = {**scores.metrics, "decoding": decoding_settings(config)}, looking and looking.judge
    vle = {} if judge is None else {"VLE": str(judge.folder)}
    write_scores(folder, scores, {"decoding": metrics["decoding"], **_origin(config, checkpoint), **vle})
    examples = sample_rows(rows, ATTENTION_EXAMPLES, seed=config.seed)
    write_test_report(
        rows,
        metrics,
        folder / "report.html",
        title=f"Test of {checkpoint.run.name}",
        facts={**_facts(config, checkpoint), **vle, "annotations": source_of(config.dataset, "test_ds")},
        per_image=scores.per_image,
        attention=attention_examples(examples, looking.parts, max_pixels=config.dataset.max_pixels, judge=judge)
        if looking
        else (),
        skipped=reasons(skipped),
        seed=config.seed,
    )
    print(metrics_text(metrics))
    print_status(f"predictions, metrics and report: {folder}")


def predict(config: DictConfig) -> None:
    """Print a table; write predictions.json and report.html, or the results of shards, into RUN/predict."""
    if config.emotion is not None and config.top_emotions > 1:
        raise UserError(
            f"emotion={config.emotion} selects a single emotion: leave out top_emotions={config.top_emotions}"
        )
    overwrite = config.trainer.overwrite
    follow = config.dataset.follow_links
    shards = find_shards(config.image, where="image", follow_links=follow)
    if shards is None:
        pictures, links, others = find_images(expand_user(config.image), follow_links=follow)
        if others:
            print_status(f"image={config.image}: {unread(others)}")
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir), with_ratings=True)
    config = complete_from_checkpoint(config, checkpoint)
    if config.stage in VLE_STAGES:
        from trainer.vle.predict import predict_vle

        if shards is not None:
            raise UserError(
                f"image={config.image}: a run of stage={config.stage} reads pictures and folders, no shards"
            )
        predict_vle(config, checkpoint, pictures, links)
        return
    config.dataset.feature_cache = None  # not worth it for pictures seen once
    labels = tuple(config.dataset.labels)
    config.emotion = _named_emotion(config, checkpoint, labels)
    accelerator = make_accelerator(config)
    if shards is not None:
        _predict_shards(config, checkpoint, shards, accelerator, overwrite=overwrite)
        return
    skipped = [Skipped(id_of(path), path, LINK) for path in links]
    each = (Sample(id=id_of(path), path=path.resolve(), texts=(), language=config.language or "") for path in pictures)
    samples = Samples.pack(each, labels)
    folder = output_folder(config, checkpoint) / "predict"
    with folder_lock(folder, accelerator):
        unfinished, *_ = predict_all(config, checkpoint, samples, folder, accelerator, overwrite=overwrite)
        if accelerator.is_main_process:
            none = f"image={config.image}: none of its {len(pictures)} pictures could be read"
            rows = results(unfinished, skipped, none=none)
            write_json_lines_as_list(folder / "predictions.json", rows)
            title, facts = Path(config.image).name or str(config.image), _facts(config, checkpoint)
            page = folder / "report.html"
            groups = _groups(rows, config.group_by, folder)
            write_predictions_page(rows, page, title=title, facts=facts, skipped=reasons(skipped), groups=groups)
            for line in chain(table_lines(rows), ["", screen_text([group_table(groups)])] if groups else ()):
                print(line)
            if warning := unfamiliar_warning(rows):
                print_status(warning)
            print_status(f"predictions and page: {folder}")
            unfinished.close()


def _named_emotion(config: DictConfig, checkpoint: Checkpoint, labels: tuple[str, ...]) -> str | None:
    """Return the label that the key emotion stands for."""
    if config.emotion is None:
        return None
    if not config.dataset.emotions:
        raise UserError(f"emotion={config.emotion}: {checkpoint.folder} was trained without emotions")
    return labels[emotion_index(config.emotion, where="emotion", labels=labels)]


def _predict_shards(
    config: DictConfig, checkpoint: Checkpoint, shards: Shards, accelerator: Accelerator, *, overwrite: bool
) -> None:
    """Write the results of each shard, summary.json, and a page of the first pictures; print the counts."""
    if shards.skipped and config.dataset.strict:
        first = shards.skipped[0]
        raise UserError(f"{first.path}: {first.reason}; dataset.strict=false goes on with the other shards")
    folder = output_folder(config, checkpoint) / "predict"
    with folder_lock(folder, accelerator):
        results, summary = predict_shards(config, checkpoint, shards.found, folder, accelerator, overwrite=overwrite)
        if not accelerator.is_main_process:
            return
        summary["not read"] = {skipped.id: skipped.reason for skipped in shards.skipped}
        write_json(folder / "summary.json", summary)
        if not summary["pictures"]:
            raise UserError(
                f"image={config.image}: no picture of its shards can be read; see {folder / 'summary.json'}"
            )
        first = list(islice(results.rows(), SHOWN))
        title = f"{config.image}: the first {len(first):,} of {summary['pictures']:,} pictures"
        write_predictions_page(first, folder / "report.html", title=title, facts=_facts(config, checkpoint))
        for line in shards_lines(summary):
            print(line)
        print_status(f"predictions, summary and a page of the first {len(first):,} pictures: {folder}")


def _groups(rows: Rows, by: str | None, folder: Path) -> dict[str, Any] | None:
    """Return the emotions by group, after writing them to groups.csv; None without group_by."""
    found = by_group(rows, lambda row: group_of_path(Path(row["image"]), by), by=by) if by else None
    write_groups(folder, found)
    return found


def _origin(config: DictConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    return origin_of(config, checkpoint, shuffled_images=config.dataset.shuffle_images)


def _facts(config: DictConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a report states about the origin of its figures."""
    origin = _origin(config, checkpoint)
    imported = checkpoint.info.get("import")
    own = "random, trained here" if imported is None else "as imported"
    epoch = checkpoint.info["state"]["epoch"]
    epochs = f"{epoch} epoch" + "s" * (epoch != 1)
    facts = {
        "checkpoint": origin["checkpoint"],
        "trained for": f"{origin['step']} steps, {epochs}" if imported is None else f"{epochs}, elsewhere",
        **_parts_of(config, own),
        "decoding": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in decoding_settings(config).items()),
        **facts_of(origin),
    }
    if config.stage == RATINGS:
        del facts["decoding"]
        facts["trained for"] = f"the ratings of {checkpoint.info[RATINGS]['images']:,} pictures, in closed form"
    if config.expert.enabled and (about := checkpoint.info.get("expert")):
        facts["expert"] = describe_expert(about)
    if imported is not None:
        facts["imported from"] = f"{imported['format']}: {', '.join(file['name'] for file in imported['files'])}"
    if config.dataset.shuffle_images:
        facts["control"] = "images shuffled against their annotations"
    return facts


def _parts_of(config: DictConfig, own: str) -> dict[str, str]:
    if config.stage == RATINGS:
        return {"vision": str(config.model.vision.pretrained_name or config.model.vision.architecture or own)}
    if config.stage == VLM:
        return {"model": config.vlm.pretrained_name + ("" if config.vlm.tuned else ", not tuned")}
    vision, text = config.model.vision, config.model.text
    return {
        "vision": str(vision.pretrained_name or vision.architecture or own),
        "language": str(text.pretrained_name or own),
    }


def serve(config: DictConfig) -> None:
    """Answer requests on a page and over HTTP, until SIGINT or SIGTERM."""
    from trainer.serve.command import serve  # imported here: the other commands need no server

    serve(config)
