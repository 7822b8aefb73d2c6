"""The stages of mode=train; `run_stage.py` is common to all but stage=gate."""

from __future__ import annotations

from trainer.stages.caption import train_captioner
from trainer.stages.gate import train_gate
from trainer.stages.student import train_student
from trainer.stages.teacher import train_teacher

STAGES = {"caption": train_captioner, "teacher": train_teacher, "student": train_student, "gate": train_gate}
