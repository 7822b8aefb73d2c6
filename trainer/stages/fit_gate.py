"""Fit the gates to a table of predictions of language model and experts, and the annotators' shares, for N images.

No source may have been trained on the images: its predictions of them are better than those of new images, and the gate
would overrate it.

Each source is first calibrated. Then every form is fitted on all images at once, in float64 and to the optimum, by
cross-entropy with the annotators' shares and weight decay towards the form's start, the average of the sources. The
decay is added to the sum over the images, not their mean, so it matters less the more images there are.

The images are sorted by their values before any sum, so that their order in the file changes nothing.

Axes: N images, K sources, C emotions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.progress import progress
from model.expert.fusion import Fusion
from model.expert.gate import GATES, LOWEST, build_gate
from trainer.metrics.calibration import cross_entropy, fit_temperature
from trainer.metrics.emotions import emotion_scores

AUTO = "auto"
AVERAGE = "average"
PER_CLASS = 2  # labelled images per emotion that a gate needs
FOLDS = 5
STEPS = 100  # of L-BFGS; most forms need a few dozen
GRADIENT, CHANGE = 1e-7, 1e-9  # its tolerances

Rows = tuple[Mapping[str, Any], Any]  # log-probabilities (N, C) by source, histograms (N, C) or a list with None


class _Table(NamedTuple):
    """float64; only images with annotations, sorted."""

    logs: np.ndarray  # (N, K, C), NaN: the source has no entry for the image
    shares: np.ndarray  # (N, C)

    def part(self, rows: np.ndarray) -> _Table:
        return _Table(*(column[rows] for column in self))

    def tensors(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.from_numpy(column) for column in self)


def fit_fusion(
    sources: Mapping[str, Any],
    histograms: Any,
    *,
    answers: Collection[str] = (),
    names: Sequence[str] = GATES,
    choice: str = AUTO,
    weight_decay: float,
    seed: int,
    validation: Rows | None = None,
) -> tuple[Fusion, dict[str, Any]]:
    """Fit calibration and gates to uncalibrated log-probabilities of language model and experts.

    Args:
        sources: by name, (N, C), arrays or tensors; language model and student first. NaN: no entry for the image.
        histograms: (N, C) shares or counts; a row of zeros or None without annotations, which is ignored.
        answers: the sources that give one emotion and no probabilities; they are calibrated by label smoothing, the
            others by a temperature.
        names: forms to fit; the average, which is the baseline, is always included.
        choice: the form to use; "auto": the one with the least log loss on the validation images, or, if those are too
            few, in a cross-validation on the gate's own; of equal ones the first in `GATES`, which begins with average.
        weight_decay: λ of λ/2 · |θ − θ₀|², added to the cross-entropy of all N images in nats; θ₀ is the start.
        validation: sources and histograms of other images.

    Returns:
        The fusion, float32, and a report, plain values for JSON:
        rows, validation_rows: images with annotations; validation_rows is 0 if those were too few to be used.
        temperatures, smoothing: by source.
        sources, forms: by name, log loss `nll` in nats and `accuracy` under the headline rule; of the sources also the
            number of images without an entry, `missing`, which do not count; of the forms the number of `parameters`
            and the mean `weights` of the sources. The same on the validation images as validation_nll, …; crossed_nll
            is that of a cross-validation, if there was one.
        chosen: the form in use, and `why`.

    Raises:
        UserError: an unknown form; fewer than PER_CLASS · C images with annotations.
    """
    table = _annotated(sources, histograms)
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
    fusion = Fusion(
        names, classes, choice=AVERAGE, sources=[*sources], seed=seed, **_calibration(table, [*sources], answers)
    )
    raw = [part for part in (table, held) if part is not None and len(part.shares) >= PER_CLASS * classes]
    tables = [_calibrated(fusion, part) for part in raw]
    crossed = choice == AUTO and len(tables) == 1
    losses = {}
    with progress(len(names), "fit gates", unit="form") as bar:
        for name in names:
            fit = functools.partial(_fit, name, weight_decay=weight_decay, seed=seed)
            fusion.gates[name] = fit(tables[0])
            if crossed:
                losses[name] = _crossed(fit, tables[0])
            bar.update()
    report = _report(fusion, raw, tables, losses)
    fusion.choice, report["why"] = _choose(report, choice)
    report["chosen"] = fusion.choice
    return fusion.float().eval().requires_grad_(False), report


def _annotated(sources: Mapping[str, Any], histograms: Any) -> _Table:
    """Return the images with annotations, sorted: a sum in floating point depends on the order of its terms."""
    logs = np.stack([np.maximum(np.asarray(v, dtype=np.float64), LOWEST) for v in sources.values()], axis=1)
    votes = np.zeros_like(logs[:, 0])
    for row, histogram in zip(votes, histograms, strict=True):
        row[:] = 0 if histogram is None else np.asarray(histogram, dtype=np.float64)
    counts = (votes.sum(axis=1) > 0) & ~np.isnan(logs).any(axis=2).all(axis=1)
    logs, votes = logs[counts], votes[counts]
    shares = votes / votes.sum(axis=1, keepdims=True)
    order = np.lexsort(np.concatenate([logs.reshape(len(logs), -1), shares], axis=1).T)
    return _Table(logs, shares).part(order)


def _calibration(table: _Table, names: Sequence[str], answers: Collection[str]) -> dict[str, list[float]]:
    """Return temperature and smoothing of each source, as arguments of Fusion."""
    pairs = [
        (1.0, fit_smoothing(logs, table.shares)) if name in answers else (fit_temperature(logs, table.shares), 0.0)
        for name, logs in zip(names, table.logs.swapaxes(0, 1), strict=True)
    ]
    temperatures, smoothing = zip(*pairs, strict=True)
    return {"temperatures": [*temperatures], "smoothing": [*smoothing]}


def fit_smoothing(logs: np.ndarray, shares: np.ndarray) -> float:
    """Return the ε that minimizes the cross-entropy of (1 − ε) · answer + ε / C with the annotators' shares.

    The best probability of the answer is the mean share of annotators who gave it. One image more, on which they share
    all emotions evenly, keeps it below 1.

    Args:
        logs: (N, C), 0 for the answer; NaN: no answer.
    """
    classes, given = shares.shape[1], ~np.isnan(logs).any(axis=1)
    agreed = np.take_along_axis(shares[given], logs[given].argmax(axis=1)[:, None], axis=1).sum()
    right = (agreed + 1 / classes) / (given.sum() + 1)
    return float(min((1 - right) * classes / (classes - 1), 1.0))


def _calibrated(fusion: Fusion, rows: _Table) -> _Table:
    """Apply `Fusion.calibrated`, in its precision, so that the gates are fitted to the inputs of prediction."""
    logs = fusion.calibrated(rows.tensors()[0]).double().numpy()
    return _Table(np.maximum(logs, LOWEST), rows.shares)


def _fit(name: str, rows: _Table, *, weight_decay: float, seed: int) -> nn.Module:
    """Return the gate, fitted in float64 by L-BFGS."""
    count, sources, classes = rows.logs.shape
    gate = build_gate(name, classes, sources, seed=seed).double()
    weights = list(gate.parameters())
    if not weights:
        return gate
    start = [weight.detach().clone() for weight in weights]
    logs, shares = rows.tensors()
    optimizer = torch.optim.LBFGS(
        weights, max_iter=STEPS, tolerance_grad=GRADIENT, tolerance_change=CHANGE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = -(shares * gate.combine(logs)[0].log_softmax(dim=-1)).sum(dim=-1).mean()
        moved = sum((weight - origin).square().sum() for weight, origin in zip(weights, start, strict=True))
        total = entropy + weight_decay / 2 / count * moved
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
def _probabilities(gate: nn.Module, rows: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities (N, C) and the mean weights (K) of the sources."""
    fused = gate(rows.tensors()[0])
    return fused.log_probs.exp().numpy(), fused.weights.mean(dim=0).numpy()


def _report(
    fusion: Fusion, raw: Sequence[_Table], tables: Sequence[_Table], crossed: Mapping[str, float]
) -> dict[str, Any]:
    """raw, tables: uncalibrated and calibrated, the gate's, perhaps the validation's; crossed: log losses by form."""
    sources: dict[str, dict[str, Any]] = {name: {} for name in fusion.sources}
    forms: dict[str, dict[str, Any]] = {
        name: {"parameters": sum(weight.numel() for weight in gate.parameters())} for name, gate in fusion.gates.items()
    }
    for prefix, entries, table in zip(("", "validation_"), raw, tables, strict=False):
        for k, name in enumerate(fusion.sources):
            given = ~np.isnan(entries.logs[:, k]).any(axis=1)
            sources[name] |= _scores(prefix, np.exp(table.logs[given, k]), table.shares[given])
            sources[name][f"{prefix}missing"] = int((~given).sum())
        for name, gate in fusion.gates.items():
            probabilities, weights = _probabilities(gate, table)
            forms[name] |= _scores(prefix, probabilities, table.shares)
            forms[name][f"{prefix}weights"] = dict(zip(fusion.sources, weights.tolist(), strict=True))
    for name, loss in crossed.items():
        forms[name]["crossed_nll"] = loss
    calibration = {
        key: getattr(fusion, key).double().numpy().round(6).tolist() for key in ("temperatures", "smoothing")
    }
    return {
        "rows": len(tables[0].shares),
        "validation_rows": len(tables[1].shares) if len(tables) > 1 else 0,
        **{key: dict(zip(fusion.sources, values, strict=True)) for key, values in calibration.items()},
        "sources": sources,
        "forms": forms,
    }


def _scores(prefix: str, probabilities: np.ndarray, shares: np.ndarray) -> dict[str, float | None]:
    if not len(shares):
        return {f"{prefix}nll": None, f"{prefix}accuracy": None}
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
