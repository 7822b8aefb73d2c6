"""Configuration and run folder of the stages teacher, student and gate."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict

from common.config.files import load_stored
from common.errors import UserError
from trainer.runs.record import CONFIG
from trainer.setup.from_checkpoint import output_folder, typed_keys

# Keys of expert.STAGE, and the keys that they replace in that stage.
OWN = {
    "epochs": "trainer.epochs",
    "batch_size": "dataset.train_ds.batch_size",
    "lr": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
}
OPTIMIZER = {"name": "adamw", "betas": [0.9, 0.999], "eps": 1.0e-8, "vad_lr": None}
SCHEDULER = {"name": "cosine", "warmup_steps": None, "warmup_ratio": 0.1, "min_lr": 0.0}


def stage_config(config: DictConfig, stage: str) -> DictConfig:
    """Return the configuration of the stage "teacher" or "student", with its own epochs, batch size and optimizer.

    Raises:
        UserError: the command line sets a key that this stage replaces.
    """
    for key, other in OWN.items():
        if other in typed_keys():
            raise UserError(f"stage={stage} has settings of its own: set expert.{stage}.{key} instead of {other}")
    merged, own = config.copy(), config.expert[stage]
    with open_dict(merged):
        merged.trainer.epochs = own.epochs
        merged.model.optimizer.update({**OPTIMIZER, "lr": own.lr, "weight_decay": own.weight_decay})
        merged.model.optimizer.scheduler.update(SCHEDULER)
        merged.dataset.train_ds.batch_size = merged.dataset.validation_ds.batch_size = own.batch_size
        merged.dataset.train_ds.length_buckets = 1
    return merged


def stage_folder(config: DictConfig, stage: str) -> Path:
    """Return the run's folder as named on the command line, else NAME-STAGE next to the captioner's NAME."""
    folder = output_folder(config)
    named = {"name", "trainer.exp_name"} & {*typed_keys()}
    return folder if named else folder.with_name(f"{config.name}-{stage}")


def require_unused_folder(run: Path, config: DictConfig) -> None:
    """Raise UserError if the folder holds a run that is neither to be resumed nor to be overwritten."""
    if not (run / CONFIG).is_file():
        return
    stage = load_stored(run / CONFIG).get("stage", "caption")
    if stage != config.stage:
        raise UserError(f"{run} holds a run of stage={stage}: choose another name=…")
    if not config.trainer.overwrite and config.trainer.resume != "auto":
        raise UserError(
            f"{run} already holds a run: choose another name=…, go on with it (trainer.resume=auto), or replace it "
            "(trainer.overwrite=true)"
        )
