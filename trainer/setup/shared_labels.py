"""Test a network on data with other emotions: score those that both have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from omegaconf import DictConfig

from common.errors import UserError
from data.emotions import EMOTIONS, normalize_label
from data.readers.emotion_folder import read_emotion_folder
from data.samples import Samples
from data.schema import Sample, Skipped
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.loading import load_samples


def load_test_samples(config: DictConfig, checkpoint: Checkpoint, skipped: list[Skipped]) -> tuple[Samples, list[str]]:
    """Return `load_samples` of test_ds, and what trainer.test.label_map left out, in a sentence.

    Raises:
        UserError: see load_samples and `share_labels`.
    """
    pairs, network = config.trainer.test.label_map, tuple(checkpoint.config.dataset.labels or EMOTIONS)
    if pairs is None:
        return load_samples(config, "test_ds", skipped), []
    if config.dataset.name == "emotion_folder" and tuple(config.dataset.labels) == network:
        own = {key: config.dataset[key] for key in ("test_ds", "follow_links")} | {"labels": None}  # no other split
        config.dataset.labels = list(read_emotion_folder(own, "test_ds")[0].labels)
    samples, note = share_labels(load_samples(config, "test_ds", skipped), network, pairs)
    config.dataset.labels = list(samples.labels)
    return samples, [note]


def share_labels(samples: Samples, network: Sequence[str], pairs: Sequence[str]) -> tuple[Samples, str]:
    """Return the samples with the labels that they share with a network, and a sentence with what is left out.

    An emotion of the data stands for the network's emotion of the same name, or of that in `pairs` (THEIRS=OURS). Votes
    and texts for others are left out, the shares are divided by their rest, and images without any are left out.

    Raises:
        UserError: a pair with an emotion that neither has, fewer than two shared emotions, or no image left.
    """
    target = {name: name for name in samples.labels} | _pairs(pairs, samples.labels, network)
    shared = tuple(name for name in network if name in target.values())
    if len(shared) < 2:
        raise UserError(
            f"trainer.test.label_map: network ({', '.join(network)}) and data ({', '.join(samples.labels)}) share "
            f"{len(shared)} emotions; name more of them, as in trainer.test.label_map=[happy=amusement]"
        )
    index = [shared.index(target[name]) if target[name] in shared else -1 for name in samples.labels]
    found = Samples.pack(_mapped(samples, index, len(shared)), shared)
    if not found:
        raise UserError(f"trainer.test.label_map: no image has any of the shared emotions ({', '.join(shared)})")
    lost = Counter(int(i) for i in samples.emotions if i >= 0 and index[i] < 0)
    absent = [name for name in network if name not in shared]
    note = f"scored on the {len(shared)} emotions that network and data share ({', '.join(shared)})"
    note += f"; the network's others: {', '.join(absent)}" if absent else ""
    note += "".join(f"; left out: {count:,} annotations with {samples.labels[i]}" for i, count in lost.most_common())
    return found, note + f"; images left out: {len(samples) - len(found):,} of {len(samples):,}"


def _pairs(pairs: Sequence[str], labels: Sequence[str], network: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        theirs, equals, ours = (normalize_label(part) for part in pair.partition("="))
        if not equals or theirs not in labels or ours not in network:
            raise UserError(
                f"trainer.test.label_map: {pair!r} must be THEIRS=OURS, one of the data ({', '.join(labels)}) and one "
                f"of the network ({', '.join(network)})"
            )
        found[theirs] = ours
    return found


def _mapped(samples: Samples, index: Sequence[int], count: int) -> Iterator[Sample]:
    for sample in samples:
        kept = [(text, index[i]) for text, i in zip(sample.texts, sample.emotions, strict=True) if index[i] >= 0]
        votes = np.zeros(count)
        for i, share in zip(index, sample.histogram or (), strict=False):
            votes[i] += share if i >= 0 else 0.0
        if kept and votes.sum() > 0:
            texts, emotions = zip(*kept, strict=True)
            yield replace(sample, texts=texts, emotions=emotions, histogram=tuple((votes / votes.sum()).tolist()))
