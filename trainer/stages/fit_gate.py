"""Fits the gates to a table of predictions: what language model and expert said of N images, and what people felt.

The images must be new to both sources. A source that has seen them is right about them more often than it will ever be
again, and the gate would learn to believe it.

Each source is calibrated by a temperature first. Then every form is fitted on all images at once, in float64 and to the
optimum, by cross-entropy with the annotators' shares and a weight decay towards the form's start, which is the average
of the sources: a weight that the images do not move stays there. The decay stands against the sum over the images, not
their mean: it is what is believed before the first image, so it weighs less the more of them there are.

The images are sorted by what is said of them before any number is added up, so their order in the file changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.progress import progress
from model.expert.fusion import SOURCES, Fusion
from model.expert.gate import GATES, LOWEST, build_gate
from trainer.metrics.calibration import cross_entropy, fit_temperature
from trainer.metrics.emotions import emotion_scores

AUTO = "auto"
AVERAGE = "average"
PER_CLASS = 2  # labelled images for each emotion, that a gate is fitted to at all
FOLDS = 5
STEPS = 100  # of L-BFGS; most forms need a few dozen
GRADIENT, CHANGE = 1e-7, 1e-9  # where it stops

Rows = tuple[Any, Any, Any]  # log_p (N, C), log_q (N, C), histograms (N, C) or a list with None


class _Table(NamedTuple):
    """float64, (N, C) each; only images with answers, in an order of their own."""

    log_p: np.ndarray
    log_q: np.ndarray
    shares: np.ndarray

    def part(self, rows: np.ndarray) -> _Table:
        return _Table(*(column[rows] for column in self))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.from_numpy(column) for column in self)


def fit_fusion(
    log_p: Any,
    log_q: Any,
    histograms: Any,
    *,
    names: Sequence[str] = GATES,
    choice: str = AUTO,
    weight_decay: float,
    seed: int,
    validation: Rows | None = None,
) -> tuple[Fusion, dict[str, Any]]:
    """Temperatures and gates for uncalibrated log-probabilities of language model and expert.

    Args:
        log_p, log_q: (N, C), arrays or tensors; histograms: (N, C) shares or counts, a row of zeros or None without
            answers, which does not count.
        names: forms to fit; the average, which is the measure of all others, is always among them.
        choice: the form to use; "auto": the one with the least log loss on the validation images, or, where those are
            too few, in a cross-validation on the gate's own; of equal ones the first in `GATES`, so the average before
            a gate that does no better.
        weight_decay: λ of λ/2 · |θ − θ₀|², added to the cross-entropy of all N images in nats; θ₀ is the start.
        validation: the same three of other images.

    Returns:
        The fusion, float32, and a report, plain values for JSON:
        rows, validation_rows: images with answers; validation_rows is 0 where those were too few to be used.
        temperatures: by source.
        sources, forms: by name, log loss `nll` in nats and `accuracy` under the headline rule; of the forms also the
            number of `parameters` and the mean `weight` of the language model. On the validation images the same in
            validation_nll, …; crossed_nll is that of a cross-validation, where there was one.
        chosen: the form in use, and `why`.

    Raises:
        UserError: an unknown form; fewer than PER_CLASS · C images with answers.
    """
    table = _answered(log_p, log_q, histograms)
    held = _answered(*validation) if validation is not None else None
    classes = table.shares.shape[1]
    _refuse_too_few(len(table.shares), classes)
    wanted = {*names, AVERAGE} | ({choice} - {AUTO})
    names = sorted(wanted, key=lambda name: GATES.index(name) if name in GATES else -1)  # an unknown one is told first
    temperatures = [fit_temperature(column, table.shares) for column in table[:2]]
    fusion = Fusion(names, classes, choice=AVERAGE, temperatures=temperatures, seed=seed)
    tables = [
        _calibrated(fusion, part)
        for part in (table, held)
        if part is not None and len(part.shares) >= PER_CLASS * classes
    ]
    crossed = choice == AUTO and len(tables) == 1
    losses = {}
    with progress(len(names) * (1 + FOLDS * crossed), "fit gates", unit="fit") as bar:

        def fitted(name: str, rows: _Table) -> nn.Module:
            bar.update()
            return _fit(build_gate(name, classes, seed=seed), rows, weight_decay)

        for name in names:
            fusion.gates[name] = fitted(name, tables[0])
            if crossed:
                losses[name] = _crossed(functools.partial(fitted, name), tables[0])
    report = _report(fusion, tables, losses)
    fusion.choice, report["why"] = _choose(report, choice)
    report["chosen"] = fusion.choice
    return fusion.float().eval().requires_grad_(False), report


def _refuse_too_few(images: int, classes: int) -> None:
    if images < PER_CLASS * classes:
        raise UserError(
            f"{images} images with annotators' emotions are too few to fit a gate of {classes} emotions, which needs "
            f"{PER_CLASS * classes}: give it more with a larger dataset.gate_split, or all of dataset.validation_ds "
            "with dataset.gate_split=0"
        )


def _answered(log_p: Any, log_q: Any, histograms: Any) -> _Table:
    """Images with answers, sorted: a sum in floating point depends on the order of its terms."""
    first, second = (np.maximum(np.asarray(v, dtype=np.float64), LOWEST) for v in (log_p, log_q))
    votes = np.zeros_like(first)
    for row, histogram in zip(votes, histograms, strict=True):
        row[:] = 0 if histogram is None else np.asarray(histogram, dtype=np.float64)
    counts = (votes.sum(axis=1) > 0) & ~np.isnan(first).any(axis=1) & ~np.isnan(second).any(axis=1)
    first, second, votes = first[counts], second[counts], votes[counts]
    shares = votes / votes.sum(axis=1, keepdims=True)
    order = np.lexsort(np.concatenate([first, second, shares], axis=1).T)
    return _Table(first, second, shares).part(order)


def _calibrated(fusion: Fusion, rows: _Table) -> _Table:
    """As `Fusion.calibrated`, and in its precision: what the gates are fitted to is what they will see."""
    first, second = fusion.calibrated(*rows.tensors()[:2])
    return _Table(first.double().numpy(), second.double().numpy(), rows.shares)


# --- a form ----------------------------------------------------------------------------------------------------------


def _fit(gate: nn.Module, rows: _Table, weight_decay: float) -> nn.Module:
    """`gate` in float64, where L-BFGS, from its start, finds the least of cross-entropy and decay."""
    gate = gate.double()
    weights = list(gate.parameters())
    if not weights:
        return gate
    start = [weight.detach().clone() for weight in weights]
    log_p, log_q, shares = rows.tensors()
    optimizer = torch.optim.LBFGS(
        weights, max_iter=STEPS, tolerance_grad=GRADIENT, tolerance_change=CHANGE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = -(shares * gate(log_p, log_q).log_probs).sum(dim=-1).mean()
        moved = sum((weight - origin).square().sum() for weight, origin in zip(weights, start, strict=True))
        total = entropy + weight_decay / 2 / len(shares) * moved
        total.backward()
        return total

    optimizer.step(loss)
    optimizer.zero_grad(set_to_none=True)
    return gate


def _crossed(fit: Callable[[_Table], nn.Module], rows: _Table) -> float:
    """Log loss of the form on images that it was not fitted to, each left out once."""
    fold = np.arange(len(rows.shares)) % FOLDS
    losses = np.empty(len(fold))
    for i in range(FOLDS):
        out = rows.part(fold == i)
        losses[fold == i] = cross_entropy(out.shares, _probabilities(fit(rows.part(fold != i)), out)[0])
    return float(losses.mean())


@torch.no_grad()
def _probabilities(gate: nn.Module, rows: _Table) -> tuple[np.ndarray, float]:
    """(N, C), and the mean weight of the language model."""
    fused = gate(*rows.tensors()[:2])
    return fused.log_probs.exp().numpy(), float(fused.weight.mean())


# --- what came of it -------------------------------------------------------------------------------------------------


def _report(fusion: Fusion, tables: Sequence[_Table], crossed: Mapping[str, float]) -> dict[str, Any]:
    """`tables`: calibrated, the gate's own and perhaps those of validation; crossed: log losses by form."""
    sources: dict[str, dict[str, Any]] = {name: {} for name in SOURCES}
    forms: dict[str, dict[str, Any]] = {
        name: {"parameters": sum(weight.numel() for weight in gate.parameters())} for name, gate in fusion.gates.items()
    }
    for prefix, table in zip(("", "validation_"), tables, strict=False):
        for name, column in zip(SOURCES, table[:2], strict=True):
            sources[name] |= _figures(prefix, np.exp(column), table.shares)
        for name, gate in fusion.gates.items():
            probabilities, weight = _probabilities(gate, table)
            forms[name] |= _figures(prefix, probabilities, table.shares) | {f"{prefix}weight": weight}
    for name, loss in crossed.items():
        forms[name]["crossed_nll"] = loss
    return {
        "rows": len(tables[0].shares),
        "validation_rows": len(tables[1].shares) if len(tables) > 1 else 0,
        "temperatures": dict(zip(SOURCES, np.round(fusion.temperatures.double(), 6).tolist(), strict=True)),
        "sources": sources,
        "forms": forms,
    }


def _figures(prefix: str, probabilities: np.ndarray, shares: np.ndarray) -> dict[str, float | None]:
    guesses = probabilities.argmax(axis=1).tolist()
    numbers = [str(i) for i in range(shares.shape[1])]  # accuracy asks for no names
    return {
        f"{prefix}nll": float(cross_entropy(shares, probabilities).mean()),
        f"{prefix}accuracy": emotion_scores(guesses, list(shares), labels=numbers).accuracy,
    }


def _choose(report: Mapping[str, Any], choice: str) -> tuple[str, str]:
    """The form to use, and why."""
    if choice != AUTO:
        return choice, f"expert.gate.name={choice}"
    held = report["validation_rows"]
    key = "validation_nll" if held else "crossed_nll"
    forms = report["forms"]
    best = min(forms, key=lambda name: (round(forms[name][key], 9), GATES.index(name)))
    where = f"{held} validation images" if held else f"the {report['rows']} images of the gate, in {FOLDS} folds"
    return best, f"it has the least log loss of {len(forms)} forms on {where}"
