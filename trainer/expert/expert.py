"""The expert in use: what a checkpoint holds beside the captioner, and what it says of a batch of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.emotions import labels_of
from data.samples import Samples
from errors import UserError, in_short
from model.captioner import Captioner
from model.expert.expert import STUDENT, Heads
from model.expert.features import build_features
from model.expert.fusion import Fusion
from model.expert.student import StudentHead
from trainer.checkpoint import Checkpoint
from trainer.expert.bundle import GATE, HEADS
from trainer.expert.logits import LOGITS, TEACHER, key_of, read_logits

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
        temperatures: that each head was calibrated with on the validation images.
        about: "expert" of checkpoint.json.
        teacher: calibrated probabilities of pictures by id, where the teacher's logits are at hand.
    """

    heads: Heads
    fusion: Fusion
    temperatures: Mapping[str, float]
    about: Mapping[str, Any]
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

    def read_teacher(self, samples: Samples) -> None:
        """Take in what the teacher says of these pictures, if its logits are where they were."""
        found = self.about.get("teacher")
        path = Path(found["run"]) / LOGITS if found else None
        if path is None or not path.is_file():
            return
        logits, temperature = read_logits(path, samples.labels), float(found["temperature"])
        for sample in samples:
            if TEACHER in (of_sample := logits.get(key_of(sample), {})):
                self.teacher[sample.id] = (of_sample[TEACHER] / temperature).softmax(dim=-1)


def described(about: Mapping[str, Any]) -> str:
    """What a checkpoint holds beside the captioner, in a line; about: "expert" of its checkpoint.json."""
    heads = ", ".join(f"{name} (alpha {found['alpha']:g})" for name, found in about["heads"].items())
    gate = about.get("gate")
    return f"{heads}; " + (f"gate {gate['name'].replace('_', ' ')}" if gate else "no gate: their plain average")


def _digits(probabilities: Tensor) -> list[float]:
    return [float(f"{p:.6g}") for p in probabilities.tolist()]


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
    about = checkpoint.info.get("expert")
    where = checkpoint.folder / "checkpoint.json"
    try:
        if labels_of(about) != tuple(config.dataset.labels):
            raise UserError(
                f"{checkpoint.folder}: its expert tells {', '.join(labels_of(about))} apart, not "
                f"{', '.join(config.dataset.labels)}; expert.enabled=false leaves it out"
            )
        heads = Heads(
            build_features(captioner, **about["features"]),
            {name: StudentHead(**about["head"]) for name in about["heads"]},
        )
        heads.heads.load_state_dict(_tensors(checkpoint.folder / HEADS))
        temperatures = {name: float(found["temperature"]) for name, found in about["heads"].items()}
        if about.get("gate"):
            fusion = Fusion.from_settings(about["gate"])
            fusion.load_state_dict(_tensors(checkpoint.folder / GATE))
        else:
            both = (temperature, temperatures[STUDENT])
            fusion = Fusion([AVERAGE], about["head"]["classes"], choice=AVERAGE, temperatures=both)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = in_short(error)
        raise UserError(f"{where} and the expert's weights do not go together ({reason})") from error
    device = next(captioner.parameters()).device
    return Expert(heads.to(device).eval(), fusion.to(device).eval(), temperatures, about)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); take another checkpoint") from error
