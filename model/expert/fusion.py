"""Language model and expert as one source of emotions: both calibrated, then joined by a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from model.expert.gate import LOWEST, Fused, build_gate

SOURCES = ("language_model", "student")


class Fusion(nn.Module):
    """The gates that were fitted, and the temperature of each source that they were fitted behind.

    Args:
        names: of the forms, see `model.expert.gate.GATES`.
        classes: C, the number of emotions.
        choice: the one of `names` that is in use.
        temperatures: of language model and expert; divide their log-probabilities.
        seed: of what starts at random in the gates.

    Raises:
        UserError: a form that is not known, or a choice that is none of them.
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
        """Log-probabilities (B, C) of both at their temperatures, float32."""
        pair = zip((log_p, log_q), self.temperatures.unbind(), strict=True)
        first, second = ((v.float().clamp(min=LOWEST) / temperature).log_softmax(dim=-1) for v, temperature in pair)
        return first, second

    def forward(self, log_p: Tensor, log_q: Tensor) -> Fused:
        """What the form in use makes of uncalibrated log-probabilities (B, C) of language model and expert."""
        return self._fused(log_p, log_q, [self.choice])[self.choice]

    def fuse(self, log_p: Tensor, log_q: Tensor) -> dict[str, Fused]:
        """The same of every form, by its name."""
        return self._fused(log_p, log_q, list(self.gates))

    def _fused(self, log_p: Tensor, log_q: Tensor, names: Sequence[str]) -> dict[str, Fused]:
        with torch.autocast(log_p.device.type, enabled=False):  # a hundred numbers: speed is nothing, digits are all
            first, second = self.calibrated(log_p, log_q)
            return {name: self.gates[name](first, second) for name in names}

    # --- as files: settings() as JSON, state_dict() as tensors -------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Plain values for JSON, of which `from_settings` builds the same modules; the weights are in `state_dict`."""
        return {"name": self.choice, "names": list(self.gates), "classes": self.classes}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Fusion:
        """Modules without their weights: `load_state_dict` brings those.

        Raises:
            UserError: these are no settings of a fusion.
        """
        try:
            return cls(list(settings["names"]), int(settings["classes"]), choice=settings["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"no settings of a gate ({type(error).__name__}: {error}): {settings!r}") from None
