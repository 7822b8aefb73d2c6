"""Fit the gates to a table of predictions of language model and expert, and the annotators' shares, for N images.

Neither source may have been trained on the images: its predictions of them are better than those of new images, and
the gate would overrate it.

Each source is first calibrated by a temperature. Then every form is fitted on all images at once, in float64 and to the
optimum, by cross-entropy with the annotators' shares and weight decay towards the form's start, the average of the
sources. The decay is added to the sum over the images, not their mean, so it matters less the more images there are.

The images are sorted by their values before any sum, so that their order in the file changes nothing.
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
PER_CLASS = 2  # labelled images per emotion that a gate needs
FOLDS = 5
STEPS = 100  # of L-BFGS; most forms need a few dozen
GRADIENT, CHANGE = 1e-7, 1e-9  # its tolerances

Rows = tuple[Any, Any, Any]  # log_p (N, C), log_q (N, C), histograms (N, C) or a list with None


class _Table(NamedTuple):
    """float64, (N, C) each; only images with annotations, sorted."""

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
    """Fit temperatures and gates to uncalibrated log-probabilities of language model and expert.

    Args:
        log_p, log_q: (N, C), arrays or tensors.
        histograms: (N, C) shares or counts; a row of zeros or None without annotations, which is ignored.
        names: forms to fit; the average, which is the baseline, is always included.
        choice: the form to use; "auto": the one with the least log loss on the validation images, or, if those are too
            few, in a cross-validation on the gate's own; of equal ones the first in `GATES`, which begins with average.
        weight_decay: λ of λ/2 · |θ − θ₀|², added to the cross-entropy of all N images in nats; θ₀ is the start.
        validation: log_p, log_q and histograms of other images.

    Returns:
        The fusion, float32, and a report, plain values for JSON:
        rows, validation_rows: images with annotations; validation_rows is 0 if those were too few to be used.
        temperatures: by source.
        sources, forms: by name, log loss `nll` in nats and `accuracy` under the headline rule; of the forms also the
            number of `parameters` and the mean `weight` of the language model. The same on the validation images as
            validation_nll, …; crossed_nll is that of a cross-validation, if there was one.
        chosen: the form in use, and `why`.

    Raises:
        UserError: an unknown form; fewer than PER_CLASS · C images with annotations.
    """
    table = _annotated(log_p, log_q, histograms)
    held = _annotated(*validation) if validation is not None else None
    classes = table.shares.shape[1]
    if len(table.shares) < PER_CLASS * classes:
        raise UserError(
            f"{len(table.shares)} images with annotators' emotions are too few to fit a gate of {classes} emotions, "
            f"which needs {PER_CLASS * classes}: use a larger dataset.gate_split, or all of dataset.validation_ds with "
            "dataset.gate_split=0"
        )
    wanted = {*names, AVERAGE} | ({choice} - {AUTO})
    names = sorted(wanted, key=lambda name: GATES.index(name) if name in GATES else -1)  # an unknown one fails first
    temperatures = [fit_temperature(column, table.shares) for column in table[:2]]
    fusion = Fusion(names, classes, choice=AVERAGE, temperatures=temperatures, seed=seed)
    tables = [
        _calibrated(fusion, part)
        for part in (table, held)
        if part is not None and len(part.shares) >= PER_CLASS * classes
    ]
    crossed = choice == AUTO and len(tables) == 1
    losses = {}
    with progress(len(names), "fit gates", unit="form") as bar:
        for name in names:
            fit = functools.partial(_fit, name, weight_decay=weight_decay, seed=seed)
            fusion.gates[name] = fit(tables[0])
            if crossed:
                losses[name] = _crossed(fit, tables[0])
            bar.update()
    report = _report(fusion, tables, losses)
    fusion.choice, report["why"] = _choose(report, choice)
    report["chosen"] = fusion.choice
    return fusion.float().eval().requires_grad_(False), report


def _annotated(log_p: Any, log_q: Any, histograms: Any) -> _Table:
    """Return the images with annotations, sorted: a sum in floating point depends on the order of its terms."""
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
    """Apply `Fusion.calibrated`, in its precision, so that the gates are fitted to the inputs of prediction."""
    first, second = fusion.calibrated(*rows.tensors()[:2])
    return _Table(first.double().numpy(), second.double().numpy(), rows.shares)


def _fit(name: str, rows: _Table, *, weight_decay: float, seed: int) -> nn.Module:
    """Return the gate, fitted in float64 by L-BFGS."""
    gate = build_gate(name, rows.shares.shape[1], seed=seed).double()
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
    """Return the log loss of the form in a cross-validation."""
    fold = np.arange(len(rows.shares)) % FOLDS
    losses = np.empty(len(fold))
    for i in range(FOLDS):
        out = rows.part(fold == i)
        losses[fold == i] = cross_entropy(out.shares, _probabilities(fit(rows.part(fold != i)), out)[0])
    return float(losses.mean())


@torch.no_grad()
def _probabilities(gate: nn.Module, rows: _Table) -> tuple[np.ndarray, float]:
    """Return the probabilities (N, C) and the mean weight of the language model."""
    fused = gate(*rows.tensors()[:2])
    return fused.log_probs.exp().numpy(), float(fused.weight.mean())


def _report(fusion: Fusion, tables: Sequence[_Table], crossed: Mapping[str, float]) -> dict[str, Any]:
    """tables: calibrated, the gate's own and perhaps the validation's; crossed: log losses by form."""
    sources: dict[str, dict[str, Any]] = {name: {} for name in SOURCES}
    forms: dict[str, dict[str, Any]] = {
        name: {"parameters": sum(weight.numel() for weight in gate.parameters())} for name, gate in fusion.gates.items()
    }
    for prefix, table in zip(("", "validation_"), tables, strict=False):
        for name, column in zip(SOURCES, table[:2], strict=True):
            sources[name] |= _scores(prefix, np.exp(column), table.shares)
        for name, gate in fusion.gates.items():
            probabilities, weight = _probabilities(gate, table)
            forms[name] |= _scores(prefix, probabilities, table.shares) | {f"{prefix}weight": weight}
    for name, loss in crossed.items():
        forms[name]["crossed_nll"] = loss
    return {
        "rows": len(tables[0].shares),
        "validation_rows": len(tables[1].shares) if len(tables) > 1 else 0,
        "temperatures": dict(zip(SOURCES, np.round(fusion.temperatures.double(), 6).tolist(), strict=True)),
        "sources": sources,
        "forms": forms,
    }


def _scores(prefix: str, probabilities: np.ndarray, shares: np.ndarray) -> dict[str, float | None]:
    guesses = probabilities.argmax(axis=1).tolist()
    labels = [str(i) for i in range(shares.shape[1])]  # accuracy does not depend on the names
    accuracy = emotion_scores(guesses, list(shares), labels=labels).accuracy
    return {f"{prefix}nll": float(cross_entropy(shares, probabilities).mean()), f"{prefix}accuracy": accuracy}


def _choose(report: Mapping[str, Any], choice: str) -> tuple[str, str]:
    """Return the form to use, and why."""
    if choice != AUTO:
        return choice, f"expert.gate.name={choice}"
    held = report["validation_rows"]
    key = "validation_nll" if held else "crossed_nll"
    forms = report["forms"]
    best = min(forms, key=lambda name: (round(forms[name][key], 9), GATES.index(name)))
    where = f"{held} validation images" if held else f"the {report['rows']} images of the gate, in {FOLDS} folds"
    return best, f"it has the least log loss of {len(forms)} forms on {where}"
