"""Emotion distribution of language model and experts: each calibrated, then combined by a gate.

Axes: B images, K sources, C emotions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from model.expert.gate import LOWEST, Fused, build_gate

SOURCES = ("language_model", "student")  # always combined


class Fusion(nn.Module):
    """The fitted gates, and the calibration of each source with which they were fitted.

    Args:
        names: of gates, see `model.expert.gate.GATES`.
        classes: C, the number of emotions.
        choice: the one of `names` to use.
        sources: names of the K sources, language model and student first.
        temperatures: (K), divide the log-probabilities; None: 1.
        smoothing: (K), shares of the uniform distribution that are mixed in then; None: 0.
        seed: of the gates' random initial weights.

    Raises:
        UserError: an unknown gate, or a choice that is not one of `names`.
    """

    def __init__(
        self,
        names: Sequence[str],
        classes: int,
        *,
        choice: str,
        sources: Sequence[str] = SOURCES,
        temperatures: Sequence[float] | None = None,
        smoothing: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if choice not in names:
            raise UserError(f"expert.gate.name={choice!r} was not fitted; choose from {', '.join(names)}")
        self.classes, self.choice, self.sources = classes, choice, tuple(sources)
        self.gates = nn.ModuleDict({name: build_gate(name, classes, len(sources), seed=seed) for name in names})
        self.register_buffer("temperatures", torch.tensor(temperatures or [1.0] * len(sources), dtype=torch.float32))
        self.register_buffer("smoothing", torch.tensor(smoothing or [0.0] * len(sources), dtype=torch.float32))

    def calibrated(self, sources: Tensor) -> Tensor:
        """Return the calibrated log-probabilities (B, K, C) of the sources, float32.

        A source without an entry for an image (NaN) is replaced by the average of the others.
        """
        logs = (sources.float().clamp(min=LOWEST) / self.temperatures[:, None]).log_softmax(dim=-1)
        share = self.smoothing[:, None]
        logs = torch.logaddexp(torch.log1p(-share) + logs, (share / self.classes).log().expand_as(logs))
        missing = logs.isnan().any(dim=-1, keepdim=True)
        average = logs.masked_fill(missing, 0).sum(dim=1, keepdim=True) / (~missing).sum(dim=1, keepdim=True)
        return torch.where(missing, average.log_softmax(dim=-1), logs)

    def forward(self, sources: Tensor) -> Fused:
        """Combine uncalibrated log-probabilities (B, K, C) by the chosen gate; NaN: the source has no entry."""
        return self.fuse(sources, [self.choice])[self.choice]

    def fuse(self, sources: Tensor, names: Sequence[str] | None = None) -> dict[str, Fused]:
        """As forward, by each of the named gates; None: all."""
        with torch.autocast(sources.device.type, enabled=False):  # so few values that precision costs nothing
            calibrated = self.calibrated(sources)
            return {name: self.gates[name](calibrated) for name in names or self.gates}

    def settings(self) -> dict[str, Any]:
        """Return plain values for JSON from which `from_settings` rebuilds the modules, without weights."""
        return {
            "name": self.choice,
            "names": list(self.gates),
            "classes": self.classes,
            "sources": list(self.sources),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Fusion:
        """Return modules with initial weights, for `load_state_dict`.

        Raises:
            UserError: invalid settings.
        """
        try:
            names, sources = list(settings["names"]), list(map(str, settings["sources"]))
            return cls(names, int(settings["classes"]), choice=settings["name"], sources=sources)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"invalid settings of a gate ({type(error).__name__}: {error}): {settings!r}") from None
