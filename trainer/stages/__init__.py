"""The stages of mode=train; `run_stage.py` is common to all but stage=gate and stage=ratings."""

from __future__ import annotations

from omegaconf import DictConfig

from common.config.rules import RATINGS, VLE_STAGES, VLM
from trainer.stages.caption import train_captioner
from trainer.stages.gate import train_gate
from trainer.stages.ratings import train_ratings
from trainer.stages.student import train_student
from trainer.stages.teacher import train_teacher


def _train_vle(config: DictConfig) -> None:
    from trainer.stages.vle import train_vle  # imported here: the other stages do not need VLE

    train_vle(config)


def _train_vlm(config: DictConfig) -> None:
    from trainer.stages.vlm import train_vlm

    train_vlm(config)


STAGES = {"caption": train_captioner, "teacher": train_teacher, "student": train_student, "gate": train_gate}
STAGES |= {RATINGS: train_ratings, VLM: _train_vlm}
STAGES |= dict.fromkeys(VLE_STAGES, _train_vle)
