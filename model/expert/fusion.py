"""Emotion distribution of language model and expert: both calibrated, then combined by a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from model.expert.gate import LOWEST, Fused, build_gate

SOURCES = ("language_model", "student")


class Fusion(nn.Module):
    """The fitted gates, and the temperature of each source with which they were fitted.

    Args:
        names: of gates, see `model.expert.gate.GATES`.
        classes: C, the number of emotions.
        choice: the one of `names` to use.
        temperatures: of language model and expert; divide their log-probabilities.
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
        temperatures: Sequence[float] = (1.0, 1.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if choice not in names:
            raise UserError(f"expert.gate.name={choice!r} was not fitted; choose from {', '.join(names)}")
        self.classes, self.choice = classes, choice
        self.gates = nn.ModuleDict({name: build_gate(name, classes, seed=seed) for name in names})
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=torch.float32))

    def calibrated(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities (B, C) of both sources at their temperatures, float32."""
        pair = zip((log_p, log_q), self.temperatures.unbind(), strict=True)
        first, second = ((v.float().clamp(min=LOWEST) / temperature).log_softmax(dim=-1) for v, temperature in pair)
        return first, second

    def forward(self, log_p: Tensor, log_q: Tensor) -> Fused:
        """Combine uncalibrated log-probabilities (B, C) of language model and expert by the chosen gate."""
        return self.fuse(log_p, log_q, [self.choice])[self.choice]

    def fuse(self, log_p: Tensor, log_q: Tensor, names: Sequence[str] | None = None) -> dict[str, Fused]:
        """As forward, by each of the named gates; None: all."""
        with torch.autocast(log_p.device.type, enabled=False):  # so few values that precision costs nothing
            first, second = self.calibrated(log_p, log_q)
            return {name: self.gates[name](first, second) for name in names or self.gates}

    def settings(self) -> dict[str, Any]:
        """Return plain values for JSON from which `from_settings` rebuilds the modules, without weights."""
        return {"name": self.choice, "names": list(self.gates), "classes": self.classes}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Fusion:
        """Return modules with initial weights, for `load_state_dict`.

        Raises:
            UserError: invalid settings.
        """
        try:
            return cls(list(settings["names"]), int(settings["classes"]), choice=settings["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"invalid settings of a gate ({type(error).__name__}: {error}): {settings!r}") from None
