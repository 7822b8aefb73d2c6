"""Gates combine the emotion distributions of two sources, the language model and the expert.

After the gates of EmoVLM-KD (2025), on calibrated log-probabilities instead of raw logits and one-hot answers. Every
gate starts as the average of the two, so that an untrained gate is usable and weight decay toward the start is
meaningful. Axes: B images, C emotions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError

LOWEST = math.log(1e-12)  # lower bound of log-probabilities, so that no sum of them is infinite
ALIKE = 1e-12  # squared distance below which two sources count as equal
EXPERTS = 3
HIDDEN = 16  # width of the network that weights the sources in `Mixture`
SCALARS = 4


class Fused(NamedTuple):
    """log_probs (B, C): normalised over C. weight (B,): of the first source, the language model, 0 to 1."""

    log_probs: Tensor
    weight: Tensor


class Gate(nn.Module):
    """(log_p (B, C), log_q (B, C)), calibrated log-probabilities of language model and expert → Fused.

    Subclasses implement `combine`. If it returns no weight, the weight is the w whose w log p + (1 − w) log q is
    nearest to the result: least squares over the emotions of vectors minus their mean, which softmax ignores.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()

    def forward(self, log_p: Tensor, log_q: Tensor) -> Fused:
        log_p, log_q = log_p.clamp(min=LOWEST), log_q.clamp(min=LOWEST)
        scores, weight = self.combine(log_p, log_q)
        log_probs = scores.log_softmax(dim=-1)
        return Fused(log_probs, nearest_weight(log_probs, log_p, log_q) if weight is None else weight)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities (B, C) up to a constant, and the weight (B,) of the first source or None."""
        raise NotImplementedError


def nearest_weight(fused: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the weight (B,) described in `Gate`; ½ if the two sources are equal."""
    fused, log_p, log_q = (v - v.mean(dim=-1, keepdim=True) for v in (fused, log_p, log_q))
    apart = log_p - log_q
    size = apart.square().sum(dim=-1)
    weight = ((fused - log_q) * apart).sum(dim=-1) / size.clamp(min=ALIKE)
    return torch.where(size > ALIKE, weight, 0.5).clamp(0, 1)


def scalars(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the confidence (B, 4), 0 to 1: entropies over log C of both, then margins of the top two of both."""
    probs = torch.stack([log_p.exp(), log_q.exp()], dim=-2)
    entropies = -(probs * torch.stack([log_p, log_q], dim=-2)).sum(dim=-1) / math.log(probs.shape[-1])
    best = probs.topk(2, dim=-1).values
    return torch.cat([entropies, best[..., 0] - best[..., 1]], dim=-1)


@torch.no_grad()
def _linear(inputs: int, outputs: int, weight: Tensor | float = 0.0) -> nn.Linear:
    """Return a layer with these initial weights and a bias of zero."""
    layer = nn.Linear(inputs, outputs)
    layer.weight.copy_(torch.as_tensor(weight))
    layer.bias.zero_()
    return layer


def _average(classes: int) -> nn.Linear:
    """(2C → C): average of the two halves."""
    return _linear(2 * classes, classes, torch.eye(classes).repeat(1, 2) / 2)


class Average(Gate):
    """½ (log p + log q), without parameters."""

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return (log_p + log_q) / 2, None


class ConcatLinear(Gate):
    """A linear layer over [log p; log q] that starts as the average, [½I | ½I]."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.map = _average(classes)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return self.map(torch.cat([log_p, log_q], dim=-1)), None


class Mixture(Gate):
    """w p + (1 − w) q with w for each image from a small network, whose last layer starts at zero: w = ½.

    The only gate that averages probabilities instead of logarithms: an emotion that has probability 0 in one source may
    still get probability from the other.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        last = _linear(HIDDEN, 1)
        self.weigh = nn.Sequential(nn.Linear(2 * classes + SCALARS, HIDDEN), nn.Tanh(), last)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.weigh(torch.cat([log_p.exp(), log_q.exp(), scalars(log_p, log_q)], dim=-1))
        mixed = torch.logaddexp(F.logsigmoid(logit) + log_p, F.logsigmoid(-logit) + log_q)
        return mixed, logit.sigmoid().squeeze(-1)


class Bilinear(Gate):
    """The average, plus a linear layer over a bilinear form of both, which starts at zero.

    The published form has no average, and products alone cannot express one.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.product = nn.Bilinear(classes, classes, classes)
        self.map = _linear(classes, classes)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return (log_p + log_q) / 2 + self.map(self.product(log_p, log_q)), None


class MixtureOfExperts(Gate):
    """Three linear layers over [log p; log q], weighted for each image.

    All three start as the average; the router starts at random, since equal weights would keep the three equal.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.experts = nn.ModuleList([_average(classes) for _ in range(EXPERTS)])
        self.router = nn.Linear(2 * classes + SCALARS, EXPERTS)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        both = torch.cat([log_p, log_q], dim=-1)
        shares = self.router(torch.cat([both, scalars(log_p, log_q)], dim=-1)).softmax(dim=-1)  # (B, E)
        scores = torch.stack([expert(both) for expert in self.experts], dim=-1)  # (B, C, E)
        return (scores * shares[..., None, :]).sum(dim=-1), None


class Dynamic(Gate):
    """w log p + (1 − w) log q, with w for each image from a linear layer that starts at zero, then a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.weigh = _linear(2 * classes + SCALARS, 2)
        self.map = _linear(classes, classes, torch.eye(classes))

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([log_p, log_q, scalars(log_p, log_q)], dim=-1)
        first, second = self.weigh(inputs).softmax(dim=-1).split(1, dim=-1)
        return self.map(first * log_p + second * log_q), first.squeeze(-1)


class Cross(Gate):
    """Each source is gated by the other for each emotion, σ(0) = ½ at the start; then a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.by_first, self.by_second = _linear(classes, classes), _linear(classes, classes)
        self.map = _linear(classes, classes, torch.eye(classes))

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return self.map(self.by_second(log_q).sigmoid() * log_p + self.by_first(log_p).sigmoid() * log_q), None


FORMS: dict[str, type[Gate]] = {
    "average": Average,
    "concat_linear": ConcatLinear,
    "mixture": Mixture,
    "bilinear": Bilinear,
    "moe": MixtureOfExperts,
    "dynamic": Dynamic,
    "cross": Cross,
}
GATES = tuple(FORMS)


def build_gate(name: str, classes: int, *, seed: int = 0) -> Gate:
    """Return a gate for C = `classes` emotions, its random weights drawn with `seed`.

    Raises:
        UserError: unknown name.
    """
    if name not in FORMS:
        raise UserError(f"expert.gate.name={name!r} is unknown; choose from {', '.join(GATES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FORMS[name](classes)
