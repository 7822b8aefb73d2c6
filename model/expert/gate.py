"""Gates combine the emotion distributions of two or more sources, the language model and the experts.

After the gates of EmoVLM-KD (2025), which have two sources, on calibrated log-probabilities instead of raw logits and
one-hot answers. Every gate starts as the average, so that an untrained gate is usable and weight decay toward the start
is meaningful. Axes: B images, K sources, C emotions.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError

LOWEST = math.log(1e-12)  # lower bound of log-probabilities, so that no sum of them is infinite
ALIKE, COLLINEAR = 1e-6, 1e-5  # distance of sources that count as equal, absolute and as a share of the largest
EXPERTS = 3
HIDDEN = 16  # width of the network that weights the sources in `Mixture`
SCALARS = 2  # of each source


class Fused(NamedTuple):
    """log_probs (B, C): normalised over C. weights (B, K): of each source, 0 to 1, sum 1."""

    log_probs: Tensor
    weights: Tensor


class Gate(nn.Module):
    """Calibrated log-probabilities of the sources (B, K, C) → Fused.

    Subclasses implement `combine`. If it returns no weights, they are those of `nearest_weights`.
    """

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__()

    def forward(self, sources: Tensor) -> Fused:
        sources = sources.clamp(min=LOWEST)
        scores, weights = self.combine(sources)
        log_probs = scores.log_softmax(dim=-1)
        return Fused(log_probs, nearest_weights(log_probs, sources) if weights is None else weights)

    def combine(self, sources: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities (B, C) up to a constant, and the weights (B, K) of the sources or None.

        Args:
            sources: at least LOWEST.
        """
        raise NotImplementedError


@torch.no_grad()
def nearest_weights(fused: Tensor, sources: Tensor) -> Tensor:
    """Return the weights w (B, K), sum 1, whose Σ wᵢ log pᵢ is nearest to the result (B, C).

    Least squares over the emotions of vectors minus their mean, which softmax ignores; of equally near weights the most
    even ones. Sources with a negative weight are left out, and the others are fitted again.
    """
    fused, logs = (v.cpu().double().nan_to_num() for v in (fused, sources))
    fused, logs = (v - v.mean(dim=-1, keepdim=True) for v in (fused, logs))
    kept, weights = torch.ones(logs.shape[:2], dtype=torch.bool), None
    while weights is None or (weights < 0).any():
        kept &= True if weights is None else weights >= 0
        even = kept / kept.sum(dim=1, keepdim=True)
        middle = (even[..., None] * logs).sum(dim=1, keepdim=True)
        apart = ((logs - middle) * kept[..., None]).mT  # (B, C, K); its rows sum to 0, so changes of weights do
        change = torch.linalg.pinv(apart, atol=ALIKE, rtol=COLLINEAR) @ (fused[:, None] - middle).mT
        weights = (even + change.squeeze(-1)) * kept
    return weights.to(sources)


def scalars(sources: Tensor) -> Tensor:
    """Return the confidence (B, 2K), 0 to 1: entropies over log C of all sources, then margins of their top two."""
    probs = sources.exp()
    entropies = -(probs * sources).sum(dim=-1) / math.log(probs.shape[-1])
    best = probs.topk(2, dim=-1).values
    return torch.cat([entropies, best[..., 0] - best[..., 1]], dim=-1)


@torch.no_grad()
def _linear(inputs: int, outputs: int, weight: Tensor | float = 0.0) -> nn.Linear:
    """Return a layer with these initial weights and a bias of zero."""
    layer = nn.Linear(inputs, outputs)
    layer.weight.copy_(torch.as_tensor(weight))
    layer.bias.zero_()
    return layer


def _average(classes: int, sources: int) -> nn.Linear:
    """(KC → C): average of the K parts."""
    return _linear(sources * classes, classes, torch.eye(classes).repeat(1, sources) / sources)


class Average(Gate):
    """Mean of the log pᵢ, without parameters."""

    def combine(self, sources: Tensor) -> tuple[Tensor, None]:
        return sources.mean(dim=1), None


class ConcatLinear(Gate):
    """A linear layer over [log p₁; …; log p_K] that starts as the average, [I/K | … | I/K]."""

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__(classes, sources)
        self.map = _average(classes, sources)

    def combine(self, sources: Tensor) -> tuple[Tensor, None]:
        return self.map(sources.flatten(1)), None


class Mixture(Gate):
    """Σ wᵢ pᵢ with weights for each image from a small network, whose last layer starts at zero: wᵢ = 1/K.

    The only gate that averages probabilities instead of logarithms: an emotion that has probability 0 in one source may
    still get probability from another.
    """

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__(classes, sources)
        last = _linear(HIDDEN, sources - 1)  # the last source has the logit 0
        self.weigh = nn.Sequential(nn.Linear(sources * (classes + SCALARS), HIDDEN), nn.Tanh(), last)

    def combine(self, sources: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.weigh(torch.cat([sources.exp().flatten(1), scalars(sources)], dim=-1))
        logs = F.pad(logits, (0, 1)).log_softmax(dim=-1)
        return (logs[..., None] + sources).logsumexp(dim=1), logs.exp()


class Bilinear(Gate):
    """The average, plus a linear layer over a bilinear form of each two sources, which starts at zero.

    The published form has two sources and no average, and products alone cannot express one.
    """

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__(classes, sources)
        self.pairs = [*itertools.combinations(range(sources), 2)]
        self.products = nn.ModuleList([nn.Bilinear(classes, classes, classes) for _ in self.pairs])
        self.map = _linear(classes, classes)

    def combine(self, sources: Tensor) -> tuple[Tensor, None]:
        log = sources.unbind(dim=1)
        products = sum(form(log[i], log[j]) for form, (i, j) in zip(self.products, self.pairs, strict=True))
        return sources.mean(dim=1) + self.map(products), None


class MixtureOfExperts(Gate):
    """Three linear layers over [log p₁; …; log p_K], weighted for each image.

    All three start as the average; the router starts at random, since equal weights would keep the three equal.
    """

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__(classes, sources)
        self.experts = nn.ModuleList([_average(classes, sources) for _ in range(EXPERTS)])
        self.router = nn.Linear(sources * (classes + SCALARS), EXPERTS)

    def combine(self, sources: Tensor) -> tuple[Tensor, None]:
        every = sources.flatten(1)
        shares = self.router(torch.cat([every, scalars(sources)], dim=-1)).softmax(dim=-1)  # (B, E)
        scores = torch.stack([expert(every) for expert in self.experts], dim=-1)  # (B, C, E)
        return (scores * shares[..., None, :]).sum(dim=-1), None


class Dynamic(Gate):
    """Σ wᵢ log pᵢ, with weights for each image from a linear layer that starts at zero, then a linear layer."""

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__(classes, sources)
        self.weigh = _linear(sources * (classes + SCALARS), sources)
        self.map = _linear(classes, classes, torch.eye(classes))

    def combine(self, sources: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weigh(torch.cat([sources.flatten(1), scalars(sources)], dim=-1)).softmax(dim=-1)
        return self.map((weights[..., None] * sources).sum(dim=1)), weights


class Cross(Gate):
    """Each source is gated for each emotion by the average of the others, σ(0) = ½ at the start; then a linear layer.

    The sum of the gated sources is multiplied by 2/K, so that the start is the average.
    """

    def __init__(self, classes: int, sources: int) -> None:
        super().__init__(classes, sources)
        self.by_others = nn.ModuleList([_linear(classes, classes) for _ in range(sources)])
        self.map = _linear(classes, classes, torch.eye(classes))

    def combine(self, sources: Tensor) -> tuple[Tensor, None]:
        count = sources.shape[1]
        others = (sources.sum(dim=1, keepdim=True) - sources) / (count - 1)
        gated = [layer(others[:, i]).sigmoid() * sources[:, i] for i, layer in enumerate(self.by_others)]
        return self.map(sum(gated) * (2 / count)), None


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


def build_gate(name: str, classes: int, sources: int = 2, *, seed: int = 0) -> Gate:
    """Return a gate for K = `sources` and C = `classes` emotions, its random weights drawn with `seed`.

    Raises:
        UserError: unknown name.
    """
    if name not in FORMS:
        raise UserError(f"expert.gate.name={name!r} is unknown; choose from {', '.join(GATES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FORMS[name](classes, sources)
