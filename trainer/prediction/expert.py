"""The expert in use: what a checkpoint holds beside the captioner, and what it says of a batch of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from common.errors import UserError, in_short
from data.emotions import labels_of
from data.samples import Samples
from model.captioner import Captioner
from model.expert.expert import STUDENT, Heads
from model.expert.features import build_features
from model.expert.fusion import Fusion
from model.expert.student import StudentHead
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors
from trainer.runs.bundle import GATE, HEADS
from trainer.runs.bundle import TEACHER as TEACHER_FILE
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import significant
from trainer.runs.logits import TEACHER, digests_of, read_logits

LANGUAGE_MODEL = "language_model"
AVERAGE = "average"  # where no gate was fitted


class Opinions(NamedTuple):
    """Of B pictures: fused probabilities (B, C), and of each what its row of predictions.jsonl holds of the sources."""

    fused: Tensor
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Expert:
    """Heads beside the language model, and what joins them.

    Args:
        fusion: of language model and the head STUDENT; the plain average where no gate was fitted.
        temperatures: that each head, and the teacher, was calibrated with on the validation images.
        about: "expert" of checkpoint.json, in the checkpoint `folder`.
        teacher: calibrated probabilities of pictures by id, where the teacher's logits are at hand.
    """

    heads: Heads
    fusion: Fusion
    temperatures: Mapping[str, float]
    about: Mapping[str, Any]
    folder: Path
    teacher: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, log_p: Tensor, tokens: Tensor, frame_mask: Tensor, ids: list[str]) -> Opinions:
        """
        Args:
            log_p: (B, C) of the language model, uncalibrated.
            tokens: (B, T, P, D) of the vision encoder; frame_mask: (B, T).
        """
        with torch.autocast(log_p.device.type, enabled=False):
            logits = self.heads(tokens, frame_mask)
            log_q = logits.pop(STUDENT)
            sources = dict(
                zip((LANGUAGE_MODEL, STUDENT), (p.exp() for p in self.fusion.calibrated(log_p, log_q)), strict=True)
            )
            others = {name: (values / self.temperatures[name]).softmax(dim=-1) for name, values in logits.items()}
            gates = self.fusion.fuse(log_p, log_q)
        used = gates[self.fusion.choice]
        rows = []
        for i, id in enumerate(ids):
            of_picture = {name: _digits(values[i]) for name, values in {**sources, **others}.items()}
            if id in self.teacher:
                of_picture[TEACHER] = _digits(self.teacher[id])
            rows.append(
                {
                    "sources": of_picture,
                    "gates": {name: _digits(fused.log_probs[i].exp()) for name, fused in gates.items()},
                    "gate": {"name": self.fusion.choice, "weight": round(float(used.weight[i]), 4)},
                }
            )
        return Opinions(used.log_probs.exp(), rows)

    def read_teacher(self, samples: Samples, cache: str | None, *, show: bool = True) -> None:
        """Take in what the teacher says of these pictures, if its logits came with the head.

        Args:
            cache, show: see trainer.runs.logits.digests_of.
        """
        path = self.folder / TEACHER_FILE
        if not path.is_file():
            return
        logits = read_logits(path, samples, digests_of(samples, cache, show=show))
        for id, of_sample in logits.items():
            if TEACHER in of_sample:
                self.teacher[id] = (of_sample[TEACHER] / self.temperatures[TEACHER]).softmax(dim=-1)


def described(about: Mapping[str, Any]) -> str:
    """What a checkpoint holds beside the captioner, in a line; about: "expert" of its checkpoint.json."""
    heads = ", ".join(f"{name} (alpha {found['alpha']:g})" for name, found in about["heads"].items())
    gate = about.get("gate")
    return f"{heads}; " + (f"gate {gate['name'].replace('_', ' ')}" if gate else "no gate: their plain average")


def _digits(probabilities: Tensor) -> list[float]:
    return [significant(p) for p in probabilities.tolist()]


def load_expert(
    config: DictConfig, checkpoint: Checkpoint, captioner: Captioner, *, temperature: float
) -> Expert | None:
    """What the checkpoint holds of an expert, on the captioner's device; None: nothing, or expert.enabled=false.

    Args:
        temperature: that calibrates the language model, where no gate was fitted.

    Raises:
        UserError: files that cannot be read or do not go together, or another set of emotions.
    """
    if not config.expert.enabled or not (checkpoint.folder / HEADS).is_file():
        return None
    about, labels = checkpoint.info.get("expert"), tuple(config.dataset.labels)
    weights = read_tensors(checkpoint.folder / HEADS, way_out=ANOTHER_CHECKPOINT)
    try:
        if labels_of(about) != labels:
            raise UserError(
                f"{checkpoint.folder}: its expert tells {', '.join(labels_of(about))} apart, not {', '.join(labels)}; "
                "expert.enabled=false leaves it out"
            )
        made = {name: StudentHead(**about["head"]) for name in (STUDENT, *about["heads"])}
        heads = Heads(build_features(captioner, **about["features"]), made)
        heads.heads.load_state_dict(weights)
        temperatures = {name: _temperature(found) for name, found in about["heads"].items()}
        if about.get("teacher"):
            temperatures[TEACHER] = _temperature(about["teacher"])
        fusion = _fusion(about.get("gate"), checkpoint.folder, len(labels), (temperature, temperatures[STUDENT]))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{checkpoint.folder / 'checkpoint.json'} and the expert's weights do not go together ({in_short(error)}); "
            "take another checkpoint, or leave the expert out with expert.enabled=false"
        ) from error
    device = next(captioner.parameters()).device
    return Expert(heads.to(device).eval(), fusion.to(device).eval(), temperatures, about, checkpoint.folder)


def _fusion(
    settings: Mapping[str, Any] | None, folder: Path, classes: int, temperatures: tuple[float, float]
) -> Fusion:
    """The gates that were fitted; without settings the plain average."""
    if not settings:
        return Fusion([AVERAGE], classes, choice=AVERAGE, temperatures=temperatures)
    if settings["classes"] != classes:
        raise ValueError(f"the gate is of {settings['classes']} emotions")
    fusion = Fusion.from_settings(settings)
    fusion.load_state_dict(read_tensors(folder / GATE, way_out=ANOTHER_CHECKPOINT))
    return fusion


def _temperature(found: Mapping[str, Any]) -> float:
    value = float(found["temperature"])
    if not 0 < value < math.inf:
        raise ValueError(f"a temperature of {value}")
    return value
