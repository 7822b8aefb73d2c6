"""All that determines the predictions: settings, checkpoint and images. Equal identities give equal predictions."""

from __future__ import annotations

import hashlib
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.config.check import groups, leaves
from common.files import sha256
from common.reading import expand_user
from data.samples import Samples
from data.shards import file_of
from trainer.prediction.familiar import FILE as FAMILIAR
from trainer.prediction.others import FILE as OTHERS
from trainer.prediction.writer import AnyPredictor
from trainer.runs.bundle import GATE, HEADS
from trainer.runs.checkpoint import Checkpoint

KEYS = ("seed", "emotion", "language", "top_emotions", "model.", "dataset.", "trainer.test.", "expert.enabled", "vlm.")
# Among them, keys without effect on predictions, and files, which are compared by content.
FREE = (
    *(f"model.{key}" for key in ("optimizer.", "loss_weights.")),
    *(f"dataset.{key}" for key in ("root", "demo_images", "tokenizer", "texts_per_image", "strict", "shuffle_images")),
    *(f"dataset.{key}" for key in ("train_ds.", "validation_ds.", "test_ds.", "feature_cache", "vad_lexicon", "facts")),
    *(
        f"trainer.test.{key}"
        for key in ("limit_batches", "match_images", "metrics", "novelty", "text_emotion", "clip_score.", "vle")
    ),
)


def identity_of(
    config: DictConfig, checkpoint: Checkpoint, samples: Samples, predictor: AnyPredictor, *, precision: str
) -> dict[str, Any]:
    """Return settings by key, digests of files and a digest of the images, as JSON.

    An image counts by its path, size, modification time and annotations.
    """
    found: dict[str, Any] = {
        "checkpoint": sha256(checkpoint.folder / "model.safetensors"),
        "images": {"count": len(samples), "sha256": _digest_of(samples)},
    }
    for name in (HEADS, GATE, FAMILIAR, OTHERS):
        if (checkpoint.folder / name).is_file():
            found[f"checkpoint, {name}"] = sha256(checkpoint.folder / name)
    for key, value in leaves(OmegaConf.to_container(config, resolve=True), groups()):
        if key.startswith(KEYS) and not key.startswith(FREE):
            found[key] = value
    found |= {f"expert.sources: {name}": digest for name, digest in getattr(predictor.expert, "digests", {}).items()}
    found["trainer.precision"] = precision
    found["trainer.test.emotion_temperature"] = predictor.temperature
    found["dataset.feature_cache"] = config.dataset.feature_cache is not None  # its tokens have half precision
    if predictor.judge is not None:
        found["trainer.test.vle"] = sha256(predictor.judge.judge.folder / "model.safetensors")
    if config.model.vad.enabled:
        found["dataset.vad_lexicon"] = sha256(expand_user(config.dataset.vad_lexicon))
    return found


def _digest_of(samples: Samples) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        try:
            info = file_of(sample.path).stat()
            file = (info.st_size, info.st_mtime_ns)
        except OSError:  # reported when it is opened
            file = ()
        parts = (sample.id, str(sample.path), file, sample.texts, sample.emotions, sample.histogram, sample.ratings)
        digest.update(repr(parts).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
