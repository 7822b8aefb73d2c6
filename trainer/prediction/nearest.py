"""An explanation of the nearest training picture, as ArtEmis' nearest-neighbor speaker writes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from common.config.rules import NOT_NEEDED
from common.errors import UserError
from data.samples import Samples
from data.schema import Batch, Sample
from model.captioner import Captioner
from model.contrastive import span_mean
from trainer.runtime.processes import gather_results
from trainer.setup.loading import Features, load_samples, split_loader
from trainer.setup.parts import Parts

MOST_IMAGES = 20_000  # that are encoded for this alone


def training_images(
    config: DictConfig, parts: Parts, features: Features, accelerator: Accelerator
) -> DataLoader[Batch] | str:
    """Return a loader of the training images, or in every process the reason why they are not read."""
    found = _training_samples(config)
    problems = gather_results(accelerator, lambda: found if isinstance(found, str) else None)
    if problem := next(filter(None, problems), None):
        return problem
    return split_loader(config, "train_ds", found, parts, features, texts=0, shuffle=False)[0]


def _training_samples(config: DictConfig) -> Samples | str:
    dataset = config.dataset
    if dataset.explanations is False:
        return "the network writes no explanations"
    for key in ("visual_dir", "json_path"):
        if dataset.train_ds[key] is None and f"dataset.train_ds.{key}" not in NOT_NEEDED.get(dataset.name, ()):
            return f"dataset.train_ds.{key} does not name the training data"
    try:
        samples = load_samples(config.copy(), "train_ds", [])
    except UserError as error:
        return str(error)
    if dataset.feature_cache is None and len(samples) > MOST_IMAGES:
        return f"encoding {len(samples)} training images takes long; set dataset.feature_cache=FOLDER"
    return samples if samples.has_texts else "the training data has no explanations"


def add_nearest(
    rows: Sequence[dict[str, Any]],
    training: Samples,
    read: Callable[..., Iterator[Batch]],
    captioner: Captioner,
    *,
    seed: int,
) -> None:
    """Set "nearest" of each row whose picture can be read: by the cosine of the encoder's mean tokens.

    The explanation is a random one of the nearest other picture: of the predicted emotion if it has one. A row with a
    language gets a text in it, if any training picture has one.

    Args:
        read: (ids, training=…) → batches of these training or test images.
    """
    samples = {sample.id: sample for sample in training if any(text.strip() for text in sample.texts)}
    ids, features = [], []
    for batch in read([*samples], training=True):
        ids += batch.ids
        features.append(_mean_tokens(captioner, batch))
    known = torch.cat(features)
    columns_of, foreign = defaultdict(list), {}
    for column, id in enumerate(ids):
        columns_of[str(samples[id].path)].append(column)
    for language in {samples[id].language for id in ids}:
        foreign[language] = torch.tensor([samples[id].language != language for id in ids], device=known.device)
    by_id = {row["id"]: row for row in rows}
    for batch in read([*by_id], training=False):
        near = _mean_tokens(captioner, batch) @ known.T
        for id, cosines in zip(batch.ids, near, strict=True):
            row = by_id[id]
            cosines[columns_of.get(row["image"], [])] = -2.0
            if row.get("language") in foreign:
                cosines[foreign[row["language"]]] = -3.0
            nearest = samples[ids[int(cosines.argmax())]]
            row["nearest"] = _reason(nearest, row["emotion"], training.labels, random.Random(f"{seed}/nearest/{id}"))


def _mean_tokens(captioner: Captioner, batch: Batch) -> Tensor:
    """Return (B, Dv) of length 1."""
    tokens = captioner.encode(batch.frames) if batch.tokens is None else batch.tokens
    return F.normalize(span_mean(tokens.float().mean(dim=2), batch.frame_mask), dim=1)


def _reason(sample: Sample, emotion: str | None, labels: Sequence[str], rng: random.Random) -> str:
    texts = [(text, i) for i, text in enumerate(sample.texts) if text.strip()]
    alike = [text for text, i in texts if sample.emotions and labels[sample.emotions[i]] == emotion]
    return rng.choice(alike or [text for text, _ in texts])
