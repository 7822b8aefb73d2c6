"""stage=student: train a head on the frozen vision of a captioner or VLM, distilled from a teacher, and a plain probe.

RUN/probe/, RUN/student/   a training each; the probe only if there is a teacher
RUN/checkpoints/           captioner or VLM with both heads, for stage=gate, test and predict
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from omegaconf import DictConfig, open_dict
from torch import Tensor

from common.config.rules import VLE_STAGES, VLM
from common.errors import UserError
from common.reading import expand_user
from data.loaders import make_loader
from data.schema import Skipped
from data.views import ImageDataset
from model.expert.student import PROBE, STUDENT, StudentHead
from trainer.loop.validation import TEMPERATURE
from trainer.runs.bundle import HEADS, write_bundle
from trainer.runs.bundle import TEACHER as TEACHER_FILE
from trainer.runs.checkpoint import Checkpoint, best_of, find_checkpoint, is_vlm, load_network
from trainer.runs.console import print_status
from trainer.runs.logits import LOGITS, TEACHER, digests_of, read_logits
from trainer.runs.record import write_record
from trainer.runs.seen import read_seen, seen_in
from trainer.runs.start import run_lock
from trainer.runs.state import seed_everything
from trainer.setup.demo_data import prepare_demo
from trainer.setup.device import make_accelerator
from trainer.setup.from_checkpoint import complete_from_checkpoint
from trainer.setup.head_features import HeadFeatures, with_feature_cache
from trainer.setup.ingredients import file_digest, image_digests
from trainer.setup.loading import GATE, load_samples
from trainer.setup.parts import build_parts
from trainer.setup.stage_settings import require_unused_folder, stage_config, stage_folder
from trainer.stages.classifier import ClassifierStage, StudentTask, labelled_samples
from trainer.stages.run_stage import SPLITS, Loader, run_stage

if TYPE_CHECKING:
    from trainer.prediction.vlm_features import VlmFeatures


def train_student(config: DictConfig) -> None:
    """Train into trainer.exp_dir/NAME-student; raises the errors of run_stage."""
    captioner = named_captioner(config)
    config = with_captioner(config, captioner)
    run, settings, accelerator = (
        stage_folder(config, "student"),
        stage_config(config, "student"),
        make_accelerator(config),
    )
    with run_lock(run) if accelerator.is_main_process else nullcontext():
        require_unused_folder(run, config)
        with accelerator.main_process_first():
            prepare_demo(config)
        data = HeadData(settings, captioner, accelerator)
        if accelerator.is_main_process:
            write_record(run, config, data.ingredients, step=0)
        heads = [PROBE, STUDENT] if data.teacher else [STUDENT]
        for name in heads:
            own = settings.copy()
            if name == PROBE or not data.teacher:
                own.expert.student.alpha = 0.0
            print_status(f"--- {name}: alpha {own.expert.student.alpha:g}")
            run_stage(own, run / name, accelerator, lambda own=own: StudentStage(own, data), named=False)
        data.cache_for_gate()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write(run, config, captioner, data, heads)


def named_captioner(config: DictConfig) -> Checkpoint:
    """Raise UserError if pretrained_name is missing or names no checkpoint."""
    if config.pretrained_name is None:
        raise UserError(
            f"stage={config.stage} needs pretrained_name=RUN: "
            + ("the run of stage=student" if config.stage == "gate" else "the run of stage=caption or stage=vlm")
        )
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir))
    if checkpoint.config.get("stage") in VLE_STAGES:
        raise UserError(
            f"{checkpoint.folder} is of stage={checkpoint.config.stage}: stage={config.stage} needs a captioner or a "
            "run of stage=vlm"
        )
    return checkpoint


def with_captioner(config: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """Return the checkpoint's configuration with the user's keys, and this run's keys for starting and limits."""
    merged = complete_from_checkpoint(config, checkpoint)
    merged.stage = config.stage
    with open_dict(merged):
        for key in ("overwrite", "resume", "limit_train_batches", "limit_val_batches"):
            merged.trainer[key] = config.trainer[key]
    return merged


class HeadData:
    """Images, the captioner's features and the teacher's logits, from which both heads learn.

    teacher: logits by id of a training image; empty without a teacher.
    seen: see trainer.runs.seen.
    """

    def __init__(self, config: DictConfig, captioner: Checkpoint, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.skipped: list[Skipped] = []
        self.samples = labelled_samples(config, self.skipped)
        self.seen = seen_in(self.samples["train_ds"])
        self.features = _features(config, captioner, accelerator)
        weights = file_digest(str(captioner.folder / "model.safetensors"))
        self.ingredients: dict[str, Any] = {**image_digests(config, self.samples), "pretrained_name": weights}
        self.teacher: dict[str, Tensor] = {}
        self.teacher_run: Path | None = None
        if config.expert.student.teacher is not None and config.expert.student.alpha > 0:
            self._read_teacher(config.expert.student.teacher, Path(config.trainer.exp_dir))
        self._tokens: dict[str, Any] = {}

    def _read_teacher(self, name: str, exp_dir: Path) -> None:
        folders = [expand_user(name), exp_dir / name]
        run = next((folder for folder in folders if (folder / LOGITS).is_file()), None)
        if run is None:
            places = " nor ".join(map(str, folders))
            raise UserError(
                f"expert.student.teacher={name}: there is no {LOGITS} in {places}; stage=teacher writes it at its end"
            )
        samples = self.samples["train_ds"]
        cache, show = with_feature_cache(self.config).dataset.feature_cache, self.accelerator.is_local_main_process
        logits = read_logits(run / LOGITS, samples, digests_of(samples, cache, show=show))
        self.teacher = {id: found[TEACHER] for id, found in logits.items() if TEACHER in found}
        if not self.teacher:
            raise UserError(f"{run / LOGITS} has none of the training images: it belongs to other data")
        if missing := len(samples) - len(self.teacher):
            print_status(
                f"{run / LOGITS} lacks {missing} of {len(samples)} images, learned from their annotators alone"
            )
        self.teacher_run = run
        self.ingredients["expert.student.teacher"] = file_digest(str(run / LOGITS))

    @property
    def shape(self) -> dict[str, Any]:
        """Arguments of both heads."""
        settings = self.config.expert.student
        shape = {"dim": self.features.dim, "classes": len(self.samples["train_ds"].labels)}
        return shape | {key: settings[key] for key in ("pool", "depth", "dropout")}

    def cache_for_gate(self) -> None:
        """Cache all tokens of the images of stage=gate; those of the validation set are cached already."""
        if self.config.dataset.gate_split and isinstance(self.features, HeadFeatures):
            self.features.whole("train_ds", load_samples(self.config, GATE, []))

    def loader(self, split: str) -> Loader:
        samples, files = self.samples[split], self.config.dataset[split]
        if split not in self._tokens:
            self._tokens[split] = self.features(split, samples)
        views = ImageDataset(samples, read=None, seed=self.config.seed, tokens=self._tokens[split])
        views.labels = samples.labels
        return make_loader(
            views,
            batch_size=files.batch_size,
            num_workers=0,  # rows of a memory map: a worker would only add a copy
            shuffle=split == "train_ds" and files.shuffle,
            processes=self.accelerator.num_processes,
        )


def _features(config: DictConfig, host: Checkpoint, accelerator: Accelerator) -> HeadFeatures | VlmFeatures:
    if not is_vlm(host):
        return HeadFeatures(config, build_parts(config, checkpoint=host).captioner, accelerator)
    from trainer.prediction.vlm_features import VlmFeatures  # imported here: a captioner needs no peft

    return VlmFeatures(config, host, accelerator)


class StudentStage(ClassifierStage):
    """One head; see trainer.stages.run_stage.Stage."""

    def __init__(self, config: DictConfig, data: HeadData) -> None:
        seed_everything(config.seed)  # the same initial weights for both heads
        settings, head = config.expert.student, StudentHead(**data.shape)
        distilled = {"teacher": data.teacher, "alpha": settings.alpha} if settings.alpha else {}
        task = StudentTask(head, seen=data.seen, temperature=settings.temperature, **distilled)
        shared = {"samples": data.samples, "skipped": [*data.skipped], "ingredients": data.ingredients}
        super().__init__(config, task, name=f"head on {settings.features}, {settings.pool}", **shared)
        self.data = data

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        return [self.data.loader(split) for split in SPLITS]


def _write(run: Path, config: DictConfig, captioner: Checkpoint, data: HeadData, heads: list[str]) -> None:
    """Write the captioner with the best checkpoint of each head."""
    settings, state, about = config.expert.student, {}, {}
    for name in heads:
        weights, about[name] = _best_head(run / name, data)
        state |= {f"{name}.{key}": tensor for key, tensor in weights.items()}
    seen, teacher, files = {**read_seen(captioner.folder), "head": data.seen}, None, {}
    if data.teacher_run is not None:
        best = best_of(data.teacher_run)
        seen["teacher"] = read_seen(best.folder)["images"]
        temperature = best.info["metrics"].get(TEMPERATURE, 1.0)
        teacher = {"run": str(data.teacher_run.absolute()), "temperature": temperature}
        files[TEACHER_FILE] = data.teacher_run / LOGITS
    features = {"features": VLM if is_vlm(captioner) else settings.features, "grid": settings.grid}
    expert = {"features": features, "head": data.shape, "heads": about, "teacher": teacher}
    tensors = {HEADS: state}
    folder = write_bundle(run, captioner, config=config, expert=expert, tensors=tensors, seen=seen, files=files)
    for name, entry in about.items():
        accuracy, nll = (entry["validation"].get(key) for key in ("emotion_accuracy", "emotion_nll_calibrated"))
        print_status(f"{name} (alpha {entry['alpha']:g}): validation accuracy {accuracy:.3f}, log loss {nll:.3f}")
    print_status(f"captioner with {' and '.join(heads)}: {folder}")


def _best_head(run: Path, data: HeadData) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a trained head, and its entry for checkpoint.json."""
    best, head = best_of(run), StudentHead(**data.shape)
    load_network(head, head.state_dict(), best.folder / "model.safetensors")
    settings, metrics = best.config.expert.student, best.info["metrics"]
    return head.state_dict(), {
        "alpha": settings.alpha,
        "distillation_temperature": settings.temperature if settings.alpha else None,
        "temperature": metrics.get(TEMPERATURE, 1.0),
        "validation": {key.split("/")[1]: value for key, value in metrics.items()},
    }
