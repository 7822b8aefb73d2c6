"""Gates: how the emotion distributions of two sources, the language model and the expert, become one.

After the gates of EmoVLM-KD (2025), on calibrated log-probabilities instead of raw logits and one-hot answers. Every
form starts at the plain average of the two, so that a gate that has learned nothing is still sane, and a weight decay
towards the start has a meaning. Axes: B images, C emotions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError

LOWEST = math.log(1e-12)  # a probability of 0 counts as this, so that no sum of logarithms is infinite
ALIKE = 1e-12  # squared distance of two sources that do not differ
EXPERTS = 3
HIDDEN = 16  # of the network that weighs the sources in `Mixture`
SCALARS = 4


class Fused(NamedTuple):
    """log_probs (B, C): normalised over C. weight (B,): of the first source, the language model, 0 to 1."""

    log_probs: Tensor
    weight: Tensor


class Gate(nn.Module):
    """(log_p (B, C), log_q (B, C)), calibrated log-probabilities of language model and expert → Fused.

    A form says in `combine` what it makes of the two, up to a constant, and perhaps how it weighed them. Where it does
    not, the weight is the w whose w log p + (1 − w) log q is nearest to what it made: least squares over the emotions,
    of each vector less its mean, which a softmax does not see.
    """

    def forward(self, log_p: Tensor, log_q: Tensor) -> Fused:
        log_p, log_q = log_p.clamp(min=LOWEST), log_q.clamp(min=LOWEST)
        scores, weight = self.combine(log_p, log_q)
        log_probs = scores.log_softmax(dim=-1)
        return Fused(log_probs, nearest_weight(log_probs, log_p, log_q) if weight is None else weight)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (B, C), and the weight (B,) of the first source where the form has one."""
        raise NotImplementedError


def nearest_weight(fused: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """(B,): as in `Gate`; ½ where the two sources say the same."""
    fused, log_p, log_q = (v - v.mean(dim=-1, keepdim=True) for v in (fused, log_p, log_q))
    apart = log_p - log_q
    size = apart.square().sum(dim=-1)
    weight = ((fused - log_q) * apart).sum(dim=-1) / size.clamp(min=ALIKE)
    return torch.where(size > ALIKE, weight, 0.5).clamp(0, 1)


def scalars(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(B, 4): how sure each source is. Entropies over log C, and margins between the two likeliest, all 0 to 1."""
    found = []
    for log_probs in (log_p, log_q):
        probs = log_probs.exp()
        best = probs.topk(2, dim=-1).values
        found += [-(probs * log_probs).sum(dim=-1) / math.log(probs.shape[-1]), best[..., 0] - best[..., 1]]
    return torch.stack([found[0], found[2], found[1], found[3]], dim=-1)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _identity(classes: int) -> nn.Linear:
    layer = _zero(nn.Linear(classes, classes))
    nn.init.eye_(layer.weight)
    return layer


def _halves(classes: int) -> nn.Linear:
    """(2C → C): the average of its two halves."""
    layer = _zero(nn.Linear(2 * classes, classes))
    with torch.no_grad():
        layer.weight.copy_(torch.eye(classes).repeat(1, 2) / 2)
    return layer


# --- the forms -------------------------------------------------------------------------------------------------------


class Average(Gate):
    """½ (log p + log q). Nothing is learned."""

    def __init__(self, classes: int) -> None:
        super().__init__()

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return (log_p + log_q) / 2, None


class ConcatLinear(Gate):
    """One linear map of [log p; log q], which starts as [½I | ½I] without a bias: the average."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.map = _halves(classes)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return self.map(torch.cat([log_p, log_q], dim=-1)), None


class Mixture(Gate):
    """w p + (1 − w) q with w of each image from a small network; the last layer of that starts at zero, so w at ½.

    The one form that averages probabilities and not their logarithms: what one source takes for impossible stays
    possible if the other says so.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        last = _zero(nn.Linear(HIDDEN, 1))
        self.weigh = nn.Sequential(nn.Linear(2 * classes + SCALARS, HIDDEN), nn.Tanh(), last)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.weigh(torch.cat([log_p.exp(), log_q.exp(), scalars(log_p, log_q)], dim=-1))
        mixed = torch.logaddexp(F.logsigmoid(logit) + log_p, F.logsigmoid(-logit) + log_q)
        return mixed, logit.sigmoid().squeeze(-1)


class Bilinear(Gate):
    """The average, and a linear map of a bilinear form of both that starts at zero.

    The published form has no average in it, and products alone cannot give one: here it learns what to add.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.product = nn.Bilinear(classes, classes, classes)
        self.map = _zero(nn.Linear(classes, classes))

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        return (log_p + log_q) / 2 + self.map(self.product(log_p, log_q)), None


class MixtureOfExperts(Gate):
    """Three linear maps of [log p; log q], weighed for each image.

    All three start as the average, so the router need not start at zero: it is random, else the three would learn the
    same.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([_halves(classes) for _ in range(EXPERTS)])
        self.router = nn.Linear(2 * classes + SCALARS, EXPERTS)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, None]:
        both = torch.cat([log_p, log_q], dim=-1)
        shares = self.router(torch.cat([both, scalars(log_p, log_q)], dim=-1)).softmax(dim=-1)  # (B, E)
        said = torch.stack([expert(both) for expert in self.experts], dim=-1)  # (B, C, E)
        return (said * shares[..., None, :]).sum(dim=-1), None


class Dynamic(Gate):
    """w log p + (1 − w) log q with w of each image from a linear map that starts at zero, then one as the identity."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weigh = _zero(nn.Linear(2 * classes + SCALARS, 2))
        self.map = _identity(classes)

    def combine(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([log_p, log_q, scalars(log_p, log_q)], dim=-1)
        first, second = self.weigh(seen).softmax(dim=-1).split(1, dim=-1)
        return self.map(first * log_p + second * log_q), first.squeeze(-1)


class Cross(Gate):
    """Each source is let through by the other, emotion by emotion: σ(0) = ½ at the start; then a map, the identity."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.by_first, self.by_second = _zero(nn.Linear(classes, classes)), _zero(nn.Linear(classes, classes))
        self.map = _identity(classes)

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
    """A gate of that form for C = `classes` emotions; `seed` draws what starts at random.

    Raises:
        UserError: no such form.
    """
    if name not in FORMS:
        raise UserError(f"expert.gate.name={name!r} is unknown; choose from {', '.join(GATES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FORMS[name](classes)
