"""The expert of a checkpoint: heads beside the captioner, and the gate that combines the student among them, and any
further sources, with the language model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor, nn

from common.errors import UserError, shorten
from data.emotions import labels_of
from data.samples import Samples
from model.expert.features import build_features
from model.expert.fusion import SOURCES, Fusion
from model.expert.student import STUDENT, Heads, StudentHead
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors
from trainer.metrics.calibration import stored_temperature
from trainer.prediction.other_sources import read_fitted
from trainer.runs.bundle import GATE, HEADS
from trainer.runs.bundle import TEACHER as TEACHER_FILE
from trainer.runs.checkpoint import Checkpoint
from trainer.runs.console import print_status, round_significant
from trainer.runs.logits import TEACHER, digests_of, read_logits

AVERAGE = "average"  # used if no gate was fitted


class FusedEmotions(NamedTuple):
    """Fused probabilities (B, C), and the entries of predictions.jsonl about their sources, for B images."""

    fused: Tensor
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Expert:
    """Heads beside the language model, and what combines them.

    Args:
        fusion: of the language model, the head STUDENT, and any further sources.
        temperatures: of each head and of the teacher, fitted on the validation images.
        about: "expert" of checkpoint.json, in the checkpoint `folder`.
        teacher: calibrated probabilities (C) by image id, if the teacher's logits are there.
        others: uncalibrated log-probabilities (C) of the further sources, by name and image id.
        digests: of these sources.
    """

    heads: Heads
    fusion: Fusion
    temperatures: Mapping[str, float]
    about: Mapping[str, Any]
    folder: Path
    teacher: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, log_p: Tensor, tokens: Tensor, frame_mask: Tensor, ids: list[str]) -> FusedEmotions:
        """
        Args:
            log_p: (B, C) uncalibrated log-probabilities of the language model.
            tokens: (B, T, P, D) of the vision encoder; frame_mask: (B, T).
        """
        with torch.autocast(log_p.device.type, enabled=False):
            logits = self.heads(tokens, frame_mask)
            logs = [log_p.float(), logits.pop(STUDENT).float()]
            logs = torch.stack([*logs, *self._others(logs[0], ids)], dim=1)
            combined = self.fusion.calibrated(logs).exp()
            beside = {name: (values / self.temperatures[name]).softmax(dim=-1) for name, values in logits.items()}
            gates = self.fusion.fuse(logs)
        used, given = gates[self.fusion.choice], ~logs.isnan().any(dim=-1)
        rows = []
        for i, id in enumerate(ids):
            of_image = {name: combined[i, k] for k, name in enumerate(self.fusion.sources) if given[i, k]}
            of_image |= {name: values[i] for name, values in beside.items()}
            if id in self.teacher:
                of_image[TEACHER] = self.teacher[id]
            weights = {name: round(w, 4) for name, w in zip(self.fusion.sources, used.weights[i].tolist(), strict=True)}
            rows.append(
                {
                    "sources": {name: _digits(shares) for name, shares in of_image.items()},
                    "gates": {name: _digits(fused.log_probs[i].exp()) for name, fused in gates.items()},
                    "gate": {"name": self.fusion.choice, "weights": weights},
                }
            )
        return FusedEmotions(used.log_probs.exp(), rows)

    def _others(self, log_p: Tensor, ids: list[str]) -> list[Tensor]:
        """Return the log-probabilities (B, C) of each further source, NaN without an entry."""
        none = torch.full_like(log_p[0], math.nan)
        found = (self.others.get(name, {}) for name in self.fusion.sources[len(SOURCES) :])
        return [torch.stack([of_source.get(id, none).to(none) for id in ids]) for of_source in found]

    def read_others(self, samples: Samples, config: DictConfig, accelerator: Accelerator, folder: Path) -> None:
        """Read or compute what the further sources predict for these images; see other_sources.read_fitted."""
        if fitted := further_sources(self.about):
            self.others, self.digests = read_fitted(fitted, samples, config, accelerator, folder)
        elif config.expert.sources:
            print_status("expert.sources is not used: the gate of this run was fitted without any (stage=gate)")

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


def further_sources(about: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what the gate combines besides language model and student, by name; about: see describe_expert."""
    return ((about or {}).get("gate") or {}).get("from", {})


def require_no_others(expert: Expert | None, checkpoint: Checkpoint) -> None:
    """Raise UserError if a gate combines further sources, which are read for whole data sets only."""
    if expert is not None and (others := further_sources(expert.about)):
        raise UserError(
            f"{checkpoint.folder}: its gate also combines {', '.join(others)}, which only mode=test and predict read: "
            "here, add expert.enabled=false to use the language model alone"
        )


def describe_expert(about: Mapping[str, Any]) -> str:
    """Return one line about the expert; about: "expert" of checkpoint.json."""
    heads = ", ".join(f"{name} (alpha {found['alpha']:g})" for name, found in about["heads"].items())
    gate = about.get("gate")
    if not gate:
        return f"{heads}; no gate: plain average"
    others = ", ".join(further_sources(about))
    return f"{heads}; gate {gate['name'].replace('_', ' ')}" + (f", with {others}" if others else "")


def _digits(probabilities: Tensor) -> list[float]:
    return [round_significant(p) for p in probabilities.tolist()]


def load_expert(config: DictConfig, checkpoint: Checkpoint, host: nn.Module, *, temperature: float) -> Expert | None:
    """Return the checkpoint's expert on the device of its host; None if it has none or expert.enabled=false.

    Args:
        host: the captioner or VLM.
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
        heads = Heads(build_features(host, **about["features"]), made)
        heads.heads.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        _require_finite(heads.heads)
        temperatures = {name: stored_temperature(found["temperature"]) for name, found in about["heads"].items()}
        if about.get("teacher"):
            temperatures[TEACHER] = stored_temperature(about["teacher"]["temperature"])
        fusion = _fusion(about.get("gate"), checkpoint.folder, len(labels), [temperature, temperatures[STUDENT]])
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{checkpoint.folder / 'checkpoint.json'} and the expert's weights do not match ({shorten(error)}); use "
            "another checkpoint, or leave the expert out with expert.enabled=false"
        ) from error
    device = next(host.parameters()).device
    return Expert(heads.to(device).eval(), fusion.to(device).eval(), temperatures, about, checkpoint.folder)


def _fusion(settings: Mapping[str, Any] | None, folder: Path, classes: int, temperatures: list[float]) -> Fusion:
    """Return the fitted gates; without settings the plain average."""
    if not settings:
        return Fusion([AVERAGE], classes, choice=AVERAGE, temperatures=temperatures)
    if settings["classes"] != classes:
        raise ValueError(f"the gate has {settings['classes']} emotions")
    fusion = Fusion.from_settings(settings)
    origins = {name: (found["path"], found["sha256"], found["answers"]) for name, found in settings["from"].items()}
    if fusion.sources != (*SOURCES, *origins):
        raise ValueError(f"the gate has the sources {', '.join(fusion.sources)}")
    fusion.load_state_dict(read_tensors(folder / GATE, way_out=ANOTHER_CHECKPOINT))
    _require_finite(fusion)
    for value in fusion.temperatures.tolist():
        stored_temperature(value)
    if not ((fusion.smoothing >= 0) & (fusion.smoothing < 1)).all():
        raise ValueError(f"smoothing {fusion.smoothing.tolist()}")
    return fusion


def _require_finite(module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")
