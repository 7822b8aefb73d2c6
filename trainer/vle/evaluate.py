"""Run a VLE task over a split and gather its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain, zip_longest

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
    """Return the results of all processes, in the order of the data, and the mean losses by name.

    Args:
        batches: of this process, which has every n-th one.
        skipped: the unusable pictures of all processes are appended.
    """
    network.eval()
    results: list[list[Result]] = []  # of each batch
    unusable: list[Skipped] = []
    sums, counts = Counter(), Counter()
    with torch.no_grad():
        for loaded in batches:
            results.append([])
            for batch in drop_empty_batches([loaded], unusable, strict=strict):
                batch = batch.to(accelerator.device)
                with accelerator.autocast():
                    outputs = task.outputs(network, batch)
                results[-1] += task.results(outputs, batch)
                sums.update({name: float(value) for name, value in task.losses(outputs, batch).items()})
                counts.update({name: int(value) for name, value in task.counts(batch).items()})
    everyone = gather_object([(results, unusable, sums, counts)])
    in_order = chain.from_iterable(zip_longest(*(own for own, *_ in everyone), fillvalue=[]))
    totals, numbers = Counter(), Counter()
    for _, unread, some, count in everyone:
        skipped.extend(unread)
        totals.update(some)
        numbers.update(count)
    return [*chain.from_iterable(in_order)], {name: totals[name] / numbers[name] for name in totals if numbers[name]}
