"""stage=student: a head on the captioner's frozen vision encoder, distilled from a teacher; beside it the plain probe.

RUN/probe/, RUN/student/   a training each, as any other; of the probe only where there is a teacher
RUN/checkpoints/           the captioner with both heads: what stage=gate, test and predict take
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf import DictConfig, open_dict
from torch import Tensor

from common.errors import UserError
from common.reading import expanded
from data.loaders import make_loader
from data.samples import Samples
from data.schema import Skipped
from data.views import ViewDataset
from model.expert.expert import PROBE, STUDENT
from model.expert.student import StudentHead
from trainer.loop.validation import TEMPERATURE
from trainer.runs.bundle import HEADS, write_bundle
from trainer.runs.bundle import TEACHER as TEACHER_FILE
from trainer.runs.checkpoint import Checkpoint, best_of, find_checkpoint, load_state
from trainer.runs.console import say
from trainer.runs.logits import LOGITS, TEACHER, digests_of, read_logits
from trainer.runs.record import write_record
from trainer.runs.seen import read_seen, seen_in
from trainer.runs.start import alone
from trainer.runs.state import seed_everything
from trainer.setup.demo_data import prepare_data
from trainer.setup.device import make_accelerator
from trainer.setup.expert_settings import require_free, settled, stage_folder
from trainer.setup.from_checkpoint import complete_from_checkpoint
from trainer.setup.head_features import HeadFeatures
from trainer.setup.ingredients import of_file, of_images
from trainer.setup.loading import GATE, load_samples
from trainer.setup.parts import Parts, build_parts
from trainer.stages.classifier_task import StudentTask
from trainer.stages.labelled import ClassifierStage, labelled_samples
from trainer.stages.run_stage import SPLITS, Loader, carry_out


def train_student(config: DictConfig) -> None:
    """Into trainer.exp_dir/NAME-student; raises what trainer.stages.run_stage.carry_out does."""
    captioner = named_captioner(config)
    config = with_captioner(config, captioner)
    run, settings, accelerator = stage_folder(config, "student"), settled(config, "student"), make_accelerator(config)
    with alone(run) if accelerator.is_main_process else nullcontext():
        require_free(run, config)
        with accelerator.main_process_first():
            prepare_data(config)
        material = Material(settings, captioner, accelerator)
        if accelerator.is_main_process:
            write_record(run, config, material.made_of, step=0)
        heads = [PROBE, STUDENT] if material.teacher else [STUDENT]
        for name in heads:
            own = _of_head(settings, alpha=settings.expert.student.alpha if name != PROBE and material.teacher else 0.0)
            say(f"--- {name}: alpha {own.expert.student.alpha:g}")
            carry_out(own, run / name, accelerator, lambda own=own: StudentStage(own, material), named=False)
        material.keep_for_gate()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write(run, config, captioner, material, heads)


def named_captioner(config: DictConfig) -> Checkpoint:
    """Raises UserError: none is named, or it is not there."""
    if config.pretrained_name is None:
        raise UserError(
            f"stage={config.stage} needs pretrained_name=RUN: the captioner's run"
            + (" as stage=student wrote it" if config.stage == "gate" else "")
        )
    return find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir))


def with_captioner(config: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """The checkpoint's configuration under what the user named; how this run begins and how short it is cut are new."""
    merged = complete_from_checkpoint(config, checkpoint)
    with open_dict(merged):
        for key in ("overwrite", "resume", "limit_train_batches", "limit_val_batches"):
            merged.trainer[key] = config.trainer[key]
    return merged


def _of_head(settings: DictConfig, *, alpha: float) -> DictConfig:
    own = settings.copy()
    with open_dict(own):
        own.expert.student.alpha = alpha
    return own


class Material:
    """What both heads are trained on: pictures, the captioner that is looked through, and the teacher's logits.

    teacher: logits by id of a picture to train on; empty: there is no teacher.
    seen: see trainer.runs.seen.
    """

    def __init__(self, config: DictConfig, captioner: Checkpoint, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.skipped: list[Skipped] = []
        self.samples = labelled_samples(config, self.skipped)
        self.seen = seen_in(self.samples["train_ds"])
        self.parts: Parts = build_parts(config, checkpoint=captioner)
        self.features = HeadFeatures(config, self.parts.captioner, accelerator)
        self.made_of: dict[str, Any] = of_images(config, self.samples)
        self.made_of["pretrained_name"] = of_file(str(captioner.folder / "model.safetensors"))
        self.teacher: dict[str, Tensor] = {}
        self.teacher_run: Path | None = None
        if config.expert.student.teacher is not None and config.expert.student.alpha > 0:
            self._read_teacher(config.expert.student.teacher, Path(config.trainer.exp_dir))
        self._tokens: dict[str, Any] = {}

    def _read_teacher(self, name: str, exp_dir: Path) -> None:
        folders = [expanded(name), exp_dir / name]
        run = next((folder for folder in folders if (folder / LOGITS).is_file()), None)
        if run is None:
            looked = " nor ".join(str(folder) for folder in folders)
            raise UserError(
                f"expert.student.teacher={name}: there is no {LOGITS} in {looked}; `python run.py mode=train "
                "stage=teacher` writes it, at its end"
            )
        samples = self.samples["train_ds"]
        cache, show = self.features.whole.dataset.feature_cache, self.accelerator.is_local_main_process
        logits = read_logits(run / LOGITS, samples, digests_of(samples, cache, show=show))
        self.teacher = {id: found[TEACHER] for id, found in logits.items() if TEACHER in found}
        if not self.teacher:
            raise UserError(f"{run / LOGITS} has none of the images to train on: it is of other data")
        if missing := len(samples) - len(self.teacher):
            say(f"{run / LOGITS} lacks {missing} of {len(samples)} images; only their annotators teach there")
        self.teacher_run = run
        self.made_of["expert.student.teacher"] = of_file(str(run / LOGITS))

    @property
    def shape(self) -> dict[str, Any]:
        """Arguments of either head."""
        settings = self.config.expert.student
        shape = {"dim": self.features.dim, "classes": len(self.samples["train_ds"].labels)}
        return shape | {key: settings[key] for key in ("pool", "depth", "dropout")}

    def keep_for_gate(self) -> None:
        """All tokens of the pictures that the gate will be fitted to, beside those of the validation set."""
        if self.config.dataset.gate_split:
            self.features.whole("train_ds", load_samples(self.config, GATE, []))

    def loaders(self) -> list[Loader]:
        return [self.loader(split, self.samples[split]) for split in SPLITS]

    def loader(self, split: str, samples: Samples) -> Loader:
        if split not in self._tokens:
            self._tokens[split] = self.features(split, samples)
        files = self.config.dataset[split]
        views = ViewDataset(
            samples,
            preprocess=self.parts.captioner.vision.preprocess,
            seed=self.config.seed,
            max_pixels=self.config.dataset.max_pixels,
            tokens=self._tokens[split],
        )
        return make_loader(
            views,
            batch_size=files.batch_size,
            num_workers=0,  # rows of a memory map: a worker would only copy them once more
            shuffle=split == "train_ds" and files.shuffle,
            processes=self.accelerator.num_processes,
        )


class StudentStage(ClassifierStage):
    """One head; see trainer.stages.run_stage.Stage."""

    def __init__(self, config: DictConfig, material: Material) -> None:
        seed_everything(config.seed)  # both heads begin the same
        settings, head = config.expert.student, StudentHead(**material.shape)
        distilled = {"teacher": material.teacher, "alpha": settings.alpha} if settings.alpha else {}
        task = StudentTask(head, seen=material.seen, temperature=settings.temperature, **distilled)
        of_material = {"samples": material.samples, "skipped": [*material.skipped], "made_of": material.made_of}
        super().__init__(config, task, name=f"head on {settings.features}, {settings.pool}", **of_material)
        self.material = material

    def loaders(self, accelerator: Accelerator) -> list[Loader]:
        return self.material.loaders()


def _write(run: Path, config: DictConfig, captioner: Checkpoint, material: Material, heads: list[str]) -> None:
    """The captioner with its heads, each as its best checkpoint has it."""
    settings, state, about = config.expert.student, {}, {}
    for name in heads:
        of_head, about[name] = _best_head(run / name, material)
        state |= {f"{name}.{key}": tensor for key, tensor in of_head.items()}
    seen, teacher, files = {**read_seen(captioner.folder), "head": material.seen}, None, {}
    if material.teacher_run is not None:
        of_teacher = best_of(material.teacher_run)
        seen["teacher"] = read_seen(of_teacher.folder)["images"]
        temperature = of_teacher.info["metrics"].get(TEMPERATURE, 1.0)
        teacher = {"run": str(material.teacher_run.absolute()), "temperature": temperature}
        files[TEACHER_FILE] = material.teacher_run / LOGITS
    expert = {
        "features": {"features": settings.features, "grid": settings.grid},
        "head": material.shape,
        "heads": about,
        "teacher": teacher,
    }
    tensors = {HEADS: state}
    folder = write_bundle(run, captioner, config=config, expert=expert, tensors=tensors, seen=seen, files=files)
    for name, found in about.items():
        accuracy, nll = (found["validation"].get(key) for key in ("emotion_accuracy", "emotion_nll_calibrated"))
        say(f"{name} (alpha {found['alpha']:g}): validation accuracy {accuracy:.3f}, log loss {nll:.3f}")
    say(f"captioner with {' and '.join(heads)}: {folder}")


def _best_head(run: Path, material: Material) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a trained head, and what checkpoint.json says of it."""
    best, head = best_of(run), StudentHead(**material.shape)
    load_state(head, head.state_dict(), best.folder / "model.safetensors")
    settings = best.config.expert.student
    return head.state_dict(), {
        "alpha": settings.alpha,
        "distillation_temperature": settings.temperature if settings.alpha else None,
        "temperature": best.info["metrics"].get(TEMPERATURE, 1.0),
        "validation": {key.split("/")[1]: value for key, value in best.info["metrics"].items()},
    }
