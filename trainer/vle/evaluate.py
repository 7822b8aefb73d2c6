"""Run a VLE task over a split and gather its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from data.loaders import drop_empty_batches
from data.pairs import PairBatch
from data.schema import Skipped
from trainer.vle.tasks import Result, VleTask


def evaluate(
    task: VleTask,
    network: nn.Module,
    batches: Iterable[PairBatch],
    accelerator: Accelerator,
    *,
    skipped: list[Skipped],
    strict: bool,
) -> tuple[list[Result], dict[str, float]]:
    """Return the results of all processes, in the order of the data, and the mean losses by name."""
    network.eval()
    results: list[Result] = []
    sums, counts = Counter(), Counter()
    with torch.no_grad():
        for batch in drop_empty_batches(batches, skipped, strict=strict):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                outputs = task.outputs(network, batch)
            results += task.results(outputs, batch)
            sums.update({name: float(value) for name, value in task.losses(outputs, batch).items()})
            counts.update({name: int(value) for name, value in task.counts(batch).items()})
    everyone = gather_object([(results, dict(sums), dict(counts))])
    results = [row for some, _, _ in everyone for row in some]
    totals, numbers = Counter(), Counter()
    for _, some, count in everyone:
        totals.update(some)
        numbers.update(count)
    return results, {name: totals[name] / numbers[name] for name in totals if numbers[name]}
