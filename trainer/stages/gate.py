"""stage=gate: fit the gate that weighs language model, head and further sources, on images that none was trained on.

RUN/logits.jsonl        logits of language model and head for these images and the validation set
RUN/logits-NAME.jsonl   those of a further source that is a run
RUN/checkpoints/        the captioner with head and gates, for test and predict
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from common.config.rules import VLM
from common.errors import UserError
from common.files import write_json
from common.ranks import leave_job, rank
from data.loaders import drop_empty_batches
from data.samples import Samples
from data.schema import Batch
from model.expert.gate import GATES
from model.expert.student import STUDENT
from trainer.metrics.sources import LANGUAGE_MODEL
from trainer.prediction.build import build_predictor
from trainer.prediction.other_sources import Source, read_sources, report_missing
from trainer.runs.bundle import GATE as GATE_FILE
from trainer.runs.bundle import HEADS, write_bundle
from trainer.runs.checkpoint import Checkpoint, is_vlm
from trainer.runs.console import print_status
from trainer.runs.logits import LOGITS, Logits, complete_logits, digests_of
from trainer.runs.record import write_record
from trainer.runs.retention import digest_of
from trainer.runs.seen import CAPTIONER, read_seen, require_unseen
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.setup.demo_data import prepare_demo
from trainer.setup.device import make_accelerator
from trainer.setup.head_features import with_feature_cache
from trainer.setup.ingredients import image_digests
from trainer.setup.loading import GATE, Features, copies, load_samples, split_loader
from trainer.setup.parts import build_parts
from trainer.setup.stage_settings import require_unused_folder, stage_folder
from trainer.stages.fit_gate import fit_fusion
from trainer.stages.student import named_captioner, with_captioner

VALIDATION = "validation_ds"


def train_gate(config: DictConfig) -> None:
    """Fit into trainer.exp_dir/NAME-gate. Of several processes, the first does all: the gate has a few weights.

    Raises:
        UserError: the captioner has no head, a network was trained on the images, or there are too few.
    """
    if rank() > 0:
        return
    leave_job()
    checkpoint = named_captioner(config)
    if not (checkpoint.folder / HEADS).is_file():
        raise UserError(
            f"pretrained_name={config.pretrained_name}: {checkpoint.folder} is a captioner without a head; stage=gate "
            "needs the run of stage=student"
        )
    config = with_captioner(config, checkpoint)
    config.expert.enabled = True
    seed_everything(config.seed)
    run, accelerator = stage_folder(config, "gate"), make_accelerator(config)
    with run_lock(run):
        require_unused_folder(run, config)
        _fit(config, run, checkpoint, accelerator)


def _fit(config: DictConfig, run: Path, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
    prepare_demo(config)
    samples = {GATE: load_samples(config, GATE, []), VALIDATION: load_samples(config, VALIDATION, [])}
    seen, others = read_seen(checkpoint.folder), read_sources(config.expert.sources, config)
    if not {CAPTIONER, VLM} & seen.keys():
        print_status(f"warning: {checkpoint.folder} does not say which images its captioner was trained on")
    splits = [GATE, VALIDATION] if config.dataset.gate_split else [GATE]
    name = "dataset.train_ds (dataset.gate_split of them)" if config.dataset.gate_split else "dataset.validation_ds"
    for source in others:
        seen |= source.seen()
    require_unseen(samples[GATE], seen, where=name)
    samples[GATE] = _new_to_all(samples[GATE], config)
    write_record(run, config, image_digests(config, {VALIDATION: samples[VALIDATION]}), step=0)
    samples = {split: samples[split] for split in splits}
    beside = {split: _log_probs(others, samples[split], config, accelerator, run, split) for split in splits}
    logits = _compute_logits(config, run, checkpoint, accelerator, samples)
    tables = [_table(samples[split], logits[split], beside[split]) for split in splits if beside[split] is not None]
    fusion, report = fit_fusion(
        *tables[0],
        answers=[source.name for source in others if source.answers],
        names=GATES,
        choice=config.expert.gate.name,
        weight_decay=config.expert.gate.weight_decay,
        seed=config.seed,
        validation=tables[1] if len(tables) > 1 else None,
    )
    gate = {**fusion.settings(), "images": len(samples[GATE]), "from": _origins(others), "report": report}
    config.expert.sources = [f"{source.name}={source.path.absolute()}" for source in others]
    expert, tensors = {**checkpoint.info["expert"], "gate": gate}, {GATE_FILE: fusion.state_dict()}
    folder = write_bundle(run, checkpoint, config=config, expert=expert, tensors=tensors, seen=seen)
    write_json(run / "gate.json", report)
    print_status("\n".join([*_lines(report), f"captioner with head and gate: {folder}"]))


def _new_to_all(samples: Samples, config: DictConfig) -> Samples:
    """Return the samples without those whose file is, byte for byte, that of a training image under another name."""
    same = copies(config, load_samples(config, "train_ds", []), samples)
    if not same:
        return samples
    original, copy = same[0]
    print_status(
        f"{len(same)} of the gate's {len(samples)} images are left out, as they are training images under another "
        f"name: the first is {copy}, the same as {original}"
    )
    left_out = {path for _, path in same}
    return samples.pick([row for row in range(len(samples)) if samples.path(row) not in left_out])


def _origins(others: Sequence[Source]) -> dict[str, dict[str, Any]]:
    return {
        source.name: {"path": str(source.path.absolute()), "sha256": source.digest, "answers": source.answers}
        for source in others
    }


def _log_probs(
    others: Sequence[Source], samples: Samples, config: DictConfig, accelerator: Accelerator, run: Path, split: str
) -> dict[str, dict[str, Tensor]] | None:
    """Return log-probabilities by further source and image id; None for a validation set that a source lacks wholly.

    Raises:
        UserError: a source has none of the gate's images.
    """
    found = {source.name: source.log_probs(samples, config, accelerator, run) for source in others}
    for source in others:
        if split == VALIDATION and not found[source.name]:
            print_status(f"{source.name} has no entry for the validation set, which is not used")
            return None
        report_missing(source, samples, found[source.name], required=True)
    return found


def _compute_logits(
    config: DictConfig, run: Path, checkpoint: Checkpoint, accelerator: Accelerator, samples: Mapping[str, Samples]
) -> dict[str, Logits]:
    """Return uncalibrated log-probabilities of the language model and logits of the head, by split."""
    if is_vlm(checkpoint):
        from trainer.prediction.vlm_predictor import with_head  # imported here: a captioner needs no peft

        compute, loader = with_head(config, checkpoint, accelerator)
    else:
        compute, loader = _captioner_with_head(config, checkpoint, accelerator)
    cache = with_feature_cache(config).dataset.feature_cache
    digests = [digest_of(checkpoint.folder / name) for name in ("model.safetensors", HEADS)]
    return {
        split: complete_logits(
            run / LOGITS,
            of_split,
            digests_of(of_split, cache),
            compute,
            of=" ".join([*digests, config.trainer.test.emotion_scoring]),
            loader=functools.partial(loader, split),
            what=f"language model and head, {split}",
        )
        for split, of_split in samples.items()
    }


def _captioner_with_head(
    config: DictConfig, checkpoint: Checkpoint, accelerator: Accelerator
) -> tuple[Callable[[Batch], dict[str, Tensor]], Callable[[str, Samples], Iterable[Batch]]]:
    """Return the functions from a batch to the logits of both, and from a split and its samples to batches."""
    parts = build_parts(config, checkpoint=checkpoint)
    captioner = parts.captioner.to(accelerator.device).eval()
    predictor = build_predictor(config, parts, checkpoint)
    features = Features(with_feature_cache(config), captioner, accelerator)

    @torch.no_grad()
    def compute(batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            log_probs = predictor.emotion_log_probs(captioner.look(batch.frames, batch.frame_mask, batch.tokens))
        return {LANGUAGE_MODEL: log_probs, STUDENT: predictor.expert.heads(batch.tokens, batch.frame_mask)[STUDENT]}

    def loader(of: str, missing: Samples) -> Iterable[Batch]:
        split = VALIDATION if of == VALIDATION or not config.dataset.gate_split else "train_ds"
        batches, _ = split_loader(config, split, missing, parts, features, texts=0, shuffle=False)
        return drop_empty_batches(batches, [], strict=False)

    return compute, loader


def _table(
    samples: Samples, logits: Logits, others: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, list[list[float]]], list[Any]]:
    """Return the rows of every source, NaN without an entry, and of the annotators, for every image with logits."""
    readable = [sample for sample in samples if sample.id in logits]
    none = torch.full((len(samples.labels),), math.nan)
    columns = {
        **{name: {id: of_image[name] for id, of_image in logits.items()} for name in (LANGUAGE_MODEL, STUDENT)},
        **others,
    }
    found = {name: [of.get(sample.id, none).tolist() for sample in readable] for name, of in columns.items()}
    return found, [sample.histogram for sample in readable]


def _lines(report: Mapping[str, Any]) -> list[str]:
    """Return a table of the fitted forms."""
    held = report["validation_rows"]
    columns = {"nll": "gate: log loss", "accuracy": "accuracy"}
    columns |= {"validation_nll": "validation: log loss", "validation_accuracy": "accuracy"} if held else {}
    lines = [f"{'':<16}" + "".join(f"{name:>22}" for name in columns.values())]
    for name, scores in {**report["sources"], **report["forms"]}.items():
        cells = ["–" if scores.get(key) is None else f"{scores[key]:.4f}" for key in columns]
        lines.append(f"{name.replace('_', ' '):<16}" + "".join(f"{cell:>22}" for cell in cells))
    images = f"{report['rows']} images of the gate" + (f", {held} of the validation set" if held else "")
    return [*lines, f"{images}; in use: {report['chosen']}, {report['why']}"]
