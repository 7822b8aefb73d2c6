"""The expert of a checkpoint: heads beside the captioner, and the gate that combines them with the language model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from common.errors import UserError, shorten
from data.emotions import labels_of
from data.samples import Samples
from model.captioner import Captioner
from model.expert.features import build_features
from model.expert.fusion import Fusion
from model.expert.student import STUDENT, Heads, StudentHead
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors
from trainer.runs.bundle import GATE, HEADS
from trainer.runs.bundle import TEACHER as TEACHER_FILE
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import round_significant
from trainer.runs.logits import TEACHER, digests_of, read_logits

LANGUAGE_MODEL = "language_model"
AVERAGE = "average"  # used if no gate was fitted


class FusedEmotions(NamedTuple):
    """Fused probabilities (B, C), and the entries of predictions.jsonl about their sources, for B images."""

    fused: Tensor
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Expert:
    """Heads beside the language model, and what combines them.

    Args:
        fusion: of the language model and the head STUDENT.
        temperatures: of each head and of the teacher, fitted on the validation images.
        about: "expert" of checkpoint.json, in the checkpoint `folder`.
        teacher: calibrated probabilities (C) by image id, if the teacher's logits are there.
    """

    heads: Heads
    fusion: Fusion
    temperatures: Mapping[str, float]
    about: Mapping[str, Any]
    folder: Path
    teacher: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, log_p: Tensor, tokens: Tensor, frame_mask: Tensor, ids: list[str]) -> FusedEmotions:
        """
        Args:
            log_p: (B, C) uncalibrated log-probabilities of the language model.
            tokens: (B, T, P, D) of the vision encoder; frame_mask: (B, T).
        """
        with torch.autocast(log_p.device.type, enabled=False):
            logits = self.heads(tokens, frame_mask)
            log_q = logits.pop(STUDENT)
            p, q = (log.exp() for log in self.fusion.calibrated(log_p, log_q))
            sources = {LANGUAGE_MODEL: p, STUDENT: q}
            sources |= {name: (values / self.temperatures[name]).softmax(dim=-1) for name, values in logits.items()}
            gates = self.fusion.fuse(log_p, log_q)
        used = gates[self.fusion.choice]
        rows = []
        for i, id in enumerate(ids):
            of_image = {name: values[i] for name, values in sources.items()}
            if id in self.teacher:
                of_image[TEACHER] = self.teacher[id]
            rows.append(
                {
                    "sources": {name: _digits(shares) for name, shares in of_image.items()},
                    "gates": {name: _digits(fused.log_probs[i].exp()) for name, fused in gates.items()},
                    "gate": {"name": self.fusion.choice, "weight": round(float(used.weight[i]), 4)},
                }
            )
        return FusedEmotions(used.log_probs.exp(), rows)

    def read_teacher(self, samples: Samples, cache: str | None, *, show: bool = True) -> None:
        """Read the teacher's probabilities of these images, if the checkpoint has its logits.

        Args:
            cache, show: see trainer.runs.logits.digests_of.
        """
        path = self.folder / TEACHER_FILE
        if path.is_file():
            logits = read_logits(path, samples, digests_of(samples, cache, show=show))
            found = {id: of_sample[TEACHER] for id, of_sample in logits.items() if TEACHER in of_sample}
            self.teacher |= {id: (found[id] / self.temperatures[TEACHER]).softmax(dim=-1) for id in found}


def describe_expert(about: Mapping[str, Any]) -> str:
    """Return one line about the expert; about: "expert" of checkpoint.json."""
    heads = ", ".join(f"{name} (alpha {found['alpha']:g})" for name, found in about["heads"].items())
    gate = about.get("gate")
    return f"{heads}; " + (f"gate {gate['name'].replace('_', ' ')}" if gate else "no gate: plain average")


def _digits(probabilities: Tensor) -> list[float]:
    return [round_significant(p) for p in probabilities.tolist()]


def load_expert(
    config: DictConfig, checkpoint: Checkpoint, captioner: Captioner, *, temperature: float
) -> Expert | None:
    """Return the checkpoint's expert on the captioner's device; None if it has none or expert.enabled=false.

    Args:
        temperature: calibrates the language model if no gate was fitted.

    Raises:
        UserError: files that cannot be read or do not match, or other labels.
    """
    if not config.expert.enabled or not (checkpoint.folder / HEADS).is_file():
        return None
    about, labels = checkpoint.info.get("expert"), tuple(config.dataset.labels)
    weights = read_tensors(checkpoint.folder / HEADS, way_out=ANOTHER_CHECKPOINT)
    try:
        if labels_of(about) != labels:
            raise UserError(
                f"{checkpoint.folder}: its expert has the labels {', '.join(labels_of(about))}, not "
                f"{', '.join(labels)}; expert.enabled=false leaves it out"
            )
        with torch.device("meta"):  # damaged sizes must not allocate memory
            made = {name: StudentHead(**about["head"]) for name in (STUDENT, *about["heads"])}
        heads = Heads(build_features(captioner, **about["features"]), made)
        heads.heads.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        temperatures = {name: _temperature(found) for name, found in about["heads"].items()}
        if about.get("teacher"):
            temperatures[TEACHER] = _temperature(about["teacher"])
        fusion = _fusion(about.get("gate"), checkpoint.folder, len(labels), (temperature, temperatures[STUDENT]))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{checkpoint.folder / 'checkpoint.json'} and the expert's weights do not match ({shorten(error)}); use "
            "another checkpoint, or leave the expert out with expert.enabled=false"
        ) from error
    device = next(captioner.parameters()).device
    return Expert(heads.to(device).eval(), fusion.to(device).eval(), temperatures, about, checkpoint.folder)


def _fusion(
    settings: Mapping[str, Any] | None, folder: Path, classes: int, temperatures: tuple[float, float]
) -> Fusion:
    """Return the fitted gates; without settings the plain average."""
    if not settings:
        return Fusion([AVERAGE], classes, choice=AVERAGE, temperatures=temperatures)
    if settings["classes"] != classes:
        raise ValueError(f"the gate has {settings['classes']} emotions")
    fusion = Fusion.from_settings(settings)
    fusion.load_state_dict(read_tensors(folder / GATE, way_out=ANOTHER_CHECKPOINT))
    return fusion


def _temperature(found: Mapping[str, Any]) -> float:
    value = float(found["temperature"])
    if not 0 < value < math.inf:
        raise ValueError(f"temperature {value}")
    return value
